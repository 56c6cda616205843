"""Views turned and bent: the same anatomy in other shapes.

A few label maps and cases show few shapes; turned, stretched and bent, each shows many.

Source: as SynthSeg deforms its label maps (Billot et al., Medical Image Analysis 2023), with smaller turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from GSMedSegLib.roi import Pyramid, View
from Training.synthetic import grid, smooth_noise

MOST_TURNED = np.pi / 6
"""A view is turned by up to this angle, about any axis; right angles are `Augmentation`'s."""

STRETCH = 0.1
"""Standard deviation of the logarithm of the stretch along each of its axes."""

MOST_BENT = 0.06
"""How far a sample is moved by bending: a normal deviate of up to this share of the view's side."""

WAVES = (0.2, 0.8)
"""How long the bends are, in sides of the view."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class BentView:
    """Where a turned and bent view takes its samples.

    Attributes:
        points_kji: (3, S, S, S) float32 image positions; a voxel's centre is an integer.
        step_kji: image voxels from one sample to the next where it is straight.
    """

    points_kji: NDArray[np.float32]
    step_kji: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, view: View) -> BentView:
        """A view changed at random; its middle stays about where it is."""
        size = view.size
        axis = rng.standard_normal(3)
        turn = rotation_about(axis / np.linalg.norm(axis), float(rng.uniform(-MOST_TURNED, MOST_TURNED)))
        stretched = turn * np.exp(rng.normal(0, STRETCH, 3))
        points = np.tensordot(stretched.astype(np.float32), grid(size) - (size - 1) / 2, 1)
        wave, reach = size * rng.uniform(*WAVES), size * rng.uniform(0, MOST_BENT)
        points += reach * np.stack([smooth_noise(rng, size, wave) for _ in range(3)])
        step, center = (_columns(v) for v in (view.step_kji, view.center_kji))
        return cls((points * step + center).astype(np.float32), view.step_kji)

    def labels(self, volume: NDArray[Any]) -> NDArray[np.int32]:
        """(S, S, S) labels of the nearest voxels; 0 outside."""
        at = np.rint(self.points_kji).astype(np.intp)
        k, j, i = (axis.clip(0, n - 1) for axis, n in zip(at, volume.shape, strict=True))
        return np.where(self.outside(volume.shape), 0, volume[k, j, i].astype(np.int32))

    def samples(self, image: Pyramid) -> Tensor:
        """(S, S, S) float32, trilinear as `Pyramid.sample`: beyond the image its border is repeated."""
        level, factors = image.level(self.step_kji)
        share = (self.points_kji + 0.5) / _columns(np.multiply(factors, level.shape))
        where = torch.from_numpy(np.stack(list(2 * share[::-1] - 1), axis=-1))
        return F.grid_sample(
            level.float()[None, None], where[None], padding_mode="border", align_corners=False
        )[0, 0]

    def outside(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """(S, S, S) samples outside a volume of this shape, as `outside_mask` has them."""
        reach = _columns(np.maximum(0.5, np.array(self.step_kji) / 2))
        beyond = (self.points_kji < -reach) | (self.points_kji > _columns(shape) - 1 + reach)
        return np.asarray(beyond.any(0))


def _columns(values: ArrayLike) -> NDArray[np.float32]:
    """One value for each of the axes k, j, i, (3, 1, 1, 1)."""
    return np.asarray(values, np.float32)[:, None, None, None]


def rotation_about(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """The 3×3 rotation by an angle about an axis of length 1 (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
