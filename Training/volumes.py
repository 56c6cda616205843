"""A labelled volume, and the views that are cut out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.intensity import percentile_limits, scale
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.roi import Pyramid, View, inside_center, outside_mask, zoom_spacing_mm
from GSMedSegLib.volume_io import read_labelmap

MIN_VOXELS = 24
"""An object with fewer voxels in a view is not asked for."""

LARGEST_LABEL = 65535
"""Tables of labels have so many rows at most."""

FITTING, FILLING = (0.1, 1.1), (1.1, 2.0)
"""How large the wanted object is, as a share of its view's side. A first click is looked at in several zooms:
in each the network must find the same object, be it small, or larger than the view."""

FITTING_SHARE = 0.85
"""How often the wanted object fits its view."""

WIDEST = 1.3
"""A view is at most this many times as wide as its volume's longest side."""

INSIDE_SHARE = 0.8
"""How often a view is pushed inside its volume, as all are later on."""


@dataclass(frozen=True)
class Piece:
    """One connected component of one label, where a view may be centred.

    Attributes:
        label: the value in the label map.
        box: its bounding box, (k, j, i) slices.
    """

    label: int
    box: tuple[slice, slice, slice]


class LabelledVolume:
    """A label map, with or without its image, and the pieces it is made of.

    Args:
        labels: (K, J, I) integers; of those beyond `LARGEST_LABEL` the numbers change.
        spacing_mm: (k, j, i).
        image: (K, J, I), or None for a label map to paint. It is scaled: the 1st and 99th percentile become 0
            and 1.
        clip: cut off what lies beyond them.
    """

    def __init__(
        self,
        labels: LabelArray,
        spacing_mm: tuple[float, float, float],
        image: NDArray[np.generic] | None,
        clip: bool = False,
    ) -> None:
        self.labels = _small_numbers(labels)
        spacing = zoom_spacing_mm(spacing_mm, labels.shape)
        self.spacing_mm = spacing / spacing.min()
        self.image: Pyramid | None = None
        if image is not None:
            low, high = percentile_limits(image)
            scaled = scale(image, (low, high)) if clip else (image.astype(np.float32) - low) / (high - low)
            self.image = Pyramid(torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32)))
        self.pieces = list(_pieces(self.labels))

    @property
    def nbytes(self) -> int:
        """Of labels and image, with the coarser copies of it that views have asked for."""
        return self.labels.nbytes + (0 if self.image is None else self.image.nbytes)

    def view(self, rng: np.random.Generator, size: int) -> tuple[View, int]:
        """A view around a random piece, its zoom drawn by the piece's size; and the piece's label.

        The piece lies anywhere, but mostly near the middle.
        """
        labels = sorted({p.label for p in self.pieces})
        wanted = labels[int(rng.integers(len(labels)))]
        several = [p for p in self.pieces if p.label == wanted]
        volumes = np.array([np.prod([s.stop - s.start for s in p.box]) for p in several], float) ** 0.5
        piece = several[int(rng.choice(len(several), p=volumes / volumes.sum()))]
        extent_mm = max((s.stop - s.start) * mm for s, mm in zip(piece.box, self.spacing_mm, strict=True))
        low, high = FITTING if rng.random() < FITTING_SHARE else FILLING
        share = np.exp(rng.uniform(np.log(low), np.log(high)))
        whole_mm = float((np.array(self.labels.shape) * self.spacing_mm).max())
        step_mm = max(min(extent_mm / share, WIDEST * whole_mm) / size, 0.35 * float(min(self.spacing_mm)))
        steps = step_mm / self.spacing_mm * np.exp(rng.normal(0, 0.08, 3))
        middle = np.array([(s.start + s.stop - 1) / 2 for s in piece.box])
        reach = np.array([(s.stop - s.start) / 2 for s in piece.box])
        center = middle + rng.uniform(-1, 1, 3) * np.minimum(reach, 0.3 * size * steps)
        center += rng.normal(0, 0.08, 3) * size * steps
        if rng.random() < INSIDE_SHARE:
            center = inside_center(center, steps, size, self.labels.shape)
        return View(tuple(center.tolist()), tuple(steps.tolist()), size), piece.label

    def crop(self, rng: np.random.Generator, size: int) -> tuple[View, int]:
        """The seed's crop: the volume's own voxels around a random voxel of a random label; and that label.

        It is pushed inside the volume; along an axis where the volume is smaller it has it in its middle.

        Source: MONAI's RandCropByLabelClasses after SpatialPad.
        """
        labels = sorted({p.label for p in self.pieces})
        wanted = labels[int(rng.integers(len(labels)))]
        at = np.flatnonzero(self.labels == wanted)
        voxel = np.array(np.unravel_index(at[int(rng.integers(len(at)))], self.labels.shape))
        start = np.clip(voxel - size // 2, 0, np.maximum(np.array(self.labels.shape) - size, 0))
        short = size - np.array(self.labels.shape)
        start = np.where(short > 0, -(short // 2), start)
        k, j, i = start + (size - 1) / 2
        return View((float(k), float(j), float(i)), (1.0, 1.0, 1.0), size), wanted

    def labels_in(self, view: View) -> NDArray[np.int32]:
        """(S, S, S) labels of a view; 0 outside the volume."""
        index = [
            np.round(np.arange(view.size) * step + start).astype(int).clip(0, n - 1)
            for step, start, n in zip(view.step_kji, view.start_kji, self.labels.shape, strict=True)
        ]
        cut = self.labels[np.ix_(*index)].astype(np.int32)
        return np.where(outside_mask(view, self.labels.shape).numpy(), 0, cut)


def _small_numbers(labels: LabelArray) -> LabelArray:
    """Labels beyond `LARGEST_LABEL`, as instances under a microscope have them, get numbers that are free."""
    if labels.max(initial=0) <= LARGEST_LABEL:
        return labels
    values, index = np.unique(labels, return_inverse=True)
    small = values[values <= LARGEST_LABEL]
    free = np.setdiff1d(np.arange(1, LARGEST_LABEL + len(values)), small)
    numbers = np.concatenate([small, free[: len(values) - len(small)]])
    smaller: LabelArray = numbers[index].reshape(labels.shape).astype(np.min_scalar_type(int(numbers.max())))
    return smaller


def _pieces(labels: LabelArray) -> Iterator[Piece]:
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, _ = ndimage.label(labels[box] == label, np.ones((3, 3, 3)))
        counts = np.bincount(parts.ravel())
        for n, inner in enumerate(ndimage.find_objects(parts), start=1):
            if inner is not None and counts[n] >= max(MIN_VOXELS, 0.02 * counts[1:].max()):
                k, j, i = (
                    slice(o.start + s.start, o.start + s.stop) for o, s in zip(box, inner, strict=True)
                )
                yield Piece(label, (k, j, i))


def load_case(source: CaseSource, clip: bool) -> LabelledVolume:
    """A case as a volume; see `LabelledVolume` for `clip`."""
    case = source.load().case
    assert case.truth is not None, "a labelled case has a truth"
    return LabelledVolume(case.truth, case.spacing_kji_mm, case.image, clip)


def load_map(path: Path) -> LabelledVolume:
    """A label map as a volume without image."""
    labels = read_labelmap(path)
    return LabelledVolume(labels.array, labels.spacing_kji_mm, None)


def load_lesions(folder: Path) -> list[NDArray[np.bool_]]:
    """Every connected piece of a folder's masks, cropped to its box."""
    lesions = []
    for path in sorted(folder.glob("*.nii.gz")):
        labels = read_labelmap(path).array
        lesions += [labels[p.box] == p.label for p in _pieces(labels)]
    return lesions
