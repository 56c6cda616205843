"""Where clicks live in a scene: a text node for each segmentation and volume, saved with it."""

from __future__ import annotations

import json
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
    if ledger.shape != shape:
        raise ValueError(
            f'"{segmentation.GetName()}" has clicks on an image of shape {ledger.shape}, but '
            f'"{volume.GetName()}" has {shape} now; choose another segmentation, or none for a new one'
        )
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
    """The clicks on the segments there are, in their order and named as they are, for `segment --clicks`."""
    segments = segmentation.GetSegmentation()
    names: dict[str, str] = {}
    for segment_id in segments.GetSegmentIDs():
        if segment_id in ledger.objects:
            name = segments.GetSegment(segment_id).GetName().strip() or segment_id
            names[segment_id] = name if name not in names.values() else f"{name} ({segment_id})"
    return _only(ledger, list(names)).renamed(names)


def _only(ledger: ClickLedger, objects: list[str]) -> ClickLedger:
    """A copy with some of the objects, in the order given."""
    data = json.loads(ledger.to_json())
    events = [event for event in data["events"] if event["object"] in (None, *objects)]
    return ClickLedger.from_json(json.dumps({**data, "objects": objects, "events": events}))


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
