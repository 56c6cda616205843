"""Classical interactive methods to compare with, made of well-kept libraries and as a competent user runs them.

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
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
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

SHORT_SIDE = 0.25
"""An axis with a smaller part of the longest one's voxels has no border: a slab is cut out of the object."""

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
                start = _around(corners, case.image.shape, case.spacing_mm)
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
        blocks = _blocks(region, case.spacing_mm, self._max_voxels)
        while True:
            score = self._score(case, seeds, region, blocks)
            if math.prod(blocks) == 1:
                return region, score
            corner = [side.start for side in region]
            found = [np.array(own)]
            boxes = ndimage.find_objects((score > 0.5).view(np.uint8))
            if boxes:
                found.append(np.array([[s.start, s.stop - 1] for s in boxes[0]]).T + corner)
            closer = _around(np.concatenate(found), case.image.shape, case.spacing_mm)
            finer = _blocks(closer, case.spacing_mm, self._max_voxels)
            if math.prod(finer) >= math.prod(blocks):
                return region, score
            region, blocks = closer, finer

    def _score(
        self, case: Case, seeds: Mapping[tuple[int, int, int], bool], region: Region, blocks: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Scores of a region's voxels, from a view of its blocks."""
        image = _averaged(case.image[region], blocks)
        border = _border(image.shape)
        foreground = np.zeros(image.shape, bool)
        for kji, positive in seeds.items():
            if all(side.start <= x < side.stop for x, side in zip(kji, region)):
                block = tuple((x - side.start) // n for x, side, n in zip(kji, region, blocks))
                (foreground if positive else border)[block] = True
        background = border & ~foreground
        if not background.any():  # an image of a few voxels
            return np.ones([side.stop - side.start for side in region], np.float32)
        sides_mm = [mm * n for mm, n in zip(case.spacing_mm, blocks)]
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
    origin = [(1 - b) / 2 for b in reversed(blocks)]
    large = sitk.Resample(
        small,
        sizes[::-1],
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        [-x for x in origin],
        (1.0, 1.0, 1.0),
        small.GetDirection(),
        0.0,
        sitk.sitkFloat32,
        True,
    )
    return sitk.GetArrayFromImage(large)


def _itk(array: NDArray[Any], view: View) -> Any:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(n) for n in reversed(view.spacing)])
    return image


def _points(seeds: NDArray[np.bool_]) -> list[list[int]]:
    """Seeds as SimpleITK has them, (i, j, k)."""
    points: list[list[int]] = np.argwhere(seeds)[:, ::-1].tolist()
    return points


def _gradient(view: View, sigma: float) -> Any:
    """Magnitude of the gradient of the smoothed image, per voxel of the finest axis."""
    smooth = sitk.DiscreteGaussian(_itk(view.image, view), [sigma**2] * 3) if sigma else _itk(view.image, view)
    return sitk.GradientMagnitude(smooth)


P = dict(
    rg_mult=(3.5, 3.0, 2.5, 2.0, 1.5, 1.0), rg_iter=2, rg_rad=1, rg_flow=5, rg_close=1,
    ws_sigma=0.7, ws_ball=0.0,
    geo_sigma=0.7, geo_scale=10.0, geo_like=0.0,
    rw_beta=130.0, rw_ball=0.0,
    gs_eps=1.0, gs_ball=0.0,
)  # fmt: skip


def _ball(seeds, radius, view, other):
    if not radius:
        return seeds
    d = ndimage.distance_transform_edt(~seeds, sampling=view.spacing)
    return (d <= radius) & ~other


def region_growing(view: View) -> FloatArray:
    image = sitk.CurvatureFlow(_itk(view.image, view), 0.0625, P["rg_flow"])
    seeds = _points(view.foreground)
    grown = None
    for multiplier in P["rg_mult"]:
        grown = np.zeros(view.image.shape, bool)
        for group in ([[s] for s in seeds] if P.get("rg_each", True) else [seeds]):
            for m in P["rg_mult"]:
                if m > multiplier and not P.get("rg_each", True):
                    continue
                found = sitk.ConfidenceConnected(image, group, P["rg_iter"], m, P["rg_rad"], 1)
                f = sitk.GetArrayViewFromImage(found) > 0
                if not (f & view.background).any():
                    break
            grown |= f
        if P.get("rg_each", True) or not (grown & view.background).any():
            break
    if (grown & view.background).any():
        near = ndimage.distance_transform_edt(~view.foreground, sampling=view.spacing)
        far = ndimage.distance_transform_edt(~view.background, sampling=view.spacing)
        grown = grown & (near < far)
        lab, _ = ndimage.label(grown)
        grown = np.isin(lab, np.setdiff1d(np.unique(lab[view.foreground]), [0]))
    if P["rg_close"]:
        grown = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(grown, 2), iterations=P["rg_close"]))[2:-2, 2:-2, 2:-2] | grown
        grown &= ~view.background
    return grown.astype(np.float32)


def watershed(view: View) -> FloatArray:
    fg = _ball(view.foreground, P["ws_ball"], view, view.background)
    markers = fg.astype(np.uint8) + 2 * view.background.astype(np.uint8)
    found = sitk.MorphologicalWatershedFromMarkers(
        _gradient(view, P["ws_sigma"]), _itk(markers, view), False, False
    )
    return (sitk.GetArrayFromImage(found) == 1).astype(np.float32)


def geodesic(view: View) -> FloatArray:
    gradient = sitk.GetArrayFromImage(_gradient(view, P["geo_sigma"]))
    fg = _ball(view.foreground, P.get("geo_ball", 0), view, view.background)
    times = []
    for seeds in (fg, view.background):
        slow = 1 + (gradient / P["geo_scale"]) ** P.get("geo_pow", 1)
        if P["geo_like"]:
            sm = sitk.GetArrayFromImage(sitk.DiscreteGaussian(_itk(view.image, view), 1.0))
            mean = sm[view.foreground].mean()
            if seeds is fg:
                slow = slow + P["geo_like"] * np.abs(sm - mean) / 10
        speed = (1 / slow).astype(np.float32)
        times.append(sitk.GetArrayFromImage(sitk.FastMarching(_itk(speed, view), _points(seeds))))
    return _nearness(*times)


def _nearness(to_foreground: FloatArray, to_background: FloatArray) -> FloatArray:
    """1 at the object's seeds, 0 at those of the background, 0.5 where both are as far."""
    return to_background / np.maximum(to_foreground + to_background, 1e-9)


def random_walker(view: View) -> FloatArray:
    from skimage.segmentation import random_walker as walk

    fg = _ball(view.foreground, P["rw_ball"], view, view.background)
    seeds = fg.astype(np.int8) + 2 * view.background.astype(np.int8)
    return walk(view.image, seeds, beta=P["rw_beta"], mode="cg_j", tol=1e-3, spacing=view.spacing, return_full_prob=True, prob_tol=0.1)[0]


def grow_from_seeds(view: View) -> FloatArray:
    numbers = np.arange(view.image.size).reshape(view.image.shape)
    starts, ends, costs = [], [], []
    for axis, side in enumerate(view.spacing):
        image = np.moveaxis(view.image, axis, 0)
        ids = np.moveaxis(numbers, axis, 0)
        costs.append((np.abs(np.diff(image, axis=0)) + P["gs_eps"] * side).ravel())
        starts.append(ids[:-1].ravel())
        ends.append(ids[1:].ravel())
    graph = sparse.coo_array(
        (np.concatenate(costs), (np.concatenate(starts), np.concatenate(ends))),
        shape=(view.image.size,) * 2,
    ).tocsr()
    times = [
        sparse.csgraph.dijkstra(graph, directed=False, indices=np.flatnonzero(s), min_only=True)
        for s in (_ball(view.foreground, P["gs_ball"], view, view.background), view.background)
    ]
    return _nearness(*times).reshape(view.image.shape)


METHODS = {
    "region-growing": (region_growing, 1_000_000),
    "geodesic": (geodesic, 1_000_000),
    "watershed": (watershed, 1_000_000),
    "random-walker": (random_walker, 250_000),
    "grow-from-seeds": (grow_from_seeds, 250_000),
}
