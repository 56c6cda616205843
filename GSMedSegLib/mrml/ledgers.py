"""Where clicks live in a scene: a text node for each segmentation and volume, saved with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from GSMedSegLib.mrml.volumes import ijk_to_ras_of, shape_of
from GSMedSegLib.prompts import ClickLedger

ATTRIBUTE = "GSMedSeg.Clicks"
"""Marks the text nodes that hold clicks."""

SEGMENTATION = "gsmedsegSegmentation"
VOLUME = "gsmedsegVolume"
"""Roles of the nodes that a text node refers to."""


def load_ledger(segmentation: Any, volume: Any) -> ClickLedger:
    """The clicks made on a volume for the segments of a segmentation; objects are named by segment ID.

    Clicks are on voxels: where the volume was moved or its spacing corrected, they went with it.

    Raises:
        ValueError: the clicks in the scene are of another shape, or damaged.
    """
    node = _find(segmentation, volume)
    shape, matrix = shape_of(volume), ijk_to_ras_of(volume)
    if node is None or not node.GetText():
        return ClickLedger(shape, matrix)
    ledger = ClickLedger.from_json(node.GetText())
    ledger.check_image(shape)
    return ledger.moved(matrix)


def store_ledger(ledger: ClickLedger, segmentation: Any, volume: Any) -> None:
    """Puts clicks into the scene."""
    node = _find(segmentation, volume)
    if node is None:
        scene = segmentation.GetScene()
        node = scene.AddNewNodeByClass("vtkMRMLTextNode", f"{segmentation.GetName()} clicks")
        node.SetAttribute(ATTRIBUTE, "1")
        node.SetHideFromEditors(True)
        node.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
        node.SetNodeReferenceID(VOLUME, volume.GetID())
    node.SetText(ledger.to_json())


def named_ledger(ledger: ClickLedger, segmentation: Any) -> ClickLedger:
    """The same clicks with objects named as their segments are, for `gsmedseg segment --clicks`."""
    segments = segmentation.GetSegmentation()
    names: dict[str, str] = {}
    for segment_id in ledger.objects:
        segment = segments.GetSegment(segment_id)
        name = segment_id if segment is None else segment.GetName().strip() or segment_id
        names[segment_id] = name if name not in names.values() else f"{name} ({segment_id})"
    return ledger.renamed(names)


def add_objects(ledger: ClickLedger, segment_ids: Iterable[str]) -> None:
    """Declares segments that a ledger does not know yet."""
    for segment_id in segment_ids:
        if segment_id not in ledger.objects:
            ledger.add_object(segment_id)


def _find(segmentation: Any, volume: Any) -> Any:
    scene = segmentation.GetScene()
    nodes = scene.GetNodesByClass("vtkMRMLTextNode")
    nodes.UnRegister(None)
    for index in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(index)
        if (
            node.GetAttribute(ATTRIBUTE)
            and node.GetNodeReferenceID(SEGMENTATION) == segmentation.GetID()
            and node.GetNodeReferenceID(VOLUME) == volume.GetID()
        ):
            return node
    return None
