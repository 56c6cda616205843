"""Where to look: the seed's fixed windows and our views of any zoom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

HISTOGRAM_BINS = 128
HIGHEST_BIN = 10.0
"""A bin of the histogram counts at most this many times the mean bin."""

EVENNESS = 0.85
"""How far intensities are moved from their linear scale to their rank."""


def symmetric_padding(shape: Sequence[int], roi: int) -> tuple[tuple[int, int], ...]:
    """Voxels to add before and after each axis so that one window of `roi` voxels fits.

    Source: MONAI `monai.apps.vista3d.inferer`.
    """
    missing = [max(roi - n, 0) for n in shape]
    return tuple((n // 2, n - n // 2) for n in missing)


def center_window(point: int, roi: int, length: int) -> slice:
    """The window of `roi` voxels around a point of an axis, pushed inside it; `length` is at least `roi`.

    Source: MONAI `monai.apps.vista3d.inferer`.
    """
    if point - roi // 2 < 0:
        return slice(0, roi)
    if point + roi // 2 > length:
        return slice(length - roi, length)
    return slice(point - roi // 2, point + roi // 2)


@dataclass(frozen=True)
class View:
    """A cubic grid laid over an image: `size`³ samples around a centre, `step` image voxels apart.

    Attributes:
        center_kji: the middle of the grid, in image voxels (a voxel's centre is an integer).
        step_kji: image voxels from one sample to the next, per axis.
        size: samples per side.
    """

    center_kji: tuple[float, float, float]
    step_kji: tuple[float, float, float]
    size: int

    @property
    def start_kji(self) -> tuple[float, float, float]:
        """Image position of the first sample."""
        half = (self.size - 1) / 2
        k, j, i = (c - half * s for c, s in zip(self.center_kji, self.step_kji, strict=True))
        return k, j, i

    def to_view(self, points_kji: np.ndarray) -> np.ndarray:
        """(N, 3) image positions as view positions."""
        return (np.asarray(points_kji, dtype=float) - self.start_kji) / self.step_kji

    def to_image(self, points_kji: np.ndarray) -> np.ndarray:
        """(N, 3) view positions as image positions."""
        return np.asarray(points_kji, dtype=float) * self.step_kji + self.start_kji


def zoom_spacing_mm(spacing_kji_mm: Sequence[float], shape: Sequence[int]) -> NDArray[np.float64]:
    """The spacing that zooms are chosen by: an image's own, but how thick a single slice is says nothing."""
    spacing = np.array(spacing_kji_mm, dtype=float)
    single = np.array(shape) == 1
    if not single.all():
        spacing[single] = spacing[~single].min()
    return spacing


def inside_center(
    center_kji: NDArray[np.float64], step_kji: NDArray[np.float64], size: int, shape: Sequence[int]
) -> NDArray[np.float64]:
    """The centre of a view moved so that the view lies inside an image, as far as it is smaller than that."""
    half = step_kji * size / 2
    low, high = half - 0.5, np.array(shape) - 0.5 - half
    inside = np.clip(center_kji, np.minimum(low, high), np.maximum(low, high))
    return np.where(low < high, inside, (np.array(shape) - 1) / 2)


class Pyramid:
    """An image and its halved copies, so that a wide view averages what it skips.

    Args:
        image: (K, J, I) tensor; float, or integer labels when only `nearest` sampling is used.
    """

    def __init__(self, image: Tensor) -> None:
        self.shape = tuple(image.shape)
        self.image = image
        self._levels: dict[tuple[int, ...], Tensor] = {(1, 1, 1): image}

    @property
    def nbytes(self) -> int:
        """Of the image and the copies made so far."""
        return sum(level.numel() * level.element_size() for level in self._levels.values())

    def level(self, step_kji: Sequence[float]) -> tuple[Tensor, tuple[int, ...]]:
        """The copy whose voxels are at most as large as the steps, and its factors."""
        factors = tuple(
            max(1, min(int(2 ** np.floor(np.log2(max(step, 1.0) * 1.01))), 16, n))
            for step, n in zip(step_kji, self.shape, strict=True)
        )
        if factors not in self._levels:
            self._levels[factors] = F.avg_pool3d(
                self.image.float()[None, None], factors, ceil_mode=True, count_include_pad=False
            )[0, 0]
        return self._levels[factors], factors

    def sample(self, view: View, mode: str = "bilinear") -> Tensor:
        """The view's samples, trilinear or `nearest`; outside the image the border value is repeated.

        Returns:
            (size, size, size) float32.
        """
        image, factors = self.level(view.step_kji) if mode == "bilinear" else (self.image, (1, 1, 1))
        return resample(image.float(), view, factors, mode)


def resample(image: Tensor, view: View, factors: Sequence[int], mode: str) -> Tensor:
    """Sample (K, J, I) at a view's grid; each voxel spans `factors` of the voxels that the view counts in."""
    grid = torch.zeros(3, 4)
    for axis in range(3):
        n, f = image.shape[axis], factors[axis]
        scale = view.step_kji[axis] * view.size / (f * n)
        middle = (view.center_kji[axis] + 0.5) / f
        row = 2 - axis
        grid[row, row] = scale
        grid[row, 3] = 2 * middle / n - 1
    where = F.affine_grid(
        grid[None].to(image.device), [1, 1, view.size, view.size, view.size], align_corners=False
    )
    return F.grid_sample(image[None, None], where, mode=mode, padding_mode="border", align_corners=False)[
        0, 0
    ]


def outside_mask(view: View, shape: Sequence[int]) -> Tensor:
    """(size, size, size) bool: samples that lie outside an image of this shape."""
    start = view.start_kji
    axes = []
    for axis in range(3):
        at = torch.arange(view.size) * view.step_kji[axis] + start[axis]
        reach = max(0.5, view.step_kji[axis] / 2)  # a sample stands for all that it is nearest to
        axes.append((at < -reach) | (at > shape[axis] - 1 + reach))
    return axes[0][:, None, None] | axes[1][None, :, None] | axes[2][None, None, :]


def view_box(view: View, shape: Sequence[int]) -> tuple[slice, slice, slice] | None:
    """The part of the image that a view covers, as slices; None when they do not meet."""
    slices = []
    for axis in range(3):
        half = view.size * view.step_kji[axis] / 2
        low = max(0, int(np.ceil(view.center_kji[axis] - half)))
        high = min(shape[axis], int(np.floor(view.center_kji[axis] + half)) + 1)
        if low >= high:
            return None
        slices.append(slice(low, high))
    return slices[0], slices[1], slices[2]


def to_image_grid(volume: Tensor, view: View, box: tuple[slice, slice, slice]) -> Tensor:
    """Bring (…, size, size, size) values of a view to the image's voxels inside a box, trilinear.

    Returns:
        (…, K, J, I) of the box's shape, float32; beyond the view the border value is repeated.
    """
    grid = torch.zeros(3, 4)
    sizes = [s.stop - s.start for s in box]
    for axis in range(3):
        span = view.size * view.step_kji[axis]
        row = 2 - axis
        grid[row, row] = sizes[axis] / span
        middle = (box[axis].start + box[axis].stop - 1) / 2
        grid[row, 3] = 2 * (middle - view.center_kji[axis]) / span
    where = F.affine_grid(grid[None].to(volume.device), [1, 1, *sizes], align_corners=False)
    channels = volume.float().reshape(1, -1, *volume.shape[-3:])
    found = F.grid_sample(channels, where, mode="bilinear", padding_mode="border", align_corners=False)
    return found.reshape(*volume.shape[:-3], *sizes)


def view_image(pyramid: Pyramid, view: View) -> Tensor:
    """What the network is shown: a view's samples, their contrast evened out (`even_contrast`).

    Samples outside the image are 0; a constant view is all zeros.

    Returns:
        (size, size, size) float32.
    """
    samples = pyramid.sample(view)
    return even_inside(samples, outside_mask(view, pyramid.shape).to(samples.device))


def even_inside(samples: Tensor, outside: Tensor) -> Tensor:
    """Even out the contrast of what lies inside the image; the rest becomes 0.

    Args:
        samples: (S, S, S).
        outside: (S, S, S) bool.
    """
    return torch.where(outside, 0.0, even_contrast(samples, samples[~outside]))


def even_contrast(samples: Tensor, reference: Tensor) -> Tensor:
    """Scale so that the reference's 1st and 99th percentile become 0 and 1, then flatten its histogram.

    In a CT view with air and bone all organs lie within a few per cent of the range; a flatter histogram
    gives them most of it. Its bins are limited, so that a plain background does not have its noise blown up.
    Some room is left beyond the percentiles (-1..2), so that small bright structures keep their contrast.

    Args:
        samples: any shape.
        reference: the samples that count, such as those inside the image.

    Source: contrast-limited equalisation, Pizer et al., Computer Vision, Graphics, and Image Processing 1987.
    """
    if reference.numel() == 0:
        return torch.zeros_like(samples)
    some = reference.flatten()[:: max(1, reference.numel() // 32768)]
    low, high = (float(q) for q in torch.quantile(some, torch.tensor([0.01, 0.99], device=some.device)))
    if high <= low:
        low, high = reference.min().item(), reference.max().item()
    if high <= low:
        return torch.zeros_like(samples)
    scaled = ((samples - low) / (high - low)).clamp(-1, 2)
    counts = torch.histc(((some - low) / (high - low)).clamp(0, 1), HISTOGRAM_BINS, 0, 1)
    heights = counts / counts.mean()
    for _ in range(4):  # what is cut off a bin goes to all of them
        heights = heights.clamp(max=HIGHEST_BIN)
        heights = heights + (1 - heights.mean())
    ranks = F.pad(heights.cumsum(0) / heights.sum(), (1, 0))
    at = scaled.clamp(0, 1) * HISTOGRAM_BINS
    below = at.long().clamp(max=HISTOGRAM_BINS - 1)
    rank = torch.lerp(ranks[below], ranks[below + 1], at - below)
    return scaled + torch.where((scaled > 0) & (scaled < 1), EVENNESS * (rank - scaled), 0.0)
