"""A view of the scene as a Qt widget: it paints the view's picture and hands it the mouse."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QSizePolicy, QWidget

from Testing.slicer.harness.render_view import RenderView
from Testing.slicer.harness.slice_view import SliceView

_BUTTONS = {
    Qt.MouseButton.LeftButton: "LeftButton",
    Qt.MouseButton.RightButton: "RightButton",
    Qt.MouseButton.MiddleButton: "MiddleButton",
}
_BAR = 4


class ViewWidget(QWidget):
    """Shows a slice view or a 3D view.

    Args:
        view: What it shows.
        color: The bar's above it, 0..255.
    """

    def __init__(self, view: RenderView, color: tuple[int, int, int] = (116, 116, 186)) -> None:
        super().__init__()
        self._view = view
        self._color = QColor(*color)
        self._stale = True
        self._image = QImage()
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setMinimumSize(160, 120)
        view.on_change = self._on_change

    @property
    def view(self) -> Any:
        """The view that is shown."""
        return self._view

    def grab_image(self) -> QImage:
        """The view's picture, drawn now."""
        pixels = self._view.picture()
        height, width, _ = pixels.shape
        return QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()

    def click_ras(
        self,
        ras: Any,
        button: Qt.MouseButton = Qt.MouseButton.LeftButton,
        modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier,
    ) -> tuple[float, float, float]:
        """Moves the slice through a world position in mm and clicks on its pixel with the mouse.

        Returns:
            The world position of that pixel, which is where Slicer takes the click.
        """
        point = self.hover_ras(ras)
        QTest.mouseClick(self, button, modifier, point)
        return self._view.ras_of((point.x(), point.y() - _BAR))

    def hover_ras(self, ras: Any) -> QPoint:
        """Moves the slice through a world position in mm, and the mouse there; its place in the widget."""
        assert isinstance(self._view, SliceView), "only slices have one position per pixel"
        self._view.show_position(ras)
        pixel = self._view.pixel_of(ras)
        point = QPoint(pixel[0], pixel[1] + _BAR)
        QTest.mouseMove(self, point + QPoint(1, 0))
        QTest.mouseMove(self, point)
        return point

    def drag_ras(self, start_ras: Any, end_ras: Any) -> None:
        """Presses the left button at a world position, moves to another one of the slice, and lets go."""
        assert isinstance(self._view, SliceView), "only slices have one position per pixel"
        self._view.show_position(start_ras)
        start, end = (QPoint(x, y + _BAR) for x, y in map(self._view.pixel_of, (start_ras, end_ras)))
        QTest.mouseMove(self, start + QPoint(1, 0))
        QTest.mouseMove(self, start)
        QTest.mousePress(self, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, start)
        for part in range(1, 5):
            QTest.mouseMove(self, start + (end - start) * part / 4)
        QTest.mouseRelease(self, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, end)

    def paintEvent(self, _event: Any) -> None:
        """Draws the bar, and the picture below it."""
        if self._stale:
            self._stale = False
            self._image = self.grab_image()
        painter = QPainter(self)
        painter.fillRect(0, 0, self._image.width(), _BAR, self._color)
        painter.drawImage(0, _BAR, self._image)
        painter.end()

    def resizeEvent(self, event: Any) -> None:
        """The view is as large as the widget, but for the bar."""
        self._view.resize((event.size().width(), event.size().height() - _BAR))

    def event(self, event: QEvent) -> bool:
        """Hands mouse events to the view."""
        kind = event.type()
        if kind == QEvent.Type.MouseMove:
            self._hand_on("MouseMoveEvent", event)
        elif kind in (QEvent.Type.MouseButtonPress, QEvent.Type.MouseButtonRelease):
            end = "PressEvent" if kind == QEvent.Type.MouseButtonPress else "ReleaseEvent"
            if event.button() in _BUTTONS:
                self._hand_on(_BUTTONS[event.button()] + end, event)
        elif kind in (QEvent.Type.Enter, QEvent.Type.Leave):
            self._view.interactor.InvokeEvent("EnterEvent" if kind == QEvent.Type.Enter else "LeaveEvent")
        else:
            return super().event(event)
        return True

    def _hand_on(self, name: str, event: Any) -> None:
        point, keys = event.position().toPoint(), event.modifiers()
        control = bool(keys & Qt.KeyboardModifier.ControlModifier)
        shift = bool(keys & Qt.KeyboardModifier.ShiftModifier)
        self._view.pointer(name, point.x(), point.y() - _BAR, control, shift)

    def _on_change(self) -> None:
        self._stale = True
        self.update()
