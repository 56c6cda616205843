"""Masks go into segments and come back, whatever lies above them, and do no harm to their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from Testing.mrml.conftest import LEFT_HANDED, OBLIQUE, as_vtk, slicer, turned, vtk  # isort: skip - skips without Slicer

from GSMedSegLib.cropped import Cropped, crop  # isort: skip
from GSMedSegLib.mrml.segments import (  # isort: skip
    Overwrite,
    is_locked,
    new_segmentation,
    read_mask,
    set_locked,
    write_mask,
)

SHAPE = (10, 12, 14)
MOVED = turned(30, (11.0, -7.0, 100.0))


def ball(k: int, j: int, i: int, radius: float = 3.5) -> np.ndarray:
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum((g - c) ** 2 for g, c in zip(grid, (k, j, i))) < radius**2


A, B = ball(4, 5, 5), ball(5, 7, 8)


@pytest.fixture
def two(add_volume: Callable[..., Any]) -> tuple[Any, Any]:
    """A volume, and a segmentation with the segments a (a ball) and b (empty)."""
    volume = add_volume(np.zeros(SHAPE, np.int16), OBLIQUE, MOVED)
    segmentation = new_segmentation(volume)
    for name in "ab":
        segmentation.GetSegmentation().AddEmptySegment(name, name.upper())
    write_mask(segmentation, "a", volume, crop(A))
    return volume, segmentation


def voxels(pair: tuple[Any, Any], name: str) -> np.ndarray:
    return read_mask(pair[1], name, pair[0]).whole()


@pytest.mark.parametrize("ijk_to_ras", [np.eye(4), OBLIQUE, LEFT_HANDED], ids=["plain", "oblique", "left"])
@pytest.mark.parametrize("volume_moved", [False, True])
@pytest.mark.parametrize("own_transform", [False, True])
def test_a_mask_comes_back_voxel_for_voxel(
    scene: Any,
    add_volume: Callable[..., Any],
    ijk_to_ras: np.ndarray,
    volume_moved: bool,
    own_transform: bool,
):
    """Also where the segmentation was made by somebody else, under another transform than the volume's."""
    to_world = MOVED if volume_moved else np.eye(4)
    volume = add_volume(np.zeros(SHAPE, np.int16), ijk_to_ras, to_world)
    segmentation = new_segmentation(volume)
    for name in "ab":
        segmentation.GetSegmentation().AddEmptySegment(name, name.upper())
    if own_transform:
        write_mask(segmentation, "b", volume, crop(ball(0, 0, 0, 1)))  # with voxels it stays where it is put
        shift = np.eye(4)
        shift[:3, 3] = ijk_to_ras[:3, :3] @ [1, 2, -1]
        other = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        other.SetMatrixTransformToParent(as_vtk(to_world @ shift))
        segmentation.SetAndObserveTransformNodeID(other.GetID())
    assert write_mask(segmentation, "a", volume, crop(A)) == crop(A)
    assert read_mask(segmentation, "a", volume) == crop(A)
    exported = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    ids = vtk.vtkStringArray()
    ids.InsertNextValue("a")
    slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(segmentation, ids, exported, volume)
    assert np.array_equal(slicer.util.arrayFromVolume(exported) != 0, A)


@pytest.mark.parametrize("ijk_to_ras", [np.eye(4), OBLIQUE, LEFT_HANDED], ids=["plain", "oblique", "left"])
@pytest.mark.parametrize(
    "to_world", [np.eye(4), MOVED, turned(90, (0, 0, 0))], ids=["same", "moved", "turned"]
)
def test_a_mask_up_to_the_border_comes_back_whole(
    add_volume: Callable[..., Any], ijk_to_ras: np.ndarray, to_world: np.ndarray
):
    """On a volume that was registered to the one that the segmentation was made on: T2 to T1, PET to CT."""
    first = add_volume(np.zeros(SHAPE, np.int16), ijk_to_ras)
    second = add_volume(np.zeros(SHAPE, np.int16), ijk_to_ras, to_world)
    segmentation = new_segmentation(first)
    for name in "ab":
        segmentation.GetSegmentation().AddEmptySegment(name, name.upper())
    write_mask(segmentation, "a", first, crop(A))
    everywhere = crop(np.random.default_rng(0).random(SHAPE) < 0.5)
    assert write_mask(segmentation, "b", second, everywhere, Overwrite.OVERLAP) == everywhere
    assert read_mask(segmentation, "b", second) == everywhere
    assert read_mask(segmentation, "a", first) == crop(A)


def test_segments_share_a_labelmap(scene: Any, add_volume: Callable[..., Any]):
    """Also those that were added before the first mask: else a saved segmentation has as many layers."""
    volume = add_volume(np.zeros(SHAPE, np.int16), OBLIQUE)
    segmentation = new_segmentation(volume)
    for name in "abc":
        segmentation.GetSegmentation().AddEmptySegment(name, name)
    write_mask(segmentation, "b", volume, crop(B & ~A))
    write_mask(segmentation, "a", volume, crop(A))
    assert segmentation.GetSegmentation().GetNumberOfLayers() == 1
    assert read_mask(segmentation, "a", volume) == crop(A)
    assert read_mask(segmentation, "b", volume) == crop(B & ~A)


def test_a_segmentation_without_voxels_goes_to_its_volume(scene: Any, add_volume: Callable[..., Any]):
    volume = add_volume(np.zeros(SHAPE, np.int16), OBLIQUE, MOVED)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().AddEmptySegment("a", "A")
    write_mask(segmentation, "a", volume, crop(A))
    assert segmentation.GetTransformNodeID() == volume.GetTransformNodeID()
    assert read_mask(segmentation, "a", volume) == crop(A)


def test_an_empty_mask_empties_a_segment(two: tuple[Any, Any]):
    volume, segmentation = two
    write_mask(segmentation, "a", volume, crop(np.zeros(SHAPE, bool)))
    assert not voxels(two, "a").any()


def test_neighbours_stay_as_they_are(two: tuple[Any, Any]):
    volume, segmentation = two
    written = write_mask(segmentation, "b", volume, crop(B))
    assert np.array_equal(written.whole(), B & ~A)
    assert np.array_equal(voxels(two, "a"), A)
    assert np.array_equal(voxels(two, "b"), B & ~A)


def test_neighbours_give_way_when_allowed(two: tuple[Any, Any]):
    volume, segmentation = two
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OTHERS)
    assert np.array_equal(voxels(two, "a"), A & ~B)
    assert np.array_equal(voxels(two, "b"), B)


def test_neighbours_get_back_what_the_next_mask_does_not_cover(two: tuple[Any, Any]):
    """However others are treated by then."""
    volume, segmentation = two
    taken: dict[str, Cropped] = {}
    smaller = ball(5, 7, 8, 3)
    for overwrite in (Overwrite.NOTHING, Overwrite.OVERLAP, Overwrite.OTHERS):
        write_mask(segmentation, "b", volume, crop(B), Overwrite.OTHERS, None, taken)
        assert taken == {"a": crop(A & B)}
        write_mask(segmentation, "b", volume, crop(smaller), overwrite, None, taken)
        assert np.array_equal(voxels(two, "a"), A & ~smaller)
        assert np.array_equal(voxels(two, "b"), smaller)
        assert taken == {"a": crop(A & smaller)}
    write_mask(segmentation, "b", volume, crop(B & False), Overwrite.OTHERS, None, taken)
    assert np.array_equal(voxels(two, "a"), A)
    assert not voxels(two, "b").any()


def test_what_cannot_be_given_back_stays(two: tuple[Any, Any]):
    """To a locked segment, to one that is gone, and where a third one is now."""
    volume, segmentation = two
    third = A & B & ball(4, 5, 5, 2.5)
    assert third.any()
    segmentation.GetSegmentation().AddEmptySegment("c", "C")
    taken: dict[str, Cropped] = {}
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OTHERS, None, taken)
    write_mask(segmentation, "c", volume, crop(third), Overwrite.OTHERS)
    set_locked(segmentation, "a", True)
    write_mask(segmentation, "b", volume, crop(B & ~A), Overwrite.OTHERS, None, taken)
    assert np.array_equal(voxels(two, "a"), A & ~B)
    set_locked(segmentation, "a", False)
    write_mask(segmentation, "b", volume, crop(B & ~A), Overwrite.OTHERS, None, taken)
    assert np.array_equal(voxels(two, "a"), A & ~third)
    assert np.array_equal(voxels(two, "c"), third)
    segmentation.GetSegmentation().RemoveSegment("a")
    write_mask(segmentation, "b", volume, crop(B & False), Overwrite.OTHERS, None, taken)
    assert not voxels(two, "b").any()


def test_the_editors_area_is_that_before_a_segment_took_from_it(scene: Any, two: tuple[Any, Any]):
    """A part of an organ, to be cut out of it: the part's next mask may be smaller or elsewhere in it."""
    volume, segmentation = two
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetMaskMode(segmentation.EditAllowedInsideSingleSegment)
    editor.SetMaskSegmentID("a")
    taken: dict[str, Cropped] = {}
    for part in (B, ball(4, 4, 4, 2), B & False):
        write_mask(segmentation, "b", volume, crop(part), Overwrite.OTHERS, editor, taken)
        assert np.array_equal(voxels(two, "b"), A & part)
        assert np.array_equal(voxels(two, "a"), A & ~part)


def test_the_masking_of_another_segmentation_does_not_count(scene: Any, two: tuple[Any, Any]):
    """As it is left over in the editor: its segment does not exist here."""
    volume, segmentation = two
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(new_segmentation(volume))
    editor.SetMaskMode(segmentation.EditAllowedInsideSingleSegment)
    editor.SetMaskSegmentID("organ")
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OVERLAP, editor)
    assert np.array_equal(voxels(two, "b"), B)


def test_the_editors_range_is_of_its_own_volume(add_volume: Callable[..., Any], scene: Any, two: Any):
    """CT is segmented while the editor masks by a PET, on voxels of twice the size and moved elsewhere."""
    volume, segmentation = two
    coarse = OBLIQUE @ np.diag((2.0, 2.0, 2.0, 1.0))
    coarse[:3, 3] = (OBLIQUE @ (0.5, 0.5, 0.5, 1.0))[:3]  # a voxel's middle lies between eight small ones
    pet = add_volume(np.zeros([n // 2 for n in SHAPE], np.float32), coarse, MOVED)
    slicer.util.arrayFromVolume(pet)[1:4, 2:5, 2:6] = 7.5
    hot = np.zeros(SHAPE, bool)
    hot[2:8, 4:10, 4:12] = True
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetAndObserveSourceVolumeNode(pet)
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(3.0, 10.0)
    assert write_mask(segmentation, "b", volume, crop(B & False), Overwrite.OVERLAP, editor).array.size == 0
    write_mask(segmentation, "b", volume, crop(B | ~hot), Overwrite.OVERLAP, editor)
    assert np.array_equal(voxels(two, "b"), B & hot)


def test_segments_overlap_when_allowed(two: tuple[Any, Any]):
    volume, segmentation = two
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OVERLAP)
    assert np.array_equal(voxels(two, "a"), A)
    assert np.array_equal(voxels(two, "b"), B)


@pytest.mark.parametrize("overwrite", Overwrite)
def test_a_locked_segment_is_never_changed(two: tuple[Any, Any], overwrite: Overwrite):
    volume, segmentation = two
    set_locked(segmentation, "a", True)
    assert is_locked(segmentation, "a")
    write_mask(segmentation, "b", volume, crop(B), overwrite)
    assert np.array_equal(voxels(two, "a"), A)
    assert np.array_equal(voxels(two, "b"), B & ~A)
    with pytest.raises(ValueError, match='"A" is locked'):
        write_mask(segmentation, "a", volume, crop(B))
    set_locked(segmentation, "a", False)
    write_mask(segmentation, "a", volume, crop(ball(2, 2, 2)))
    assert np.array_equal(voxels(two, "a"), ball(2, 2, 2))


def test_the_editors_masking_is_respected(scene: Any, two: tuple[Any, Any]):
    """Inside a segment; outside of all; between two grey values."""
    volume, segmentation = two
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetMaskMode(segmentation.EditAllowedInsideSingleSegment)
    editor.SetMaskSegmentID("a")
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OVERLAP, editor)
    assert np.array_equal(voxels(two, "b"), B & A)
    editor.SetMaskMode(segmentation.EditAllowedOutsideAllSegments)
    write_mask(segmentation, "b", volume, crop(B), Overwrite.OVERLAP, editor)
    assert np.array_equal(voxels(two, "b"), (B & A) | (B & ~A))
    editor.SetMaskMode(segmentation.EditAllowedEverywhere)
    grey = np.zeros(SHAPE, np.int16)
    grey[:, :7] = 100
    slicer.util.updateVolumeFromArray(volume, grey)
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(50, 150)
    write_mask(segmentation, "b", volume, crop(ball(5, 7, 4)), Overwrite.OVERLAP, editor)
    assert np.array_equal(voxels(two, "b"), np.where(grey > 50, ball(5, 7, 4), B))


def test_what_does_not_fit_is_refused(two: tuple[Any, Any]):
    volume, segmentation = two
    with pytest.raises(ValueError, match="no segment 'c' any more"):
        write_mask(segmentation, "c", volume, crop(A))
    with pytest.raises(ValueError, match="no segment 'c' any more"):
        read_mask(segmentation, "c", volume)
    with pytest.raises(ValueError, match="the mask has"):
        write_mask(segmentation, "a", volume, crop(np.ones((2, 2, 2), bool)))


def test_masks_outlast_saving_and_loading(scene: Any, two: tuple[Any, Any], tmp_path: Any):
    """As a .seg.nrrd file, which keeps reference geometry and names."""
    volume, segmentation = two
    write_mask(segmentation, "b", volume, crop(B))
    segmentation.AddDefaultStorageNode()
    storage = segmentation.GetStorageNode()
    storage.SetFileName(str(tmp_path / "masks.seg.nrrd"))
    assert storage.WriteData(segmentation)
    loaded = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert storage.ReadData(loaded)
    loaded.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    assert np.array_equal(read_mask(loaded, "a", volume).whole(), A)
    assert np.array_equal(read_mask(loaded, "b", volume).whole(), B & ~A)
    assert loaded.GetSegmentation().GetSegment("b").GetName() == "B"
