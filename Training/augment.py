"""Random changes of a view: the seed's, and what is usual besides."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandFlipd,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRotate90d,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
)
from torch import Tensor

T = TypeVar("T")

SEED_SHARE = 0.2
"""How often each of the seed's augmentations is applied. Source: GS_MedSegFM's trainer."""

INVERTED_SHARE = 0.05
"""How often dark becomes bright."""


class Augmentation:
    """Changes the intensities of a view, and turns view and objects.

    Args:
        kind: "none"; "seed": scaled by up to 20 %, shifted by up to 0.2, noise of up to 0.2, flipped, turned
            by right angles, each of them in every fifth view; or "usual": contrast, blur, bias field, thick
            slices and inversion too, and any order of the axes.
    """

    def __init__(self, kind: str) -> None:
        p = SEED_SHARE
        self.kind = kind
        self._intensity = Compose(
            [
                RandScaleIntensity(factors=0.2, prob=p),
                RandShiftIntensity(offsets=0.2, prob=p),
                RandGaussianNoise(prob=p, std=0.2),
            ]
        )
        self._usual = Compose(
            [
                RandSimulateLowResolution(prob=0.15, zoom_range=(0.4, 1.0)),
                RandGaussianSmooth((0.3, 1.2), (0.3, 1.2), (0.3, 1.2), prob=0.2),
                RandBiasField(degree=2, coeff_range=(0.0, 0.15), prob=0.2),
                RandAdjustContrast(prob=0.3, gamma=(0.6, 1.7)),
            ]
        )
        keys = ("image", "targets")
        turns = [RandFlipd(keys, prob=p, spatial_axis=axis) for axis in range(3)]
        self._turns = Compose([*turns, RandRotate90d(keys, prob=p, max_k=3)])

    def intensity(self, rng: np.random.Generator, image: Tensor) -> Tensor:
        """(S, S, S) float32 intensities, about 0..1, changed."""
        if self.kind == "none":
            return image
        changed = image[None]
        if self.kind == "usual":
            changed = _apply(self._usual, rng, changed)
            if rng.random() < INVERTED_SHARE:
                changed = 1 - changed
        return _plain(_apply(self._intensity, rng, changed)[0])

    def turn(self, rng: np.random.Generator, image: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(S, S, S) image and (M, S, S, S) objects, turned alike."""
        if self.kind == "none":
            return image, targets
        if self.kind == "usual":
            axes = [int(a) for a in rng.permutation(3)]
            flips = [a for a in range(3) if rng.random() < 0.5]
            image = image.permute(axes).flip(flips)
            targets = targets.permute(0, *[a + 1 for a in axes]).flip([a + 1 for a in flips])
            return image.contiguous(), targets.contiguous()
        turned = _apply(self._turns, rng, {"image": image[None], "targets": targets})
        return _plain(turned["image"][0]).contiguous(), _plain(turned["targets"]).contiguous()


def _apply(transforms: Compose, rng: np.random.Generator, data: T) -> T:
    transforms.set_random_state(seed=int(rng.integers(2**31)))
    changed: T = transforms(data)
    return changed


def _plain(tensor: Tensor) -> Tensor:
    """MONAI's tensor with metadata as one without."""
    return tensor.as_subclass(torch.Tensor)
