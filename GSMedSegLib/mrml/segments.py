"""Segments: their masks on a volume's voxels, and masks put into them without harm to their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from GSMedSegLib.cropped import Box3, Cropped, crop
from GSMedSegLib.mrml.volumes import image_of, shape_of

LOCKED = "GSMedSeg.Locked"
"""Tag of a segment that nothing may change."""


_VOXELS, _SURFACE = "Binary labelmap", "Closed surface"
_REFERENCE_GEOMETRY = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
_FIRST = (slice(0, 1), slice(0, 1), slice(0, 1))


class Overwrite(Enum):
    """What becomes of other segments where a new mask meets them."""

    NOTHING = "nothing"
    """They stay as they are; the mask ends where they begin."""
    OTHERS = "others"
    """They lose the voxels, but for locked ones."""
    OVERLAP = "overlap"
    """Both have the voxels, but for those of locked ones."""


def new_segmentation(volume: Any, name: str | None = None) -> Any:
    """A segmentation node on a volume's voxels, under the volume's transform."""
    segmentation = volume.GetScene().AddNewNodeByClass(
        "vtkMRMLSegmentationNode", name or f"{volume.GetName()} segmentation"
    )
    segmentation.CreateDefaultDisplayNodes()
    fit_to_volume(segmentation, volume)
    return segmentation


def fit_to_volume(segmentation: Any, volume: Any) -> None:
    """Puts a segmentation without voxels on a volume's; one with voxels keeps the place it has."""
    segments = segmentation.GetSegmentation()
    if all(_is_empty(segments.GetSegment(segment_id)) for segment_id in segments.GetSegmentIDs()):
        # The transform first: else the reference geometry would be another one, and saving would resample.
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)


def is_voxels(segmentation: Any) -> bool:
    """Whether a segmentation is kept as voxels, and not as surfaces or contours."""
    return bool(segmentation.GetSegmentation().GetSourceRepresentationName() == _VOXELS)


def make_voxels(segmentation: Any, volume: Any) -> None:
    """Turns a segmentation of surfaces or contours, as a radiotherapy plan brings, into one of voxels.

    They are those of its reference image; where it has none, the volume's.

    Raises:
        ValueError: that is not possible.
    """
    if is_voxels(segmentation):
        return
    segments = segmentation.GetSegmentation()
    has_surface = segments.ContainsRepresentation(_SURFACE)
    if not segments.GetConversionParameter(_REFERENCE_GEOMETRY):
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if not segmentation.CreateBinaryLabelmapRepresentation():
        raise ValueError(
            f'segmentation "{segmentation.GetName()}" cannot be turned into voxels; choose another one, or '
            "convert it in the module Segmentations"
        )
    segmentation.SetSourceRepresentationToBinaryLabelmap()
    if has_surface:  # another source drops what was made of the one before
        segmentation.CreateClosedSurfaceRepresentation()


def _is_empty(segment: Any) -> bool:
    """Whether a segment has no voxels that are set; one with a surface alone has."""
    bounds = [0.0] * 6
    segment.GetBounds(bounds)
    return bounds[0] > bounds[1]


def is_locked(segmentation: Any, segment_id: str) -> bool:
    """Whether nothing may change a segment; False for one that does not exist."""
    value = vtk.mutable("")
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    return segment is not None and bool(segment.GetTag(LOCKED, value)) and value == "1"


def set_locked(segmentation: Any, segment_id: str, locked: bool) -> None:
    """Locks a segment, or lets it be changed again."""
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    if locked:
        segment.SetTag(LOCKED, "1")
    else:
        segment.RemoveTag(LOCKED)


def check_unlocked(segmentation: Any, segment_id: str) -> None:
    """Raises ValueError for a segment that is locked."""
    if is_locked(segmentation, segment_id):
        raise ValueError(
            f'segment "{_name(segmentation, segment_id)}" is locked; unlock it, or choose another one'
        )


def read_mask(segmentation: Any, segment_id: str, volume: Any) -> Cropped:
    """A segment's mask on a volume's voxels, whatever the transforms of both.

    Raises:
        ValueError: no such segment.
    """
    whole: Box3 = tuple(slice(0, n) for n in shape_of(volume))  # type: ignore[assignment]
    return crop(_read(segmentation, segment_id, volume, whole), shape_of(volume))


def write_mask(
    segmentation: Any,
    segment_id: str,
    volume: Any,
    mask: Cropped,
    overwrite: Overwrite = Overwrite.NOTHING,
    editor: Any = None,
    taken: dict[str, Cropped] | None = None,
) -> Cropped:
    """Puts a mask into a segment, in place of what was in it.

    Args:
        segmentation: a segmentation node.
        segment_id: of one of its segments.
        volume: the volume node that the mask belongs to.
        mask: bool, on the volume's voxels.
        overwrite: what becomes of other segments.
        editor: a segment editor node whose masking (editable area, intensity range) is respected when it is
            about this segmentation; outside the area the segment stays as it is.
        taken: what earlier masks of the segment took from others, by segment ID; they get back what this one
            does not cover, and it is brought up to date.

    Returns:
        what the segment has now.

    Raises:
        ValueError: no such segment, one that is locked, or a mask of another shape.
    """
    _segment(segmentation, segment_id)
    check_unlocked(segmentation, segment_id)
    if tuple(mask.shape) != shape_of(volume):
        raise ValueError(f"the volume has shape {shape_of(volume)}, the mask has {tuple(mask.shape)}")
    fit_to_volume(segmentation, volume)
    taken = {} if taken is None else taken
    owed = _owed(segmentation, segment_id, volume, taken)
    kept = _protected(segmentation, segment_id, overwrite)
    box = mask.box
    array = mask.array
    if mask.array.size and kept:
        array = array.copy()
        for other in kept:
            array &= ~_read(segmentation, other, volume, box)
    if editor is not None and _restricts(editor, segmentation):
        before = read_mask(segmentation, segment_id, volume)
        box = _union(box, before.box)
        allowed = _editable(segmentation, segment_id, volume, editor, box, owed)
        old, new = _in_box(before, box), _in_box(Cropped(mask.shape, mask.start_kji, array), box)
        array = np.where(allowed, new, old)
    written = crop(array, mask.shape, _corner(box))
    if overwrite is Overwrite.OTHERS:
        for other in _others(segmentation, segment_id):
            if not is_locked(segmentation, other):
                lost = _take_from(segmentation, other, volume, written)
                if lost.array.size:
                    taken[other] = _plus(taken[other], lost) if other in taken else lost
    _write(segmentation, segment_id, volume, written)
    for other, mine in owed.items():
        back = _minus(mine, written)
        if back.array.size:
            _write(segmentation, other, volume, _plus(read_mask(segmentation, other, volume), back))
            taken[other] = _minus(taken[other], back)
    return written


def _owed(
    segmentation: Any, segment_id: str, volume: Any, taken: Mapping[str, Cropped]
) -> dict[str, Cropped]:
    """What others can have back of what a segment took: they are there, not locked, and nobody has it now."""
    others = _others(segmentation, segment_id)
    owed = {}
    for other, mask in taken.items():
        if other in others and not is_locked(segmentation, other):
            free = mask.array.copy()
            for name in others:
                free &= ~_read(segmentation, name, volume, mask.box)
            owed[other] = crop(free, mask.shape, mask.start_kji)
    return owed


def _take_from(segmentation: Any, segment_id: str, volume: Any, mask: Cropped) -> Cropped:
    """Takes a mask's voxels from a segment; those that it had."""
    lost = _read(segmentation, segment_id, volume, mask.box) & mask.array
    if lost.any():
        _write(segmentation, segment_id, volume, _minus(read_mask(segmentation, segment_id, volume), mask))
    return crop(lost, mask.shape, mask.start_kji)


def _write(segmentation: Any, segment_id: str, volume: Any, mask: Cropped) -> None:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    # An image without voxels cannot be put anywhere: nothing is a voxel that is not set.
    box, array = (mask.box, mask.array) if mask.array.size else (_FIRST, np.zeros((1, 1, 1), bool))
    labelmap = _oriented(volume, box, array)
    _move(labelmap, volume.GetParentTransformNode(), segmentation.GetParentTransformNode())
    shared = segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
    has_voxels = shared is not None and not shared.IsEmpty()
    if has_voxels and not slicer.vtkOrientedImageDataResample.DoGeometriesMatch(shared, labelmap):
        # On another grid than its neighbours': else they would be resampled with it.
        segmentation.GetSegmentation().SeparateSegmentLabelmap(segment_id)
    if not logic.SetBinaryLabelmapToSegment(labelmap, segmentation, segment_id, logic.MODE_REPLACE):
        raise RuntimeError(f'the mask could not be put into segment "{_name(segmentation, segment_id)}"')


def _read(segmentation: Any, segment_id: str, volume: Any, box: Box3) -> NDArray[np.bool_]:
    """A segment's mask in a box of a volume's voxels."""
    _segment(segmentation, segment_id)
    own = slicer.vtkOrientedImageData()
    if not segmentation.GetBinaryLabelmapRepresentation(segment_id, own) or own.IsEmpty():
        return np.zeros([s.stop - s.start for s in box], bool)
    values = _onto(volume, box, own, segmentation.GetParentTransformNode(), linear=False)
    return np.asarray(values != 0)


def _onto(volume: Any, box: Box3, image: Any, parent: Any, linear: bool) -> NDArray[Any]:
    """(K, J, I) an image under a transform node, or None, on a volume's voxels in a box; 0 outside of it."""
    empty: NDArray[np.bool_] = np.zeros([s.stop - s.start for s in box], bool)
    if empty.size == 0:
        return empty
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(parent, volume.GetParentTransformNode(), transform)
    resampled = slicer.vtkOrientedImageData()
    done = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, _oriented(volume, box, empty), resampled, linear, False, transform
    )
    if not done:
        raise RuntimeError(f'nothing can be brought onto the volume "{volume.GetName()}"; see its transform')
    values: NDArray[Any] = vtk_to_numpy(resampled.GetPointData().GetScalars()).reshape(empty.shape)
    return values


def _oriented(volume: Any, box: Box3, array: NDArray[Any]) -> Any:
    """A vtkOrientedImageData with an array at a box of a volume's voxels."""
    image = slicer.vtkOrientedImageData()
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    k, j, i = box
    image.SetExtent(i.start, i.stop - 1, j.start, j.stop - 1, k.start, k.stop - 1)
    values = array.view(np.uint8) if array.dtype == np.bool_ else array
    scalars = numpy_to_vtk(np.ascontiguousarray(values).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def _move(image: Any, source: Any, target: Any) -> None:
    """Takes an image from one transform node's space to another's."""
    if source is target:
        return
    matrix = vtk.vtkMatrix4x4()
    if slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix):
        # Voxels stay as they are; Slicer's own function resamples them, and cuts oblique images off.
        to_world = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(to_world)
        vtk.vtkMatrix4x4.Multiply4x4(matrix, to_world, to_world)
        image.SetGeometryFromImageToWorldMatrix(to_world)
        return
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    slicer.vtkOrientedImageDataResample.TransformOrientedImage(image, transform)


def _protected(segmentation: Any, segment_id: str, overwrite: Overwrite) -> list[str]:
    others = _others(segmentation, segment_id)
    if overwrite is Overwrite.NOTHING:
        return others
    return [other for other in others if is_locked(segmentation, other)]


def _others(segmentation: Any, segment_id: str) -> list[str]:
    return [name for name in segmentation.GetSegmentation().GetSegmentIDs() if name != segment_id]


def _restricts(editor: Any, segmentation: Any) -> bool:
    """Whether a segment editor node's masking is switched on, for this segmentation."""
    if editor.GetSegmentationNode() is not segmentation:
        return False
    by_area = editor.GetMaskMode() != segmentation.EditAllowedEverywhere
    return bool(by_area or editor.GetSourceVolumeIntensityMask())


def _editable(
    segmentation: Any, segment_id: str, volume: Any, editor: Any, box: Box3, owed: Mapping[str, Cropped]
) -> NDArray[np.bool_]:
    """Where a segment editor node lets segments be changed; what is owed to a segment is inside of it."""
    shape = tuple(s.stop - s.start for s in box)
    allowed = np.ones(shape, bool)
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    display = segmentation.GetDisplayNode()
    visible = [s for s in ids if display is None or display.GetSegmentVisibility(s)]
    mode = editor.GetMaskMode()
    areas = {
        segmentation.EditAllowedInsideAllSegments: (ids, True),
        segmentation.EditAllowedInsideVisibleSegments: (visible, True),
        segmentation.EditAllowedOutsideAllSegments: ([s for s in ids if s != segment_id], False),
        segmentation.EditAllowedOutsideVisibleSegments: ([s for s in visible if s != segment_id], False),
        segmentation.EditAllowedInsideSingleSegment: ([editor.GetMaskSegmentID()], True),
    }
    if mode in areas:
        names, inside = areas[mode]
        union = np.zeros(shape, bool)
        for name in names:
            union |= _read(segmentation, name, volume, box)
            if inside and name in owed:
                union |= _in_box(owed[name], box)
        allowed = union if inside else ~union
    if editor.GetSourceVolumeIntensityMask():
        low, high = editor.GetSourceVolumeIntensityMaskRange()
        values = _grey(editor.GetSourceVolumeNode() or volume, volume, box)
        allowed &= (values >= low) & (values <= high)
    return allowed


def _grey(source: Any, volume: Any, box: Box3) -> NDArray[Any]:
    """(K, J, I) a volume's grey values on the voxels of a volume in a box; 0 outside of it.

    Raises:
        ValueError: it has no voxels, or several values a voxel.
    """
    array = image_of(source)
    if source is volume:
        return array[box]
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    image.ShallowCopy(source.GetImageData())
    source.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    return _onto(volume, box, image, source.GetParentTransformNode(), linear=True)


def _segment(segmentation: Any, segment_id: str) -> Any:
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise ValueError(f'segmentation "{segmentation.GetName()}" has no segment {segment_id!r} any more')
    return segment


def _name(segmentation: Any, segment_id: str) -> str:
    return str(_segment(segmentation, segment_id).GetName())


def _union(box: Box3, other: Box3) -> Box3:
    if any(s.stop == s.start for s in other):
        return box
    if any(s.stop == s.start for s in box):
        return other
    k, j, i = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, other))
    return k, j, i


def _plus(mask: Cropped, other: Cropped) -> Cropped:
    """The voxels of either mask."""
    box = _union(mask.box, other.box)
    return crop(_in_box(mask, box) | _in_box(other, box), mask.shape, _corner(box))


def _minus(mask: Cropped, other: Cropped) -> Cropped:
    """The voxels of a mask without those of another."""
    return crop(mask.array & ~_in_box(other, mask.box), mask.shape, mask.start_kji)


def _in_box(mask: Cropped, box: Box3) -> NDArray[np.bool_]:
    """A mask's part in a box."""
    part: NDArray[np.bool_] = np.zeros([s.stop - s.start for s in box], bool)
    shared = [(max(m.start, b.start), min(m.stop, b.stop)) for m, b in zip(mask.box, box)]
    if all(low < high for low, high in shared):
        inner = tuple(slice(low - m.start, high - m.start) for (low, high), m in zip(shared, mask.box))
        outer = tuple(slice(low - b.start, high - b.start) for (low, high), b in zip(shared, box))
        part[outer] = mask.array[inner]
    return part


def _corner(box: Box3) -> tuple[int, int, int]:
    k, j, i = (s.start for s in box)
    return k, j, i
