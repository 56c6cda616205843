"""The seed method's strategy, voxel for voxel: one fixed window around every click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from GSMedSegLib.engine import Engine, ImageKey
from GSMedSegLib.intensity import percentile_limits, scale
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.roi import center_window, symmetric_padding
from GSMedSegLib.segment import Segment

NO_CLICK_LOGIT = -9999.0
"""What the network answers for a window with no click strictly inside. Source: MONAI `VISTA3D.NINF_VALUE`."""


class ReferenceStrategy:
    """MONAI's `point_based_window_inferer` as GS_MedSegFM calls it, with every window encoded once.

    Where windows overlap their logits are summed, not averaged: that is what MONAI does, and the sign is the
        same.
    Boxes and earlier masks are ignored.

    Args:
        engine: runs the network.
        roi: voxels per side of a window.

    Source: MONAI `monai.apps.vista3d.inferer`, `monai.networks.nets.vista3d`.
    """

    name = "reference"
    stepwise = False
    edits = False
    further_click = 1.0

    def __init__(self, engine: Engine, roi: int = 128) -> None:
        self.engine = engine
        self.roi = roi
        self._image = torch.zeros(0)
        self._image_key = ImageKey()
        self._padding: tuple[tuple[int, int], ...] = ()
        self._shape = (0, 0, 0)

    def set_image(self, image: NDArray[np.generic], spacing_kji_mm: tuple[float, float, float]) -> None:
        """Scale an image to its 1st..99th percentile and pad it with zeros up to one window.

        Raises:
            ValueError: a constant image, or one with NaN.
        """
        scaled = torch.from_numpy(
            scale(image, percentile_limits(image))
        )  # may raise: before anything changes
        k, j, i = image.shape
        self._shape = (k, j, i)
        self._padding = symmetric_padding(image.shape, self.roi)
        self._image = F.pad(scaled, [n for pair in reversed(self._padding) for n in pair])
        self._image_key = ImageKey()  # an engine may serve several images

    def can_start(self, clicks: Sequence[Click], box: Box | None) -> bool:
        """Any click will do; a box is ignored."""
        return len(clicks) > 0

    def predict(
        self, clicks: Sequence[Click], box: Box | None = None, before: Segment | None = None
    ) -> Segment:
        """Logits of one object.

        Args:
            clicks: all its clicks, in order; at least one.
            box: ignored.
            before: ignored.
        """
        shift = np.array([pair[0] for pair in self._padding])
        points = np.array([c.kji for c in clicks]) + shift
        labels = np.array([int(c.positive) for c in clicks])
        total = torch.zeros(self._image.shape)
        reached = torch.zeros(self._image.shape, dtype=torch.bool)
        answers: dict[tuple[int, ...], Tensor | float] = {}
        for point in points:
            window = tuple(center_window(int(p), self.roi, n) for p, n in zip(point, self._image.shape))
            corner = tuple(s.start for s in window)  # slices cannot be hashed before Python 3.12
            if corner not in answers:
                answers[corner] = self._decode(window, points, labels)
            total[window] += answers[corner]
            reached[window] = True
        total[~reached] = torch.nan
        inner = tuple(slice(low, low + n) for (low, _), n in zip(self._padding, self._shape))
        k, j, i = self._shape
        return Segment(self._shape, (slice(0, k), slice(0, j), slice(0, i)), total[inner])

    def _decode(
        self, window: tuple[slice, ...], points: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> Tensor | float:
        start, stop = np.array([s.start for s in window]), np.array([s.stop for s in window])
        inside = ((points > start) & (points < stop)).all(axis=1)
        if not inside.any():
            return NO_CLICK_LOGIT
        embedding = self.engine.encode(self._image[window], key=self._image_key.of(*start.tolist()))
        return self.engine.decode(embedding, (points[inside] - start)[None], labels[inside][None])[0].cpu()
