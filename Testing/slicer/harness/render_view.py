"""A view of the scene, drawn off-screen by VTK and Slicer's own displayable managers; no Qt."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import slicer
import vtkmodules.vtkInteractionStyle
import vtkmodules.vtkRenderingFreeType
import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  (registers the OpenGL classes that vtkRenderingCore makes)
from numpy.typing import NDArray
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkUnsignedCharArray
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
from vtkmodules.vtkRenderingUI import vtkGenericRenderWindowInteractor

# Read by VTK when the first window is made: no X server is asked for.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


class RenderView:
    """A window off the screen, an interactor, and a group of displayable managers.

    Args:
        factory_class: The singleton that makes the managers, of 2D or of 3D views.
        managers: Their class names.
        application_logic: The `vtkSlicerApplicationLogic`.
        size: Width and height in pixels.

    Attributes:
        on_change: Called when the picture is out of date.
    """

    def __init__(
        self, factory_class: Any, managers: Sequence[str], application_logic: Any, size: tuple[int, int]
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.size = size
        self.renderer = vtkRenderer()
        self.window = vtkRenderWindow()
        self.window.SetOffScreenRendering(True)
        self.window.SetShowWindow(False)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        self.interactor.SetSize(*size)
        factory = factory_class.GetInstance()
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        factory.SetMRMLApplicationLogic(application_logic)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.Initialize(factory, self.renderer)
        self.managers.AddObserver("UpdateEvent", lambda *_: self.on_change())

    def resize(self, size: tuple[int, int]) -> None:
        """Sets width and height in pixels; both at least 1."""
        self.size = (max(1, size[0]), max(1, size[1]))
        self.window.SetSize(*self.size)
        self.interactor.UpdateSize(*self.size)

    def picture(self) -> NDArray[np.uint8]:
        """Draws: RGB of shape (height, width, 3), the first row on top."""
        self.window.Render()
        width, height = self.size
        pixels = vtkUnsignedCharArray()
        self.window.GetRGBACharPixelData(0, 0, width - 1, height - 1, 0, pixels)
        rgba = vtk_to_numpy(pixels).reshape(height, width, 4)
        return np.ascontiguousarray(rgba[::-1, :, :3])

    def pointer(self, event: str, x: int, y: int, control: bool = False, shift: bool = False) -> None:
        """Hands a mouse event to Slicer's interactor style.

        Args:
            event: VTK's name, such as "LeftButtonPressEvent".
            x: Pixels from the left.
            y: Pixels from the top, as Qt counts.
            control: Whether Ctrl is held.
            shift: Whether Shift is held.
        """
        self.interactor.SetEventInformationFlipY(x, y, int(control), int(shift), chr(0), 0, None)
        self.interactor.InvokeEvent(event)

    def close(self) -> None:
        """Lets go of the window and the managers."""
        self.on_change = lambda: None
        self.managers.SetMRMLDisplayableNode(None)
        self.interactor.SetInteractorStyle(None)
        self.window.Finalize()
