"""A desktop like Slicer's: a module's panel beside slice views, under a real Qt, off-screen."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import numpy as np
import slicer
from PySide6.QtCore import QFile, QPoint, QSettings, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QApplication,
    QGridLayout,
    QHBoxLayout,
    QMainWindow,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)
from trame_slicer.views import SliceView

from Testing.slicer.stage.application import CoreApp, SlicerApplication
from Testing.slicer.stage.qt_namespace import QtNamespace, Wrapped, _Class, unwrap, wrap
from Testing.slicer.stage.scripted_module import python_modules
from Testing.slicer.stage.slice_view import SliceViewWidget
from Testing.slicer.stage.slicer_widgets import qMRMLWidget
from Testing.slicer.stage.ui_loader import UiLoader

ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class qSlicerMainWindow(QMainWindow):
    """The window."""


class DesktopApp(CoreApp):
    """`slicer.app` with an event loop and a window."""

    def __init__(self, application: SlicerApplication) -> None:
        super().__init__(application)
        self.signals: dict[str, list[Callable[..., Any]]] = {}

    def connect(self, signature: str, slot: Callable[..., Any]) -> bool:
        """The application's own signals."""
        if signature not in ("startupCompleted()", "aboutToQuit()"):
            raise ValueError(f"slicer.app has no signal {signature!r} here")
        self.signals.setdefault(signature, []).append(slot)
        return True

    def topLevelWidgets(self) -> list[Any]:
        """All windows."""
        return [wrap(widget) for widget in QApplication.topLevelWidgets()]

    def processEvents(self) -> None:
        """Lets Qt work."""
        QApplication.processEvents()

    def setOverrideCursor(self, cursor: Any) -> None:
        """The busy cursor."""
        QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        """The usual cursor."""
        QApplication.restoreOverrideCursor()


class SlicerDesktop(SlicerApplication):
    """The window with slice views, until the context ends.

    Attributes:
        errors: exceptions that slots raised, which Slicer would show in its Python console.
        messages: what would have been shown as an error in a box.
    """

    def __init__(self) -> None:
        super().__init__(testing=True, app_class=DesktopApp)
        self.errors: list[BaseException] = []
        self.messages: list[str] = []
        self._stack = ExitStack()
        self._module_widgets: list[Any] = []

    def __enter__(self) -> SlicerDesktop:
        self.qt_app = QApplication.instance() or QApplication([])
        super().__enter__()
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(self.folder))
        QApplication.setOrganizationName("Harness")
        modules = python_modules()
        modules["qt"] = QtNamespace({"QUiLoader": UiLoader, "QFile": _Class(QFile)})
        for name, module in modules.items():
            self.install_module(name, module)
        self._stack.callback(setattr, sys, "excepthook", sys.excepthook)
        sys.excepthook = lambda kind, error, trace: self.errors.append(error)
        self.install(
            self._stack, slicer.util, "errorDisplay", lambda text, *_, **__: self.messages.append(text)
        )
        self._build_window()
        return self

    def __exit__(self, *error: object) -> None:
        for widget in self._module_widgets:
            widget.cleanup()
        for watching in self.window.findChildren(qMRMLWidget):
            watching.setMRMLScene(None)
        for view in self.views.values():
            view.view.set_render_blocked(True)  # its nodes are about to go
        self.window.close()
        self.window.deleteLater()
        QApplication.processEvents()
        self._stack.close()
        super().__exit__(*error)

    def install_module(self, name: str, module: Any) -> None:
        """Makes a Python module importable until the desktop closes."""
        before = sys.modules.get(name)
        sys.modules[name] = module
        if before is None:
            self._stack.callback(sys.modules.pop, name, None)
        else:
            self._stack.callback(sys.modules.__setitem__, name, before)
        if name.startswith("slicer."):
            self.install(self._stack, slicer, name.split(".")[1], module)

    def open_module(self, path: Path) -> Any:
        """Loads a scripted module's file and opens its panel; the widget object."""
        name = path.stem
        sys.path.insert(0, str(path.parent))
        self._stack.callback(sys.path.remove, str(path.parent))
        before = set(sys.modules)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for loaded in set(sys.modules) - before:
            if loaded == name or loaded.startswith(f"{name}UI"):
                self._stack.callback(sys.modules.pop, loaded, None)
        parent = SimpleNamespace()
        getattr(module, name)(parent)
        setattr(slicer.modules, name.lower(), SimpleNamespace(path=str(path), name=name))
        for slot in self.app.signals.get("startupCompleted()", []):
            slot()
        frame = qMRMLWidget()
        QVBoxLayout(frame)
        frame.setMRMLScene(self.scene)
        self._panel.setWidget(frame)
        widget = getattr(module, f"{name}Widget")(wrap(frame))
        widget.setup()
        widget.enter()
        self._module_widgets.append(widget)
        self.work()
        return widget

    def clear(self) -> None:
        """Close the scene, as from the menu; the views wait until it is empty."""
        for view in self.views.values():
            view.view.set_render_blocked(True)
        self.scene.Clear(False)
        for view in self.views.values():
            view.view.set_render_blocked(False)
        self.work()

    def show(self, volume: Any, ras: np.ndarray | None = None) -> None:
        """Show a volume in all slice views, through a point of the world."""
        for view in self.views.values():
            view.view.set_background_volume_id(volume.GetID())
            view.view.fit_view_to_content()
            if ras is not None:
                view.view.get_view_node().JumpSliceByOffsetting(*[float(x) for x in ras])
        self.work()

    def click_view(self, name: str, ras: np.ndarray) -> None:
        """A left click of the mouse at a point of the world that the view shows."""
        widget = self.views[name]
        at = QPoint(*widget.to_pixel(ras))
        QTest.mouseMove(widget, at)
        QTest.mousePress(widget, Qt.MouseButton.LeftButton, pos=at)
        QTest.mouseRelease(widget, Qt.MouseButton.LeftButton, pos=at)
        self.work()

    def press(self, button: Wrapped) -> None:
        """A left click of the mouse on a button of the panel."""
        QTest.mouseClick(unwrap(button), Qt.MouseButton.LeftButton)
        self.work()

    def key(self, text: str) -> None:
        """A key, as Qt writes it."""
        self.window.activateWindow()
        QTest.keySequence(self.window, text)
        self.work()

    def work(self) -> None:
        """Lets Qt work off what is waiting."""
        for _ in range(3):
            QApplication.processEvents()

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Lets Qt work until something is true."""
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"it did not happen; errors: {self.errors}, messages: {self.messages}")
            QApplication.processEvents()
            time.sleep(0.005)

    def screenshot(self, path: Path) -> None:
        """The window as a picture."""
        for view in self.views.values():
            view.update()
        self.work()
        self.window.grab().save(str(path))

    def _build_window(self) -> None:
        self.window = qSlicerMainWindow()
        self.window.setObjectName("qSlicerMainWindow")
        centre = QWidget()
        row = QHBoxLayout(centre)
        self._panel = QScrollArea()
        self._panel.setWidgetResizable(True)
        self._panel.setFixedWidth(430)
        row.addWidget(self._panel)
        grid = QGridLayout()
        row.addLayout(grid)
        self.views: dict[str, SliceViewWidget] = {}
        for n, (name, orientation) in enumerate(ORIENTATIONS.items()):
            view = SliceView(self.scene, self.logic, name)
            view.set_orientation(orientation)
            self.views[name] = SliceViewWidget(view)
            grid.addWidget(self.views[name], n // 2, n % 2)
        self.window.setCentralWidget(centre)
        self.window.resize(1200, 760)
        self.window.show()
        self.work()
