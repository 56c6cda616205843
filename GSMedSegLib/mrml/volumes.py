"""Volume nodes: their voxels as an image, and where a point of the world lies in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.cropped import Voxel
from GSMedSegLib.geometry import FloatArray, check_inside, kji_to_ras, nearest_voxel, ras_to_kji


def image_of(volume: Any) -> NDArray[Any]:
    """(K, J, I) the voxels of a scalar volume node, shared with it: Slicer's own, never the file's.

    For the volume of a sequence that is the frame shown now.

    Raises:
        ValueError: no voxels, or several values a voxel.
    """
    image = volume.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise ValueError(f'volume "{volume.GetName()}" has no voxels; load its image first')
    if image.GetNumberOfScalarComponents() != 1:
        raise ValueError(
            f'volume "{volume.GetName()}" has {image.GetNumberOfScalarComponents()} values a voxel, expected '
            "one; extract a component with the module Vector to Scalar Volume"
        )
    array: NDArray[Any] = slicer.util.arrayFromVolume(volume)
    return array


def shape_of(volume: Any) -> Voxel:
    """(K, J, I) of a volume node.

    Raises:
        ValueError: no voxels.
    """
    if volume.GetImageData() is None:
        raise ValueError(f'volume "{volume.GetName()}" has no voxels; load its image first')
    i, j, k = volume.GetImageData().GetDimensions()
    return k, j, i


def ijk_to_ras_of(volume: Any) -> FloatArray:
    """(4, 4) of a volume node, mm, in the volume's own space: the transform above it is not in it."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer_matrix(matrix)


def slicer_matrix(matrix: Any) -> FloatArray:
    """(4, 4) array of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def world_to_voxel(volume: Any, ras: ArrayLike) -> Voxel:
    """The voxel that holds a point of the world.

    Args:
        volume: a volume node, under any transform.
        ras: (3,) world coordinates, mm.

    Returns:
        (k, j, i).

    Raises:
        ValueError: the point is outside the volume.
    """
    inside = _transformed(ras, None, volume.GetParentTransformNode())
    k, j, i = nearest_voxel(ras_to_kji([inside], ijk_to_ras_of(volume))[0]).tolist()
    check_inside((k, j, i), shape_of(volume))
    return k, j, i


def voxel_to_world(volume: Any, kji: ArrayLike) -> FloatArray:
    """(3,) world coordinates, mm, of the centre of a voxel."""
    inside = kji_to_ras(np.reshape(kji, (1, 3)), ijk_to_ras_of(volume))[0]
    return _transformed(inside, volume.GetParentTransformNode(), None)


def box_in_world(volume: Any, corners_ras: ArrayLike) -> tuple[Voxel, Voxel]:
    """The voxels of a box that is given by its corners in the world, cut off at the volume's border.

    Args:
        volume: a volume node.
        corners_ras: (N, 3) world coordinates, mm.

    Returns:
        the lowest and the highest voxel (k, j, i), both inside.

    Raises:
        ValueError: the box misses the volume.
    """
    points = [_transformed(p, None, volume.GetParentTransformNode()) for p in np.asarray(corners_ras, float)]
    kji = ras_to_kji(points, ijk_to_ras_of(volume))
    last = np.array(shape_of(volume)) - 1
    low, high = np.ceil(kji.min(axis=0) - 0.5), np.floor(kji.max(axis=0) + 0.5)
    if (high < 0).any() or (low > last).any():
        raise ValueError(f'the box is outside the volume "{volume.GetName()}"; draw it around an object')
    low_k, low_j, low_i = np.clip(low, 0, last).astype(int).tolist()
    high_k, high_j, high_i = np.clip(high, 0, last).astype(int).tolist()
    return (low_k, low_j, low_i), (high_k, high_j, high_i)


def _transformed(point: ArrayLike, source: Any, target: Any) -> FloatArray:
    """(3,) a point of one transform node's space in another's; None is the world."""
    if source is target:
        return np.asarray(point, float)
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return np.array(transform.TransformPoint(np.asarray(point, float).tolist()))
