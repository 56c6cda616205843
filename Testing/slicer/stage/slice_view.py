"""A slice view: Slicer's displayable managers, rendered off-screen and shown in a Qt widget."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QImage, QMouseEvent, QPainter
from PySide6.QtWidgets import QWidget
from vtk.util.numpy_support import vtk_to_numpy

SIZE = (360, 300)


class SliceViewWidget(QWidget):
    """Shows one of trame-slicer's views, and hands it what the mouse does.

    Args:
        view: a slice or 3D view.
    """

    def __init__(self, view: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.view = view
        self.setMinimumSize(*SIZE)
        self.setMouseTracking(True)
        self.view.update_size(*SIZE)

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 what is seen now."""
        window = self.view.render_window()
        window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.ReadFrontBufferOff()
        grab.Update()
        data = grab.GetOutput()
        width, height, _ = data.GetDimensions()
        return vtk_to_numpy(data.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()

    def paintEvent(self, event: Any) -> None:
        """Draws what the view shows."""
        pixels = self.image()
        height, width, _ = pixels.shape
        painter = QPainter(self)
        painter.drawImage(0, 0, QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888))
        painter.end()

    def to_pixel(self, ras: np.ndarray) -> tuple[int, int]:
        """Where a point of the world is drawn, from the upper left; it must lie in the slice shown."""
        matrix = vtk.vtkMatrix4x4()
        matrix.Invert(self.view.get_view_node().GetXYToRAS(), matrix)
        x, y, depth, _ = matrix.MultiplyPoint((*ras, 1.0))
        if abs(depth) > 1:
            raise ValueError(f"{ras} is not in the slice shown; show it first")
        return round(x), SIZE[1] - 1 - round(y)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Moves VTK's mouse."""
        self._send(event, "MouseMoveEvent")

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Presses VTK's button."""
        self._send(event, "MouseMoveEvent")
        self._send(event, "LeftButtonPressEvent")

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """Releases VTK's button."""
        self._send(event, "LeftButtonReleaseEvent")
        self.update()

    def enterEvent(self, event: QEvent) -> None:
        """The mouse comes in."""
        self.view.interactor().InvokeEvent("EnterEvent")

    def _send(self, event: QMouseEvent, name: str) -> None:
        if name != "MouseMoveEvent" and event.button() != Qt.MouseButton.LeftButton:
            return
        interactor = self.view.interactor()
        at = event.position()
        interactor.SetEventInformation(round(at.x()), SIZE[1] - 1 - round(at.y()), 0, 0, "\0", 0, None)
        interactor.InvokeEvent(name)
