"""The 3D view of the scene, drawn off-screen by Slicer's own displayable managers; no Qt."""

from __future__ import annotations

from typing import Any

import slicer
from vtkmodules.vtkRenderingCore import vtkInteractorStyle3D

from Testing.slicer.harness.render_view import RenderView

THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
)


class ThreeDView(RenderView):
    """One 3D view.

    Args:
        application: The open application.
        name: The layout name.
        size: Width and height in pixels.
    """

    def __init__(self, application: Any, name: str = "1", size: tuple[int, int] = (320, 320)) -> None:
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory
        super().__init__(factory, THREE_D_MANAGERS, application.logic, size)
        self.name = name
        self.interactor.SetInteractorStyle(vtkInteractorStyle3D())
        self._style = slicer.vtkMRMLThreeDViewInteractorStyle()
        self._style.SetDisplayableManagers(self.managers)
        self._style.SetInteractor(self.interactor)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(application.logic)
        application.logic.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(application.scene)
        self.node = self.logic.AddViewNode(name)
        self.node.SetLayoutName(name)
        self.node.SetBoxVisible(False)
        self.node.SetAxisLabelsVisible(False)
        self.node.SetMappedInLayout(1)
        self.managers.SetMRMLDisplayableNode(self.node)

    def fit(self) -> None:
        """Turns the camera to all that is shown."""
        self.renderer.ResetCamera()
        self.on_change()

    def close(self) -> None:
        """Lets go of the window, the managers and the logic."""
        self._style.SetInteractor(None)
        super().close()
