"""Training examples: small views of labelled volumes and invented scenes, and the objects to click there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import IterableDataset

from GSMedSegLib.roi import Pyramid, View, even_inside, inside_center, outside_mask
from GSMedSegLib.volume_io import read_labelmap, read_volume
from Training import synthetic

MIN_VOXELS = 24
"""An object with fewer voxels in a view is not asked for."""

MOST_OF_A_VIEW = 0.95
"""Nor is one that fills more of a view than this."""

FITTING, FILLING = (0.1, 1.1), (1.1, 2.0)
"""How large the wanted object is, as a share of its view's side. A first click is looked at in several zooms:
in each the network must find the same object, be it small, or larger than the view."""

FITTING_SHARE = 0.85
"""How often the wanted object fits its view."""

WIDEST = 1.3
"""A view is at most this many times as wide as its volume's longest side."""

INSIDE_SHARE = 0.8
"""How often a view is pushed inside its volume, as all are later on."""

LESION_SETS = ("lidc_nodule_shapes", "open_ms_lesions", "soop_stroke_lesions")
"""Label maps that are shapes to paste, not scenes."""


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
        labels: (K, J, I) integers.
        spacing_mm: (k, j, i).
        image: (K, J, I), or None for a label map to paint.
    """

    def __init__(
        self, labels: np.ndarray, spacing_mm: tuple[float, float, float], image: np.ndarray | None
    ) -> None:
        self.labels = torch.from_numpy(labels.astype(np.int32))
        self.spacing_mm = np.asarray(spacing_mm) / min(spacing_mm)
        self.image = (
            Pyramid(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)))
            if image is not None
            else None
        )
        self.pieces = list(_pieces(labels))

    def view(self, rng: np.random.Generator, size: int) -> tuple[View, Piece]:
        """A view around a random piece: random zoom, the piece anywhere but mostly near the middle."""
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
        return View(tuple(center.tolist()), tuple(steps.tolist()), size), piece

    def labels_in(self, view: View) -> np.ndarray:
        """(S, S, S) int32 labels of a view; 0 outside the volume."""
        index = [
            torch.round(torch.arange(view.size) * step + start).long()
            for step, start in zip(view.step_kji, view.start_kji, strict=True)
        ]
        inside = [at.clamp(0, n - 1) for at, n in zip(index, self.labels.shape, strict=True)]
        cut = self.labels[inside[0][:, None, None], inside[1][None, :, None], inside[2][None, None, :]]
        return torch.where(outside_mask(view, self.labels.shape), 0, cut).numpy()


def _pieces(labels: np.ndarray) -> Iterator[Piece]:
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


@dataclass(frozen=True)
class Example:
    """A view to train on.

    Attributes:
        image: (S, S, S) float32, its contrast evened out.
        targets: (M, S, S, S) bool, the objects to be clicked.
    """

    image: Tensor
    targets: Tensor


def choose_targets(rng: np.random.Generator, labels: np.ndarray, main: int, count: int) -> list[np.ndarray]:
    """Up to `count` masks among a view's labels, `main` first, mostly single connected components.

    The other labels are drawn without replacement by the square root of their size: `u ** (1 / w)` orders
        them so.
    Source: Efraimidis and Spirakis, Information Processing Letters 2006.
    """
    values, voxels = np.unique(labels, return_counts=True)
    usable = (values != 0) & (voxels >= MIN_VOXELS) & (voxels <= MOST_OF_A_VIEW * labels.size)
    luck = rng.random(len(values)) ** (1 / np.sqrt(voxels))
    luck[values == main] = 1
    order = [int(v) for v in values[usable][np.argsort(-luck[usable])]]
    masks = []
    for value in order[:count]:
        mask = labels == value
        if rng.random() < 0.75:
            parts, n = ndimage.label(mask, np.ones((3, 3, 3)))
            if n > 1:
                sizes = np.bincount(parts.ravel())[1:].astype(float)
                mask = parts == 1 + int(rng.choice(n, p=sizes / sizes.sum()))
        if mask.sum() >= MIN_VOXELS:
            masks.append(mask)
    return masks


class Examples(IterableDataset[Example]):
    """An endless stream of examples.

    Args:
        data: the folder with `train/` and `train/labelmaps/` (Testing and training data layout of the
            README).
        size: voxels per side of a view.
        objects: at most this many objects per view.
        shares: how often an example is drawn from real volumes, painted label maps, invented scenes.
        seed: of the stream; a resumed run passes another one to go on with new examples.
    """

    def __init__(
        self, data: Path, size: int, objects: int, shares: tuple[float, float, float], seed: int
    ) -> None:
        self.size, self.objects, self.shares, self.seed = size, objects, shares, seed
        self.volumes = {
            p.name: load_volumes(p)
            for p in sorted((data / "train").iterdir())
            if p.is_dir() and p.name != "labelmaps"
        }
        maps = data / "train" / "labelmaps"
        self.maps = {
            p.name: load_maps(p) for p in sorted(maps.iterdir()) if p.is_dir() and p.name not in LESION_SETS
        }
        self.lesions = [lesion for name in LESION_SETS for lesion in load_lesions(maps / name)]

    def __iter__(self) -> Iterator[Example]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        if worker is not None:
            torch.set_num_threads(1)
        while True:
            example = self.draw(rng)
            if example is not None:
                yield example

    def draw(self, rng: np.random.Generator) -> Example | None:
        """One example, or None when the drawn view holds nothing to click."""
        kind = int(rng.choice(3, p=self.shares))
        if kind == 2:
            scene = synthetic.invented_scene(rng, self.size)
        else:
            sets = self.volumes if kind == 0 else self.maps
            weights = np.sqrt([len(v) for v in sets.values()])
            group = list(sets.values())[int(rng.choice(len(sets), p=weights / weights.sum()))]
            scene = self.cut(rng, group[int(rng.integers(len(group)))])
        masks = choose_targets(rng, scene.labels, scene.main, self.objects)
        if not masks:
            return None
        image = torch.from_numpy(np.ascontiguousarray(scene.image, dtype=np.float32))
        outside = np.zeros(image.shape, bool) if scene.outside is None else scene.outside
        shown = even_inside(image, torch.from_numpy(outside))
        return turn(rng, shown, torch.from_numpy(np.stack(masks)))

    def cut(self, rng: np.random.Generator, volume: LabelledVolume) -> synthetic.Scene:
        """A view of a volume; a label map is painted."""
        view, piece = volume.view(rng, self.size)
        labels = volume.labels_in(view)
        if volume.image is None:
            return synthetic.painted_scene(rng, labels, piece.label, self.lesions)
        image = volume.image.sample(view).numpy()
        outside = outside_mask(view, volume.image.shape).numpy()
        if rng.random() < 0.6:
            image = synthetic.remap(
                rng,
                image + synthetic.contrast(image) * rng.uniform(0, 0.2) * synthetic.white_noise(rng, image),
            )
        if rng.random() < 0.3:
            image = synthetic.scan(rng, image)
        return synthetic.Scene(image, labels, piece.label, outside)


def turn(rng: np.random.Generator, image: Tensor, targets: Tensor) -> Example:
    """Flip and swap axes at random."""
    axes = [int(a) for a in rng.permutation(3)]
    flips = [a for a in range(3) if rng.random() < 0.5]
    image = image.permute(axes).flip(flips)
    targets = targets.permute(0, *[a + 1 for a in axes]).flip([a + 1 for a in flips])
    return Example(image.contiguous(), targets.contiguous())


def load_volumes(folder: Path) -> list[LabelledVolume]:
    """The `CASE/image.nii.gz` and `label.nii.gz` pairs of a folder."""
    found = []
    for case in sorted(folder.iterdir()):
        image, labels = read_volume(case / "image.nii.gz"), read_labelmap(case / "label.nii.gz")
        found.append(LabelledVolume(labels.array, labels.spacing_kji_mm, image.array))
    return found


def load_maps(folder: Path) -> list[LabelledVolume]:
    """The label maps of a folder."""
    maps = [read_labelmap(path) for path in sorted(folder.glob("*.nii.gz"))]
    return [LabelledVolume(m.array, m.spacing_kji_mm, None) for m in maps]


def load_lesions(folder: Path) -> list[np.ndarray]:
    """Every connected piece of a folder's masks, cropped to its box."""
    lesions = []
    for path in sorted(folder.glob("*.nii.gz")):
        labels = read_labelmap(path).array
        lesions += [labels[p.box] == p.label for p in _pieces(labels)]
    return lesions
