"""Clicking in the views: points and boxes that a user places, and the clicks that are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROLE = "GSMedSeg.Role"
"""Attribute of the nodes in here; they are made anew from the clicks, and not saved."""

COLORS = {
    "foreground": (0.10, 0.80, 0.45),
    "background": (0.95, 0.25, 0.30),
    "hint": (1.00, 0.80, 0.10),
    "box": (0.20, 0.65, 1.00),
}

GLYPH_PERCENT = 1.6
"""Size of a click, of the view's."""

_SAME_MM = 1e-3


class Placement:
    """The markups nodes behind the buttons: two of points, one box, and the hint.

    Args:
        scene: that they live in.
        on_click: called with the point's world coordinates (mm) and whether it is foreground, when one was
            placed; False takes the point away again.
        on_box: called with the (8, 3) corners of a box in world coordinates (mm), when one was drawn,
            or moved or resized by its handles.
        on_change: called when placing began or ended.
    """

    def __init__(
        self,
        scene: Any,
        on_click: Callable[[NDArray[np.float64], bool], bool],
        on_box: Callable[[NDArray[np.float64]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._scene = scene
        self._on_click, self._on_box, self._on_change = on_click, on_box, on_change
        self._nodes: dict[str, Any] = {}
        self._observed: list[tuple[Any, int]] = []
        self._quiet = False
        self._told_bounds: list[float] = []
        self._interaction = scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
        self._selection = scene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        self._observe(self._interaction, self._interaction.InteractionModeChangedEvent, self._mode_changed)

    @property
    def active(self) -> str | None:
        """What is being placed, "foreground", "background" or "box", or None."""
        if self._interaction.GetCurrentInteractionMode() != self._interaction.Place:
            return None
        placed = self._selection.GetActivePlaceNodeID()
        for role in ("foreground", "background", "box"):
            node = self._nodes.get(role)
            if node is not None and node.GetID() == placed:
                return role
        return None

    def start(self, role: str) -> None:
        """Begin to place: points until `stop`, a box once.

        Args:
            role: "foreground", "background" or "box".
        """
        node = self._node(role)
        if role == "box":
            self._told_bounds = []
            node.RemoveAllControlPoints()
            node.GetDisplayNode().SetVisibility(True)
        self._selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
        self._selection.SetActivePlaceNodeID(node.GetID())
        self._interaction.SetPlaceModePersistence(0 if role == "box" else 1)
        self._interaction.SetCurrentInteractionMode(self._interaction.Place)
        self._on_change()

    def stop(self) -> None:
        """End placing, if it is ours."""
        if self.active is not None:
            self._interaction.SetPlaceModePersistence(0)
            self._interaction.SetCurrentInteractionMode(self._interaction.ViewTransform)

    def show(self, clicks: Sequence[tuple[NDArray[np.float64], bool]], hint: Any = None) -> None:
        """Show clicks in place of those shown so far.

        Args:
            clicks: world coordinates (mm), and whether each is foreground.
            hint: world coordinates of a proposal, or None.
        """
        for role, positive in (("foreground", True), ("background", False)):
            self._show(role, [ras for ras, kind in clicks if kind == positive])
        self._show("hint", [] if hint is None else [hint])

    def hide_box(self) -> None:
        """Take the box out of the views."""
        node = self._nodes.get("box")
        if node is not None and node.GetScene() is self._scene and node.GetDisplayNode().GetVisibility():
            self._quiet = True
            node.RemoveAllControlPoints()
            node.GetDisplayNode().SetVisibility(False)
            self._quiet = False

    def close(self) -> None:
        """Remove all nodes and observers."""
        self.stop()
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed.clear()
        for node in self._nodes.values():
            self._scene.RemoveNode(node)
        self._nodes.clear()

    def _node(self, role: str) -> Any:
        node = self._nodes.get(role)
        if node is not None and node.GetScene() is self._scene:
            return node
        kind = "vtkMRMLMarkupsROINode" if role == "box" else "vtkMRMLMarkupsFiducialNode"
        node = self._scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetName(f"GSMedSeg {role}")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetAttribute(ROLE, role)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetSelectedColor(*COLORS[role])
        display.SetColor(*COLORS[role])
        display.SetActiveColor(*COLORS[role])  # under the mouse; by default green, which is foreground
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        if role == "box":
            display.SetFillOpacity(0.1)
            display.SetRotationHandleVisibility(False)  # boxes are along the axes
        else:
            display.SetGlyphScale(GLYPH_PERCENT * (1.6 if role == "hint" else 1.0))
            display.SetGlyphTypeFromString("StarBurst2D" if role == "hint" else "Sphere3D")
        self._nodes[role] = node
        self._observe(node, node.PointPositionDefinedEvent, lambda *_: self._placed(role))
        if role == "box":
            self._observe(node, node.PointEndInteractionEvent, lambda *_: self._placed(role))
        return node

    def _observe(self, node: Any, event: int, callback: Callable[..., None]) -> None:
        self._observed.append((node, node.AddObserver(event, callback)))

    def _mode_changed(self, *_: Any) -> None:
        self._on_change()

    def _placed(self, role: str) -> None:
        if self._quiet:
            return
        node = self._nodes[role]
        if role == "box":
            self._box_placed(node)
            return
        # All others are locked; it is not the last one when those were shown anew under the mouse.
        new = [n for n in _defined(node) if not node.GetNthControlPointLocked(n)]
        if not new:
            return
        ras = np.array(node.GetNthControlPointPositionWorld(new[0]))
        point_id = node.GetNthControlPointID(new[0])
        self._quiet = True
        try:
            node.SetNthControlPointLocked(new[0], True)
            if not self._on_click(ras, role == "foreground"):
                number = node.GetNthControlPointIndexByID(point_id)
                if number >= 0:  # else it went with those of another segment
                    node.RemoveNthControlPoint(number)
        finally:
            self._quiet = False

    def _box_placed(self, node: Any) -> None:
        if not node.GetControlPointPlacementComplete() and len(_defined(node)) < 2:
            return
        bounds = [0.0] * 6
        node.GetRASBounds(bounds)
        if bounds == self._told_bounds:  # a handle was clicked on, not dragged
            return
        self._told_bounds = bounds
        low, high = np.array(bounds[0::2]), np.array(bounds[1::2])
        corners = np.array([np.where([c >> a & 1 for a in range(3)], high, low) for c in range(8)])
        if (high > low).any():
            self._on_box(corners)

    def _show(self, role: str, points: Sequence[NDArray[np.float64]]) -> None:
        if not points and role not in self._nodes:
            return
        node = self._node(role)
        defined = _defined(node)
        shown = [np.array(node.GetNthControlPointPositionWorld(n)) for n in defined]
        if len(shown) == len(points) and all(
            np.abs(a - b).max() < _SAME_MM for a, b in zip(shown, points, strict=True)
        ):
            return
        self._quiet = True
        try:
            for n in reversed(defined):
                node.RemoveNthControlPoint(n)
            for ras in points:
                number = node.AddControlPointWorld([float(x) for x in ras])
                node.SetNthControlPointLocked(number, True)
        finally:
            self._quiet = False


def _defined(node: Any) -> list[int]:
    """Control points that were placed, previews aside."""
    count = node.GetNumberOfControlPoints()
    return [n for n in range(count) if node.GetNthControlPointPositionStatus(n) == node.PositionDefined]
