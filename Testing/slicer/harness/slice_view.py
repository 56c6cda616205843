"""A slice of the scene, as Slicer shows it in its Red, Yellow or Green view; drawn off-screen, no Qt.

The volume is resliced by `vtkMRMLSliceLogic`; segmentations, markups and the rest are drawn, and clicks are
taken, by Slicer's own displayable managers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
from vtkmodules.vtkInteractionStyle import vtkInteractorStyleUser
from vtkmodules.vtkRenderingCore import vtkActor2D, vtkImageMapper, vtkRenderer

from Testing.slicer.harness.render_view import RenderView

SLICE_MANAGERS = (
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
)

#: Slicer's three default views: layout name, orientation, colour of the bar.
DEFAULT_VIEWS = (
    ("Red", "Axial", (243, 74, 51)),
    ("Yellow", "Sagittal", (237, 213, 76)),
    ("Green", "Coronal", (110, 176, 75)),
)


class SliceView(RenderView):
    """One slice view.

    Args:
        application: The open application.
        name: The layout name, such as "Red".
        orientation: "Axial", "Sagittal" or "Coronal".
        color: The bar's, 0..255.
        size: Width and height in pixels.
    """

    def __init__(
        self,
        application: Any,
        name: str,
        orientation: str,
        color: Sequence[int],
        size: tuple[int, int] = (320, 320),
    ) -> None:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory
        super().__init__(factory, SLICE_MANAGERS, application.logic, size)
        self.name = name
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        overlay = vtkRenderer()  # markups draw their handles in a second layer
        overlay.SetLayer(1)
        overlay.GetActiveCamera().ParallelProjectionOn()
        self.window.SetNumberOfLayers(2)
        self.window.AddRenderer(overlay)
        self.window.SetAlphaBitPlanes(1)

        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application.logic)
        application.logic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(application.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetLayoutName(name)
        self.node.SetLayoutLabel(name[0])
        self.node.SetLayoutColor(*(channel / 255 for channel in color))
        self.node.SetOrientation(orientation)
        self.node.SetMappedInLayout(1)

        self._mapper = (
            vtkImageMapper()
        )  # the slice logic's picture is RGBA already, so the window is all of 0..255
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._image = vtkActor2D()
        self._image.SetMapper(self._mapper)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self._image.SetVisibility(False)
        self.renderer.AddViewProp(self._image)
        self._observer = self.logic.AddObserver("ModifiedEvent", self._on_logic_modified)

        self.managers.SetMRMLDisplayableNode(self.node)
        self.interactor.SetInteractorStyle(vtkInteractorStyleUser())
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetSliceLogic(self.logic)
        self._style.SetDisplayableManagers(self.managers)
        self._style.SetInteractor(self.interactor)
        self.resize(size)

    @property
    def offset_mm(self) -> float:
        """Where the slice cuts, along its normal."""
        return float(self.logic.GetSliceOffset())

    def fit(self) -> None:
        """Centres and zooms on the background volume, on the slice of a voxel's centre."""
        self.logic.FitSliceToBackground(*self.size)
        self.logic.SnapSliceOffsetToIJK()

    def show_position(self, ras: Sequence[float]) -> None:
        """Moves the slice, not the zoom, so that it cuts through a world position in mm."""
        self.node.JumpSliceByOffsetting(*map(float, ras))

    def pixel_of(self, ras: Sequence[float]) -> tuple[int, int]:
        """The pixel, from the left and from the top, that shows a world position in mm.

        Raises:
            ValueError: The position is not on this slice (half a pixel off it at most) or not in the window.
        """
        matrix = slicer.util.arrayFromVTKMatrix(self.node.GetXYToRAS())
        x, y, off_slice, _ = np.linalg.solve(matrix, [*map(float, ras), 1.0])
        column, row = round(float(x)), self.size[1] - 1 - round(float(y))
        across_mm = abs(off_slice) * float(np.linalg.norm(matrix[:3, 2]))
        if across_mm > np.linalg.norm(matrix[:3, 0]) / 2:
            raise ValueError(
                f"{tuple(ras)} is {across_mm:.2f} mm off the slice of {self.name}: show_position first"
            )
        if not (0 <= column < self.size[0] and 0 <= row < self.size[1]):
            raise ValueError(f"{tuple(ras)} lies outside the window of {self.name}: fit, or zoom out, first")
        return column, row

    def ras_of(self, pixel: tuple[int, int]) -> tuple[float, float, float]:
        """The world position in mm that a pixel, from the left and from the top, shows."""
        x, y = pixel[0], self.size[1] - 1 - pixel[1]
        r, a, s, _ = self.node.GetXYToRAS().MultiplyPoint((x, y, 0.0, 1.0))
        return r, a, s

    def resize(self, size: tuple[int, int]) -> None:
        """Sets width and height in pixels; the slice keeps its scale."""
        super().resize(size)
        self.logic.ResizeSliceNode(*self.size)
        self.on_change()

    def close(self) -> None:
        """Lets go of the window, the managers and the logic."""
        self.logic.RemoveObserver(self._observer)
        self._style.SetInteractor(None)
        super().close()
        self._image.SetMapper(None)

    def _on_logic_modified(self, *_: object) -> None:
        connection = self.logic.GetImageDataConnection()
        if connection is not self._mapper.GetInputConnection(0, 0):
            self._mapper.SetInputConnection(connection)
        self._image.SetVisibility(connection is not None)
        self.on_change()
