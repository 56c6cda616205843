"""How good a mask is: volume overlap, surface overlap, and the area under a curve of either."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Corner = tuple[int, int, int]

_CORNERS: tuple[Corner, ...] = tuple(itertools.product((0, 1), (0, 1), (0, 1)))


def dice(truth: BoolArray, mask: BoolArray) -> float:
    """Dice similarity coefficient, 2 |A ∩ B| / (|A| + |B|).

    Args:
        truth: bool, any shape.
        mask: bool, same shape.

    Returns:
        0..1; 0 when one of the two is empty, NaN (undefined) when both are, as in the challenge.

    Raises:
        ValueError: the shapes differ, or an array is not bool.
    """
    check_masks(truth, mask)
    total = np.count_nonzero(truth) + np.count_nonzero(mask)
    return 2 * np.count_nonzero(truth & mask) / total if total else math.nan


def surface_dice(
    truth: BoolArray, mask: BoolArray, spacing_mm: Sequence[float], tolerance_mm: float = 2.0
) -> float:
    """Normalised surface Dice: the part of both surfaces that lies within a tolerance of the other one.

    Surfaces run between voxels: a point for each corner that 2×2×2 voxels share and that has both inside and
    outside around it, weighted by the area of the marching-cubes surface there. The volume's border is a
    surface where the object touches it.

    Args:
        truth: (K, J, I) bool.
        mask: (K, J, I) bool.
        spacing_mm: along (k, j, i).
        tolerance_mm: distances up to this one, itself included, count as agreement.

    Returns:
        0..1; 0 when one of the two is empty, NaN (undefined) when both are, as in the challenge.

    Raises:
        ValueError: the masks differ in shape or are not bool and 3D, a spacing is not positive, or the
            tolerance is negative.

    Source:
        Nikolov et al., arXiv:1809.04430; equal to DeepMind's `surface-distance` package.
    """
    check_masks(truth, mask)
    if truth.ndim != 3:
        raise ValueError(f"surface Dice needs 3D masks, got shape {truth.shape}")
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing must be three positive millimetres, got {spacing_mm}")
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance must be 0 mm or more, got {tolerance_mm}")

    boxes = ndimage.find_objects((truth | mask).view(np.uint8))
    if not boxes:
        return math.nan
    (points_a, areas_a), (points_b, areas_b) = (_surface(m[boxes[0]], spacing) for m in (truth, mask))
    if not len(points_a) or not len(points_b):
        return 0.0
    close_a = areas_a[_is_near(points_a, points_b, spacing, tolerance_mm)].sum()
    close_b = areas_b[_is_near(points_b, points_a, spacing, tolerance_mm)].sum()
    return float((close_a + close_b) / (areas_a.sum() + areas_b.sum()))


def auc(values: Sequence[float]) -> float:
    """Area under a curve of equally spaced values (trapezoids of width 1).

    Args:
        values: at least two, such as the Dice after clicks 1 to 5.

    Returns:
        At most the number of values less one, for values up to 1.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an area needs two values or more, got {len(values)}")
    return float(sum(values) - (values[0] + values[-1]) / 2)


def check_masks(truth: BoolArray, mask: BoolArray) -> None:
    """Raises ValueError unless both are bool arrays of one shape: a label map is compared label by label."""
    if truth.shape != mask.shape:
        raise ValueError(f"truth and mask must have the same shape, got {truth.shape} and {mask.shape}")
    if truth.dtype != bool or mask.dtype != bool:
        raise ValueError(
            f"truth and mask must be bool, got {truth.dtype} and {mask.dtype}; compare one label: labels == n"
        )


def _surface(mask: BoolArray, spacing_mm: FloatArray) -> tuple[IntArray, FloatArray]:
    """The points between voxels where the surface passes, (N, 3) half a voxel off, and their areas in mm²."""
    size = [n + 1 for n in mask.shape]
    padded = np.pad(mask, 1).view(np.uint8)
    code = np.zeros(size, np.uint8)
    for bit, corner in enumerate(_CORNERS):
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] << bit
    points = np.argwhere((code != 0) & (code != 255))
    return points, _area_by_code(spacing_mm)[code[tuple(points.T)]]


def _is_near(points: IntArray, others: IntArray, spacing_mm: FloatArray, tolerance_mm: float) -> BoolArray:
    """Whether each of `points` (N, 3) has one of `others` (M, 3) within the tolerance: (N,) bool."""
    tree = KDTree(others * spacing_mm, balanced_tree=False, compact_nodes=False)
    # The search bound is exclusive and its coordinates are rounded: look a little farther, then measure.
    _, nearest = tree.query(points * spacing_mm, distance_upper_bound=tolerance_mm * (1 + 1e-9) + 1e-9)
    near: BoolArray = nearest < len(others)
    steps = (points[near] - others[nearest[near]]) * spacing_mm
    near[near] = np.sqrt((steps**2).sum(axis=1)) <= tolerance_mm
    return near


def _area_by_code(spacing_mm: FloatArray) -> FloatArray:
    """(256,) area in mm² of the surface among 2×2×2 voxels, by their code (bit n: voxel n of `_CORNERS`)."""
    s0, s1, s2 = spacing_mm
    facets = _normals_by_code() * (s1 * s2, s0 * s2, s0 * s1)
    areas: FloatArray = np.linalg.norm(facets, axis=2).sum(axis=1)
    return areas


@functools.cache
def _normals_by_code() -> FloatArray:
    """(256, 4, 3) facets of the surface for every code: normals as long as the facet's area, zeros behind.

    Up to four inside voxels, each group of voxels that share faces has a sheet of its own. With more, the
    outside ones are grouped instead, for the surface seen from the other side is the same.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(256):
        inside = {corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1}
        minority = inside if len(inside) <= 4 else set(_CORNERS) - inside
        facets = [facet for group in _groups(minority) for facet in _sheet(group)]
        if facets:
            normals[code, : len(facets)] = facets
    return normals


def _groups(corners: set[Corner]) -> list[set[Corner]]:
    """Splits corners of a cube into groups that hang together along the cube's edges."""
    groups: list[set[Corner]] = []
    for corner in corners:
        touching = [g for g in groups if any(math.dist(corner, other) == 1 for other in g)]
        groups = [g for g in groups if g not in touching] + [{corner}.union(*touching)]
    return groups


def _sheet(group: set[Corner]) -> list[FloatArray]:
    """Facets of the sheet that cuts one to four connected corners off a unit cube, half-way along its edges.

    Signs are left out: only lengths are used. Facets of the same direction are added up.

    Source:
        Lorensen & Cline, Marching Cubes, 1987; the groups are told apart by the axes of the edges in them.
    """
    unit = np.eye(3) / 8
    slanted = unit.sum(axis=0)
    edges = [
        (a, b, axis)
        for a, b in itertools.combinations(sorted(group), 2)
        for axis in range(3)
        if math.dist(a, b) == 1 and a[axis] != b[axis]
    ]
    along = [axis for *_, axis in edges]
    if len(group) == 1:
        return [slanted]
    if len(group) == 2:
        return [4 * (slanted - unit[along[0]])]
    across = unit[[axis for axis in range(3) if axis not in along]]
    if len(group) == 3:
        return [3 * slanted, *(4 * across)]
    if len(edges) == 4:
        return [*(8 * across)]
    degree = {corner: sum(corner in edge for edge in edges) for corner in group}
    if max(degree.values()) == 3:
        return [6 * slanted]
    ends = [axis for a, b, axis in edges if 1 in (degree[a], degree[b])]
    return [4 * slanted, *(2 * (slanted - unit[axis]) for axis in ends)]
