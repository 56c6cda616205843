"""`slicer.app.layoutManager()`: the views by name, in the classes that scripts know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from Testing.slicer.harness.view_widget import ViewWidget


class SliceController:
    """The bar above a slice view."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def fitSliceToBackground(self) -> None:
        """Centres and zooms on the volume."""
        self._view.fit()

    def setSliceVisible(self, visible: bool) -> None:
        """Shows the slice in 3D."""
        self._view.node.SetSliceVisible(visible)


class SliceWidget:
    """`layoutManager().sliceWidget("Red")`."""

    def __init__(self, widget: ViewWidget) -> None:
        self._widget = widget

    def sliceLogic(self) -> Any:
        """The vtkMRMLSliceLogic."""
        return self._widget.view.logic

    def mrmlSliceNode(self) -> Any:
        """The vtkMRMLSliceNode."""
        return self._widget.view.node

    def sliceController(self) -> SliceController:
        """What fits it."""
        return SliceController(self._widget.view)

    def sliceView(self) -> ViewWidget:
        """The widget."""
        return self._widget


class LayoutManager:
    """The views.

    Args:
        slices: The slice views' widgets by their name.
        three_d: The 3D view's; None without one.
        layout_node: The scene's vtkMRMLLayoutNode.
    """

    def __init__(
        self, slices: Mapping[str, ViewWidget], three_d: ViewWidget | None, layout_node: Any
    ) -> None:
        self._slices = slices
        self._three_d = three_d
        self._node = layout_node

    def sliceViewNames(self) -> tuple[str, ...]:
        """The names of the slice views."""
        return tuple(self._slices)

    def sliceWidget(self, name: str) -> SliceWidget | None:
        """A slice view by its name; None where there is none."""
        return SliceWidget(self._slices[name]) if name in self._slices else None

    @property
    def threeDViewCount(self) -> int:
        """How many 3D views there are."""
        return int(self._three_d is not None)

    def resetSliceViews(self) -> None:
        """Fits all slices."""
        for widget in self._slices.values():
            widget.view.fit()

    def resetThreeDViews(self) -> None:
        """Turns the 3D camera to all that is shown."""
        if self._three_d is not None:
            self._three_d.view.fit()

    def setLayout(self, layout: int) -> None:
        """Remembers the layout; the harness has one arrangement only."""
        self._node.SetViewArrangement(layout)

    @property
    def layout(self) -> int:
        """The layout last set."""
        return int(self._node.GetViewArrangement())
