"""The module `ctk`: its widgets that the module uses, with CTK's names and plain Qt's looks."""

from __future__ import annotations

import types
from typing import Any, ClassVar

from PySide6.QtCore import Property, QEvent, QObject, QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import (
    QDoubleSpinBox,
    QHBoxLayout,
    QMessageBox,
    QSlider,
    QToolButton,
    QWidget,
)

# These classes are used with PythonQt's habits and without: Qt's own getters are asked by `property()`.


class ctkCollapsibleButton(QWidget):
    """A bar with a title; what is below it hides when it is pressed."""

    cpp_class = True
    clicked = Signal(bool)
    toggled = Signal(bool)
    contentsCollapsed = Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        if isinstance(parent, str):  # the C++ class has (text, parent) too
            text, parent = parent, None
        else:
            text = ""
        super().__init__(parent)
        self._collapsed = False
        self._bar = QToolButton(self)
        self._bar.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._bar.setAutoRaise(False)
        self._bar.setText(text)
        self._bar.setObjectName("")
        self._bar.clicked.connect(self._on_clicked)
        self._place()

    def isCollapsed(self) -> bool:
        return self._collapsed

    def setCollapsed(self, collapsed: bool) -> None:
        changed = bool(collapsed) != self._collapsed
        self._collapsed = bool(collapsed)
        self._place()
        for child in self.children():
            if isinstance(child, QWidget) and child is not self._bar:
                child.setVisible(not self._collapsed)
        if changed:
            self.contentsCollapsed.emit(self._collapsed)
            self.toggled.emit(not self._collapsed)

    def setText(self, text: str) -> None:
        self._bar.setText(text)

    def event(self, event: QEvent) -> bool:
        """Keeps the bar on top when the size or the layout changes."""
        if event.type() in (QEvent.Type.Resize, QEvent.Type.Show, QEvent.Type.LayoutRequest):
            self._place()
        return super().event(event)

    def childEvent(self, event: Any) -> None:
        """A widget that comes in while the section is closed is hidden."""
        child = event.child()
        if event.added() and self._collapsed and isinstance(child, QWidget) and child is not self._bar:
            child.setVisible(False)
        super().childEvent(event)

    def _on_clicked(self) -> None:
        self.setCollapsed(not self._collapsed)
        self.clicked.emit(not self._collapsed)

    def _place(self) -> None:
        height = 24
        self._bar.setArrowType(Qt.ArrowType.RightArrow if self._collapsed else Qt.ArrowType.DownArrow)
        self._bar.setGeometry(0, 0, self.contentsRect().width() or 200, height)
        self.setContentsMargins(0, height, 0, 0)
        self.setMinimumHeight(height)
        self.setMaximumHeight(height if self._collapsed else 16777215)

    collapsed = Property(bool, isCollapsed, setCollapsed)
    checked = Property(bool, lambda self: not self._collapsed, lambda self, on: self.setCollapsed(not on))
    text = Property(str, lambda self: self._bar.property("text"), setText)


class ctkSliderWidget(QWidget):
    """A slider with a spin box: one number, `value`, between `minimum` and `maximum`."""

    cpp_class = True
    valueChanged = Signal(float)
    cpp_signals: ClassVar = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = QSlider(Qt.Orientation.Horizontal, self)
        self._spin = QDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._spin.valueChanged.connect(self._on_spin)
        self._slider.valueChanged.connect(self._on_slider)
        self._scale()

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)

    def setMinimum(self, minimum: float) -> None:
        self._spin.setMinimum(minimum)
        self._scale()

    def setMaximum(self, maximum: float) -> None:
        self._spin.setMaximum(maximum)
        self._scale()

    def setSingleStep(self, step: float) -> None:
        self._spin.setSingleStep(step)
        self._scale()

    def setDecimals(self, decimals: int) -> None:
        self._spin.setDecimals(decimals)

    def setSuffix(self, suffix: str) -> None:
        self._spin.setSuffix(suffix)

    def setPrefix(self, prefix: str) -> None:
        self._spin.setPrefix(prefix)

    def _scale(self) -> None:
        spin = self._spin.property
        with QSignalBlocker(self._slider):
            self._slider.setRange(0, max(1, round((spin("maximum") - spin("minimum")) / spin("singleStep"))))
        self._on_spin(spin("value"), tell=False)

    def _on_spin(self, value: float, tell: bool = True) -> None:
        with QSignalBlocker(self._slider):
            self._slider.setValue(
                round((value - self._spin.property("minimum")) / self._spin.property("singleStep"))
            )
        if tell:
            self.valueChanged.emit(value)

    def _on_slider(self, steps: int) -> None:
        self._spin.setValue(self._spin.property("minimum") + steps * self._spin.property("singleStep"))

    value = Property(float, lambda self: self._spin.property("value"), setValue)
    minimum = Property(float, lambda self: self._spin.property("minimum"), setMinimum)
    maximum = Property(float, lambda self: self._spin.property("maximum"), setMaximum)
    singleStep = Property(float, lambda self: self._spin.property("singleStep"), setSingleStep)
    decimals = Property(int, lambda self: self._spin.property("decimals"), setDecimals)
    suffix = Property(str, lambda self: self._spin.property("suffix"), setSuffix)
    prefix = Property(str, lambda self: self._spin.property("prefix"), setPrefix)


class ctkMessageBox(QMessageBox):
    """The message box of `slicer.util`; it never offers not to be shown again."""

    cpp_class = True
    _settings_key = ""

    def setDontShowAgainSettingsKey(self, key: str) -> None:
        self._settings_key = key

    dontShowAgainSettingsKey = Property(str, lambda self: self._settings_key, setDontShowAgainSettingsKey)


CTK_WIDGETS: dict[str, type[QObject]] = {
    cls.__name__: cls for cls in (ctkCollapsibleButton, ctkSliderWidget, ctkMessageBox)
}


def ctk_namespace() -> types.ModuleType:
    """The module `ctk`."""
    module = types.ModuleType("ctk", __doc__)
    module.__dict__.update(CTK_WIDGETS)
    return module
