"""Classical interactive methods to compare with, from well-kept libraries and as a competent user runs them.

Every method answers the same question: which voxels of a view belong to the seeds of the object, and which to
those of the background? The rest is the same for all of them, so that nothing but the method is compared.

- Seeds of the object are its foreground clicks, or the middle of its box while there is none. Seeds of the
  background are its background clicks, the foreground of the other classes, and the border of the view.
- The view is the whole image, or the box with a margin. One with more voxels than `MAX_VOXELS` is averaged
  over blocks, and then what was found in it is looked at more closely. So the time is bounded whatever the
  image: seconds for a class of a 512×512×300 CT.
- A voxel that several classes claim goes to the one with the best score, of equals to the last.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage, sparse

from GSMedSegLib.case_segmenter import ClassPrompts, prompts_of
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case

if TYPE_CHECKING:
    from GSMedSegLib.challenge import Segmenter

MAX_VOXELS = 1_000_000
"""Of a view."""

MARGIN = 0.25
"""Around a box or a find, as a part of its side; and at least `MARGIN_VOXELS` of the finest axis."""
MARGIN_VOXELS = 8

KEPT = 0.5
"""A closer look that finds a smaller part of what was found before saw its border, not the object's."""

MARK_VOXELS = 2
"""Radius of the mark that a click makes: one voxel among those of the border goes unheard."""

SHORT_SIDE = 0.25
"""An axis with a smaller part of the longest one's voxels has no border: a slab is cut out of the object."""

MULTIPLIERS = (3.5, 3.0, 2.5, 2.0, 1.5, 1.0)
"""Widths of the range that region growing accepts, in standard deviations; the widest that holds."""

SMOOTHING = 0.7
"""Of a gradient, in voxels of the finest axis."""

CLEAR_EDGE = 10.0
"""A gradient, of 255 grey values, that makes a front half as fast."""

BETA = 1000.0
"""How much edges hinder the random walker."""

WALKED_VOXELS = 250_000
"""Of a view for the two methods that take longest."""

Region = tuple[slice, slice, slice]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class View:
    """What a method gets to see.

    Attributes:
        image: (K, J, I) float32, 0..255.
        spacing: of axes 0, 1, 2, in units of the finest one, which is 1.
        foreground: (K, J, I) bool, the object's seeds; at least one.
        background: (K, J, I) bool, seeds of what is not the object; at least one, and none of the object's.
    """

    image: NDArray[np.float32]
    spacing: tuple[float, float, float]
    foreground: NDArray[np.bool_]
    background: NDArray[np.bool_]


Method = Callable[[View], FloatArray]
"""Gives (K, J, I) scores from 0 to 1; above 0.5 is the object."""


class PeerSegmenter:
    """Segments the classes of a case by one method; a `challenge.Segmenter`.

    Args:
        method: scores the voxels of a view.
        max_voxels: of a view.
    """

    def __init__(self, method: Method, max_voxels: int = MAX_VOXELS) -> None:
        self._method = method
        self._max_voxels = max_voxels

    def segment(self, case: Case) -> LabelArray:
        """Segment all classes; one without foreground click and box stays empty.

        Returns:
            (K, J, I) labels, class c as c.

        Raises:
            ValueError: the case has neither clicks nor boxes.
        """
        prompts = prompts_of(case)
        labels: LabelArray = np.zeros(case.image.shape, np.min_scalar_type(len(prompts)))
        best = np.zeros(case.image.shape, np.float32)
        foreground = [_foreground_of(several) for several in prompts]
        for n, (clicks, box) in enumerate(prompts):
            if not foreground[n]:
                continue
            seeds = dict.fromkeys((v for row in foreground for v in row), False)
            seeds.update((click.kji, False) for click in clicks if not click.positive)
            seeds.update(dict.fromkeys(foreground[n], True))
            start = _whole(case.image.shape)
            if box is not None:
                corners = np.array([box.min_kji, box.max_kji, *(click.kji for click in clicks)])
                start = _around(corners, case.image.shape, case.spacing_kji_mm)
            region, score = self._look(case, seeds, start)
            better = (score > 0.5) & (score >= best[region])
            labels[region][better] = n + 1
            best[region][better] = score[better]
        return labels

    def _look(
        self, case: Case, seeds: Mapping[tuple[int, int, int], bool], region: Region
    ) -> tuple[Region, NDArray[np.float32]]:
        """Scores in a region of the image; coarsely first where it is large, then closer around the find."""
        own = [kji for kji, positive in seeds.items() if positive]
        blocks = _blocks(region, case.spacing_kji_mm, self._max_voxels)
        score = self._score(case, seeds, region, blocks)
        while math.prod(blocks) > 1:
            corner = [side.start for side in region]
            found = [np.array(own)]
            boxes = ndimage.find_objects((score > 0.5).view(np.uint8))
            if boxes:
                found.append(np.array([[s.start, s.stop - 1] for s in boxes[0]]).T + corner)
            closer = _around(np.concatenate(found), case.image.shape, case.spacing_kji_mm)
            finer = _blocks(closer, case.spacing_kji_mm, self._max_voxels)
            if math.prod(finer) >= math.prod(blocks):
                break
            sharper = self._score(case, seeds, closer, finer)
            if (sharper > 0.5).sum() < KEPT * (score > 0.5).sum():
                break
            region, blocks, score = closer, finer, sharper
        return region, score

    def _score(
        self, case: Case, seeds: Mapping[tuple[int, int, int], bool], region: Region, blocks: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Scores of a region's voxels, from a view of its blocks."""
        image = _averaged(case.image[region], blocks)
        clicked = {positive: np.zeros(image.shape, bool) for positive in (True, False)}
        for kji, positive in seeds.items():
            if all(side.start <= x < side.stop for x, side in zip(kji, region)):
                block = tuple((x - side.start) // n for x, side, n in zip(kji, region, blocks))
                clicked[positive][block] = True
        foreground = (_marked(clicked[True]) & ~clicked[False]) | clicked[True]
        background = (_marked(clicked[False]) | _border(image.shape)) & ~foreground
        if not background.any():  # an image of a few voxels
            return np.ones([side.stop - side.start for side in region], np.float32)
        sides_mm = [mm * n for mm, n in zip(case.spacing_kji_mm, blocks)]
        k, j, i = (mm / min(sides_mm) for mm in sides_mm)
        score = self._method(View(image, (k, j, i), foreground, background)).astype(np.float32)
        if math.prod(blocks) > 1:
            score = _enlarged(score, blocks, [side.stop - side.start for side in region])
        return score


def _foreground_of(prompts: ClassPrompts) -> list[tuple[int, int, int]]:
    """The foreground clicks of a class, or the middle of its box."""
    clicks, box = prompts
    voxels = [click.kji for click in clicks if click.positive]
    if not voxels and box is not None:
        k, j, i = ((a + b) // 2 for a, b in zip(box.min_kji, box.max_kji))
        voxels = [(k if box.mid_k is None else box.mid_k, j, i)]
    return voxels


def _whole(shape: tuple[int, ...]) -> Region:
    k, j, i = (slice(0, n) for n in shape)
    return k, j, i


def _around(
    voxels: NDArray[np.int64], shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> Region:
    """The region of some voxels (n, 3) with a margin, within the image."""
    sides = []
    for low, high, n, mm in zip(voxels.min(0).tolist(), voxels.max(0).tolist(), shape, spacing_mm):
        least = math.ceil(MARGIN_VOXELS * min(spacing_mm) / mm)
        margin = max(least, math.ceil(MARGIN * (high - low + 1)))
        sides.append(slice(max(0, low - margin), min(n, high + 1 + margin)))
    k, j, i = sides
    return k, j, i


def _blocks(region: Region, spacing_mm: tuple[float, float, float], max_voxels: int) -> tuple[int, ...]:
    """Sides of the blocks to average, as cubic as whole numbers of voxels can be."""
    sizes = [side.stop - side.start for side in region]
    blocks = [1, 1, 1]
    while math.prod(-(-n // b) for n, b in zip(sizes, blocks)) > max_voxels:
        sides_mm = [b * mm if b < n else math.inf for n, b, mm in zip(sizes, blocks, spacing_mm)]
        blocks[sides_mm.index(min(sides_mm))] += 1
    return tuple(blocks)


def _border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The outermost voxels, but across axes that are short."""
    border = np.zeros(shape, bool)
    for axis, n in enumerate(shape):
        if n > 1 and n >= SHORT_SIDE * max(shape):
            faces = np.moveaxis(border, axis, 0)
            faces[0] = faces[-1] = True
    return border


def _marked(clicked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels near clicks."""
    near = ndimage.generate_binary_structure(3, 1)
    marks: NDArray[np.bool_] = ndimage.binary_dilation(clicked, near, MARK_VOXELS)
    return marks


def _averaged(image: NDArray[np.uint8], blocks: tuple[int, ...]) -> NDArray[np.float32]:
    """Means of blocks, the image's edge repeated to fill the last."""
    if math.prod(blocks) == 1:
        return image.astype(np.float32)
    padded = np.pad(image, [(0, -n % b) for n, b in zip(image.shape, blocks)], mode="edge")
    shape = [size for n, b in zip(padded.shape, blocks) for size in (n // b, b)]
    means: NDArray[np.float32] = padded.reshape(shape).mean((1, 3, 5), dtype=np.float32)
    return means


def _enlarged(score: NDArray[np.float32], blocks: tuple[int, ...], sizes: list[int]) -> NDArray[np.float32]:
    """Scores of blocks on the voxels, linear between their middles."""
    small = sitk.GetImageFromArray(score)
    small.SetSpacing([float(b) for b in reversed(blocks)])
    first_voxel = [(1 - b) / 2 for b in reversed(blocks)]  # seen from the middle of the first block
    large = sitk.Resample(
        small,
        sizes[::-1],
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        first_voxel,
        (1.0, 1.0, 1.0),
        small.GetDirection(),
        0.0,
        sitk.sitkFloat32,
        True,
    )
    scores: NDArray[np.float32] = sitk.GetArrayFromImage(large)
    return scores


def _itk(array: NDArray[Any], view: View) -> Any:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(n) for n in reversed(view.spacing)])
    return image


def _points(seeds: NDArray[np.bool_]) -> list[list[int]]:
    """Seeds as SimpleITK has them, (i, j, k)."""
    points: list[list[int]] = np.argwhere(seeds)[:, ::-1].tolist()
    return points


def _gradient(view: View) -> Any:
    """Magnitude of the gradient of the slightly smoothed image, per voxel of the finest axis."""
    return sitk.GradientMagnitude(sitk.DiscreteGaussian(_itk(view.image, view), [SMOOTHING**2] * 3))


def region_growing(view: View) -> FloatArray:
    """Confidence-connected growing from every click, as wide as keeps it off the background's seeds.

    What is then nearer to those is cut off, and holes are filled.

    Source: SimpleITK's CurvatureFlow and ConfidenceConnected.
    """
    image = sitk.CurvatureFlow(_itk(view.image, view), 0.0625, 5)
    grown = np.zeros(view.image.shape, bool)
    for seed in _points(view.foreground):
        if grown[tuple(reversed(seed))]:
            continue
        found = np.zeros(view.image.shape, bool)
        for multiplier in MULTIPLIERS:
            found = sitk.GetArrayFromImage(sitk.ConfidenceConnected(image, [seed], 2, multiplier, 1, 1)) > 0
            if not (found & view.background).any():
                break
        grown |= found
    if (grown & view.background).any():
        ours, theirs = (
            ndimage.distance_transform_edt(~seeds, sampling=view.spacing)
            for seeds in (view.foreground, view.background)
        )
        grown &= ours < theirs
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(grown)
    return (filled & ~view.background).astype(np.float32)


def watershed(view: View) -> FloatArray:
    """The basins of the object's seeds where the gradient is flooded from all seeds.

    Source: SimpleITK's MorphologicalWatershedFromMarkers.
    """
    markers = _itk(view.foreground.astype(np.uint8) + 2 * view.background.astype(np.uint8), view)
    found = sitk.MorphologicalWatershedFromMarkers(_gradient(view), markers, False, False)
    basins: NDArray[np.bool_] = sitk.GetArrayFromImage(found) == 1
    return basins.astype(np.float32)


def geodesic(view: View) -> FloatArray:
    """What a front from the object's seeds reaches before one from the background's; edges slow them.

    Source: SimpleITK's FastMarching.
    """
    speed = 1 / (1 + (sitk.GetArrayFromImage(_gradient(view)) / CLEAR_EDGE) ** 2)
    ours, theirs = (
        sitk.GetArrayFromImage(sitk.FastMarching(_itk(speed.astype(np.float32), view), _points(seeds)))
        for seeds in (view.foreground, view.background)
    )
    return _nearness(ours, theirs)


def random_walker(view: View) -> FloatArray:
    """Where a walker who avoids edges more probably meets the object's seeds than the background's.

    Source: scikit-image's random_walker; Grady, IEEE TPAMI 2006.
    """
    from skimage.segmentation import random_walker as walk

    seeds = view.foreground.astype(np.int8) + 2 * view.background.astype(np.int8)
    if seeds.all() or view.image.min() == view.image.max():
        return view.foreground.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of odds a little beyond 0 and 1, which is no harm here
        odds = walk(
            view.image / 255,  # the effect of beta depends on the scale
            seeds,
            beta=BETA,
            mode="cg_j",
            tol=1e-3,
            spacing=view.spacing,
            return_full_prob=True,
        )
    ours: FloatArray = odds[0]
    return ours


def grow_from_seeds(view: View) -> FloatArray:
    """GrowCut: a voxel belongs to the seeds from which the grey values change least along the way.

    Source: Vezhnevets and Konouchine, GraphiCon 2005, as the shortest path of Zhu et al., MICCAI workshop
    2014; by SciPy's Dijkstra.
    """
    numbers = np.arange(view.image.size).reshape(view.image.shape)
    starts, ends, costs = [], [], []
    for axis, side in enumerate(view.spacing):
        image, ids = np.moveaxis(view.image, axis, 0), np.moveaxis(numbers, axis, 0)
        costs.append((np.abs(np.diff(image, axis=0)) + side).ravel())
        starts.append(ids[:-1].ravel())
        ends.append(ids[1:].ravel())
    graph = sparse.coo_array(
        (np.concatenate(costs), (np.concatenate(starts), np.concatenate(ends))), shape=(view.image.size,) * 2
    ).tocsr()
    ours, theirs = (
        sparse.csgraph.dijkstra(graph, directed=False, indices=np.flatnonzero(seeds), min_only=True)
        for seeds in (view.foreground, view.background)
    )
    return _nearness(ours, theirs).reshape(view.image.shape)


def _nearness(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """1 at the object's seeds, 0 at the background's, 0.5 where both are as far."""
    nearness: FloatArray = theirs / np.maximum(ours + theirs, 1e-9)
    return nearness


def _random_walker() -> PeerSegmenter:
    """A segmenter, unless its library is missing: better said now than in every round of every case.

    Raises:
        ValueError: scikit-image is not installed.
    """
    try:
        import skimage.segmentation  # noqa: F401 - whether it can be imported
    except ImportError as error:
        raise ValueError("random-walker needs scikit-image; pip install 'gsmedseg[evaluate]'") from error
    return PeerSegmenter(random_walker, WALKED_VOXELS)


PEERS: dict[str, Callable[[], Segmenter]] = {
    "region-growing": functools.partial(PeerSegmenter, region_growing),
    "geodesic": functools.partial(PeerSegmenter, geodesic),
    "watershed": functools.partial(PeerSegmenter, watershed),
    "grow-from-seeds": functools.partial(PeerSegmenter, grow_from_seeds, WALKED_VOXELS),
    "random-walker": _random_walker,
}
"""Segmenters by name."""
