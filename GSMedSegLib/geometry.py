"""Frames: the only place where voxel indices and millimetres are converted.

Three frames are in use. `kji` is a voxel index in array order, (k, j, i), with voxel centres at whole
numbers. `ras` is a position in millimetres (right, anterior, superior), as in Slicer and nibabel. LPS (left,
posterior, superior) is SimpleITK's and appears here alone. `ijk_to_ras` is the 4x4 float64 matrix that takes
(i, j, k, 1) to (r, a, s, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SMALLEST_VOLUME = 1e-6
"""Smallest |determinant| of the unit axes: below it, they lie in a plane for all purposes."""


def as_ijk_to_ras(matrix: ArrayLike) -> FloatArray:
    """Checks a voxel-to-world matrix and returns it as a (4, 4) float64 array of its own.

    Args:
        matrix: (4, 4), last row (0, 0, 0, 1), mm per voxel; oblique, left-handed, anisotropic and sheared are
            all fine.

    Raises:
        ValueError: wrong shape, numbers that are not finite, another last row, axes that do not span space.
    """
    try:
        checked = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"ijk_to_ras must be a 4x4 matrix of numbers, got {matrix!r}") from error
    if checked.shape != (4, 4):
        raise ValueError(f"ijk_to_ras must be a 4x4 matrix, got shape {checked.shape}")
    if not np.isfinite(checked).all():
        raise ValueError("ijk_to_ras has NaN or infinite entries; repair the image header")
    if not np.array_equal(checked[3], [0.0, 0.0, 0.0, 1.0]):
        raise ValueError(
            f"the last row of ijk_to_ras must be 0 0 0 1, got {checked[3].tolist()}; transposed?"
        )
    spacing = np.linalg.norm(checked[:3, :3], axis=0)
    if not spacing.all() or abs(np.linalg.det(checked[:3, :3] / spacing)) < _SMALLEST_VOLUME:
        raise ValueError(
            f"the axes of ijk_to_ras, {spacing.tolist()} mm long, do not span space; repair the image header"
        )
    return checked


def ijk_to_ras_from_lps(
    origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]
) -> FloatArray:
    """The voxel-to-RAS matrix of an image described the way SimpleITK does.

    Args:
        origin: centre of voxel (0, 0, 0), LPS, mm.
        spacing: voxel size along i, j, k, mm.
        direction: nine cosines, row by row; the columns are the LPS directions of i, j, k.

    Returns:
        (4, 4) float64.

    Raises:
        ValueError: the numbers do not describe a 3D grid.
    """
    if not (len(origin) == len(spacing) == 3 and len(direction) == 9):
        raise ValueError(
            "a 3D grid has 3 origin, 3 spacing and 9 direction numbers, "
            f"got {len(origin)}, {len(spacing)} and {len(direction)}"
        )
    matrix = np.eye(4)
    matrix[:3, :3] = _LPS_TO_RAS @ (np.reshape(direction, (3, 3)) * np.asarray(spacing, dtype=np.float64))
    matrix[:3, 3] = _LPS_TO_RAS @ np.asarray(origin, dtype=np.float64)
    return as_ijk_to_ras(matrix)


def lps_from_ijk_to_ras(
    ijk_to_ras: ArrayLike,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """SimpleITK's (origin, spacing, direction) of a matrix; the inverse of `ijk_to_ras_from_lps`.

    Raises:
        ValueError: see `as_ijk_to_ras`.
    """
    matrix = as_ijk_to_ras(ijk_to_ras)
    axes = _LPS_TO_RAS @ matrix[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    origin = _LPS_TO_RAS @ matrix[:3, 3]
    return tuple(origin.tolist()), tuple(spacing.tolist()), tuple((axes / spacing).ravel().tolist())


def spacing_kji_mm(ijk_to_ras: ArrayLike) -> tuple[float, float, float]:
    """Voxel size in mm along k, j, i.

    Raises:
        ValueError: see `as_ijk_to_ras`.
    """
    i, j, k = np.linalg.norm(as_ijk_to_ras(ijk_to_ras)[:3, :3], axis=0).tolist()
    return k, j, i


def kji_to_ras(points_kji: ArrayLike, ijk_to_ras: ArrayLike) -> FloatArray:
    """Takes voxel indices to millimetres.

    Args:
        points_kji: (N, 3), whole or fractional; N may be 0.
        ijk_to_ras: (4, 4).

    Returns:
        (N, 3) float64, RAS, mm.

    Raises:
        ValueError: points that are not (N, 3), or a bad matrix.
    """
    matrix = as_ijk_to_ras(ijk_to_ras)
    return _as_points(points_kji)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]


def ras_to_kji(points_ras: ArrayLike, ijk_to_ras: ArrayLike) -> FloatArray:
    """Takes millimetres to fractional voxel indices; the inverse of `kji_to_ras`.

    Args:
        points_ras: (N, 3), RAS, mm; N may be 0.
        ijk_to_ras: (4, 4).

    Returns:
        (N, 3) float64, (k, j, i).

    Raises:
        ValueError: points that are not (N, 3), or a bad matrix.
    """
    matrix = as_ijk_to_ras(ijk_to_ras)
    points_ijk = np.linalg.solve(matrix[:3, :3], (_as_points(points_ras) - matrix[:3, 3]).T).T
    return np.asarray(points_ijk[:, ::-1], dtype=np.float64)


def nearest_voxel(kji: ArrayLike) -> IntArray:
    """The voxel that holds a fractional index: floor(x + 0.5), so that a point on a face always goes up.

    Args:
        kji: (..., 3) finite.

    Returns:
        int64 of the same shape.

    Raises:
        ValueError: NaN or infinite indices.
    """
    values = np.asarray(kji, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"voxel indices must be finite, got {values.tolist()}")
    return np.floor(values + 0.5).astype(np.int64)


def check_inside(kji: ArrayLike, shape: Sequence[int]) -> None:
    """Raises when a voxel index lies outside an image.

    Args:
        kji: (..., 3) voxel indices.
        shape: (K, J, I).

    Raises:
        ValueError: names the first offender and the range.
    """
    indices = np.asarray(kji).reshape(-1, 3)
    outside = ((indices < 0) | (indices >= np.asarray(shape))).any(axis=1)
    if outside.any():
        k, j, i = indices[outside][0].tolist()
        last = ", ".join(f"{axis} 0..{size - 1}" for axis, size in zip("kji", shape))
        raise ValueError(f"voxel (k, j, i) = ({k}, {j}, {i}) is outside the image; its indices are {last}")


def grid_distance_mm(ijk_to_ras: ArrayLike, other_ijk_to_ras: ArrayLike, shape: Sequence[int]) -> float:
    """How far apart two grids of one shape put the same voxel, at worst.

    Args:
        ijk_to_ras: (4, 4), mm.
        other_ijk_to_ras: (4, 4), mm.
        shape: (K, J, I).

    Returns:
        The largest distance between corresponding corner voxels; no voxel inside can be further off.

    Raises:
        ValueError: a bad matrix.
    """
    corners_kji = np.indices((2, 2, 2)).reshape(3, -1).T * (np.asarray(shape) - 1)
    offsets = kji_to_ras(corners_kji, ijk_to_ras) - kji_to_ras(corners_kji, other_ijk_to_ras)
    return float(np.linalg.norm(offsets, axis=1).max())


def flipped_axes(ijk_to_ras: ArrayLike, other_ijk_to_ras: ArrayLike) -> tuple[int, ...]:
    """Array axes, 0 for k to 2 for i, along which two grids count their voxels in opposite directions.

    Args:
        ijk_to_ras: (4, 4), mm.
        other_ijk_to_ras: (4, 4), mm.

    Raises:
        ValueError: a bad matrix.
    """
    axes, others = (as_ijk_to_ras(matrix)[:3, :3] for matrix in (ijk_to_ras, other_ijk_to_ras))
    opposite_kji = ((axes * others).sum(axis=0) < 0)[::-1]
    return tuple(np.flatnonzero(opposite_kji).tolist())


def flip_grid(ijk_to_ras: ArrayLike, shape: Sequence[int], axes: Sequence[int]) -> FloatArray:
    """The matrix of an image whose array is flipped, with which each voxel stays where it is.

    Args:
        ijk_to_ras: (4, 4), mm.
        shape: (K, J, I).
        axes: of the array, as `np.flip` takes them.

    Returns:
        (4, 4) float64.

    Raises:
        ValueError: a bad matrix.
    """
    matrix = as_ijk_to_ras(ijk_to_ras)
    for axis in axes:
        column = matrix[:3, 2 - axis].copy()
        matrix[:3, 3] += (shape[axis] - 1) * column
        matrix[:3, 2 - axis] = -column
    return matrix


def flip_voxel(kji: Sequence[int], shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int]:
    """Where a voxel (k, j, i) is after the array, of shape (K, J, I), was flipped along some axes."""
    k, j, i = (n - 1 - x if axis in axes else x for axis, (x, n) in enumerate(zip(kji, shape)))
    return k, j, i


def _as_points(points: Any) -> FloatArray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got shape {array.shape}; a single point is [[a, b, c]]")
    return array
