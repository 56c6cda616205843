"""Where a point of the world lies in a volume node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from Testing.mrml.conftest import LEFT_HANDED, OBLIQUE, slicer, turned, vtk  # isort: skip - skips without Slicer

from GSMedSegLib.mrml.volumes import (
    box_in_world,
    ijk_to_ras_of,
    image_of,
    shape_of,
    voxel_to_world,
    world_to_voxel,
)  # isort: skip

MOVED = turned(30, (11.0, -7.0, 100.0))
ARRAY = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


@pytest.mark.parametrize("ijk_to_ras", [np.eye(4), OBLIQUE, LEFT_HANDED], ids=["plain", "oblique", "left"])
@pytest.mark.parametrize("to_world", [None, MOVED], ids=["untransformed", "transformed"])
def test_points_and_voxels_follow_the_matrices(
    add_volume: Callable[..., Any], ijk_to_ras: np.ndarray, to_world: np.ndarray | None
):
    volume = add_volume(ARRAY, ijk_to_ras, to_world)
    assert np.array_equal(image_of(volume), ARRAY)
    assert shape_of(volume) == (5, 6, 7)
    assert np.allclose(ijk_to_ras_of(volume), ijk_to_ras)
    whole = ijk_to_ras if to_world is None else to_world @ ijk_to_ras
    for k, j, i in [(0, 0, 0), (4, 5, 6), (2, 3, 1)]:
        ras = (whole @ [i, j, k, 1])[:3]
        assert np.allclose(voxel_to_world(volume, (k, j, i)), ras)
        for offset in (-0.49, 0.49):
            near = (whole @ [i + offset, j + offset, k + offset, 1])[:3]
            assert world_to_voxel(volume, near) == (k, j, i)


def test_a_bent_space_is_followed(scene: Any, add_volume: Callable[..., Any]):
    """A transform that is no matrix: a thin-plate spline that moves one corner."""
    volume = add_volume(ARRAY, np.eye(4))
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    sources, targets = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in np.indices((2, 2, 2)).reshape(3, -1).T * 10:
        sources.InsertNextPoint(corner)
        targets.InsertNextPoint(corner + (3 if corner.sum() == 30 else 0))
    spline.SetSourceLandmarks(sources)
    spline.SetTargetLandmarks(targets)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(spline)
    volume.SetAndObserveTransformNodeID(node.GetID())
    ras = voxel_to_world(volume, (4, 5, 6))
    assert not np.allclose(ras, (6, 5, 4))
    assert np.allclose(ras, spline.TransformPoint(6, 5, 4))
    assert world_to_voxel(volume, ras) == (4, 5, 6)


def test_a_click_beside_the_volume_is_refused(add_volume: Callable[..., Any]):
    with pytest.raises(ValueError, match="outside the image"):
        world_to_voxel(add_volume(ARRAY, np.eye(4)), (-0.51, 0, 0))


def test_a_box_is_cut_off_at_the_border(add_volume: Callable[..., Any]):
    """Voxels count whose cube the box touches."""
    volume = add_volume(ARRAY, np.eye(4))
    assert box_in_world(volume, [(-9, 1.6, 0.9), (2.4, 99, 3.2)]) == ((1, 2, 0), (3, 5, 2))
    assert box_in_world(volume, [(1, 1, 1), (1, 1, 1)]) == ((1, 1, 1), (1, 1, 1))
    for outside in [(-9, 0, 0), (99, 0, 0)]:
        with pytest.raises(ValueError, match="outside the volume"):
            box_in_world(volume, [outside, outside])


def test_volumes_without_one_value_a_voxel_are_refused(scene: Any):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(ValueError, match='"empty" has no voxels'):
        image_of(empty)
    colour = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colour")
    slicer.util.updateVolumeFromArray(colour, np.zeros((4, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="3 values a voxel"):
        image_of(colour)
