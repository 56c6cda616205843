"""A desktop like Slicer's: a module's panel on the left, slice views and a 3D view on the right.

with SlicerDesktop() as desktop:
widget = desktop.open_module(path)
desktop.click(widget.ui.applyButton)
desktop.slice_view("Red").click_ras((10, -20, 5))
desktop.wait_until(lambda: widget.done, timeout_s=10)
desktop.screenshot(tmp_path / "panel.png")
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
from PySide6 import QtCore, QtTest, QtWidgets
from PySide6.QtCore import QSettings, Qt

from Testing.slicer.harness.application import CoreApp, SlicerApplication
from Testing.slicer.harness.ctk_namespace import ctk_namespace
from Testing.slicer.harness.layout_manager import LayoutManager
from Testing.slicer.harness.pythonqt import PythonQtHabits
from Testing.slicer.harness.qt_namespace import QtNamespace
from Testing.slicer.harness.scripted_module import ScriptedModuleObject, ScriptedModulePanel, scripted_modules
from Testing.slicer.harness.slice_view import DEFAULT_VIEWS, SliceView
from Testing.slicer.harness.three_d_view import ThreeDView
from Testing.slicer.harness.view_widget import ViewWidget

PANEL_WIDTH = 440

if sys.version_info < (3, 12):
    # PySide6 gives away a reference to None with each call that returns nothing, as if None lived for ever,
    # which it does from Python 3.12 on. Without a reference left the process ends.
    ctypes.c_ssize_t.from_address(id(None)).value += 2**40


class DesktopApp(CoreApp):
    """`slicer.app` with windows and an event loop."""

    def __init__(self, application: SlicerApplication) -> None:
        super().__init__(application)
        self.layout_manager: LayoutManager | None = None
        self.paused = 0
        self._slots: dict[str, list[Callable[[], Any]]] = {"startupCompleted()": [], "aboutToQuit()": []}

    def connect(self, signature: str, slot: Callable[[], Any]) -> bool:
        """Connects `startupCompleted()` or `aboutToQuit()`; any other signal is refused."""
        if signature not in self._slots:
            raise ValueError(f"slicer.app has here the signals {', '.join(self._slots)}, not {signature!r}")
        self._slots[signature].append(slot)
        return True

    def disconnect(self, signature: str, slot: Callable[[], Any]) -> bool:
        """Undoes `connect`; False where there was none."""
        known = self._slots.get(signature, [])
        if slot not in known:
            return False
        known.remove(slot)
        return True

    def emit(self, signature: str) -> None:
        """Tells those who are connected, once."""
        slots, self._slots[signature] = self._slots[signature], []
        for slot in slots:
            slot()

    def layoutManager(self) -> LayoutManager | None:
        """The views."""
        return self.layout_manager

    def topLevelWidgets(self) -> list[Any]:
        """The windows."""
        return QtWidgets.QApplication.topLevelWidgets()

    def processEvents(self) -> None:
        """Lets Qt work off what is waiting."""
        QtWidgets.QApplication.processEvents()

    def setOverrideCursor(self, cursor: Any) -> None:
        """Shows another mouse cursor."""
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        """Shows the one before."""
        QtWidgets.QApplication.restoreOverrideCursor()

    def userSettings(self) -> QSettings:
        """The user's settings: of this desktop only."""
        return QSettings()


class SlicerDesktop:
    """Opens the application, the Python namespaces and a window; closes them all again.

    Args:
        testing: What `slicer.app.testingEnabled()` answers: message boxes are logged, not shown.
        three_d: Whether there is a 3D view; it costs a moment.
        size: The window's, in pixels.

    Attributes:
        application: Slicer's core.
        errors: Exceptions that slots, timers and observers raised, and nobody caught. What is left there at
            the end is raised, so a test cannot miss it: take out what was expected by `take_errors`.
    """

    def __init__(
        self, testing: bool = True, three_d: bool = True, size: tuple[int, int] = (1280, 800)
    ) -> None:
        self._testing = testing
        self._three_d = three_d
        self._size = size
        self._stack = ExitStack()
        self._widgets: list[Any] = []
        self.errors: list[BaseException] = []

    def __enter__(self) -> SlicerDesktop:
        with ExitStack() as stack:
            # In the order in which they are needed; taken down in the reverse order.
            self._qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
            stack.callback(self._work_off)
            SlicerApplication.install(stack, sys, "excepthook", self._on_exception)
            self.application = stack.enter_context(SlicerApplication(self._testing, DesktopApp))
            self._use_own_settings(stack)
            self._install_modules(stack)
            stack.enter_context(PythonQtHabits())
            self._open_window(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_modules()
        finally:
            self._stack.close()
        if error is None and self.errors:
            raise self.errors[0]

    def open_module(self, path: str | Path) -> Any:
        """Loads a module's file as Slicer does, makes its panel and shows it.

        Returns:
            The module's Python widget, after `setup()` and `enter()`.
        """
        path = Path(path).resolve()
        sys.path.insert(0, str(path.parent))
        self._stack.callback(sys.path.remove, str(path.parent))
        self._stack.callback(self._forget, path.parent, set(sys.modules))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        known = ScriptedModuleObject(path)
        self.application.modules.register(known)
        setattr(slicer.modules, f"{path.stem}Instance", getattr(module, path.stem)(known))
        self.application.app.emit("startupCompleted()")
        panel = known.widgetRepresentation()
        widget = getattr(module, f"{path.stem}Widget")(panel)
        panel._python = widget
        widget.setup()
        panel.layout().addStretch(1)
        self._panel_area.setWidget(panel)
        self._widgets.append(widget)
        widget.enter()
        self.process_events()
        return widget

    def slice_view(self, name: str) -> ViewWidget:
        """The widget of the view "Red", "Yellow" or "Green"."""
        return self._slices[name]

    def show_volume(self, volume: Any) -> None:
        """Shows a volume in all slice views, as loading it does, and fits them."""
        self.application.logic.GetSelectionNode().SetActiveVolumeID(volume.GetID())
        self.application.logic.PropagateVolumeSelection()
        self.application.app.layoutManager().resetSliceViews()
        self.process_events()

    def click(self, button: Any) -> None:
        """Presses a button with the mouse.

        Raises:
            RuntimeError: It is hidden or disabled, so no user could press it.
        """
        if not (button.isVisibleTo(self.window) and button.isEnabled()):
            raise RuntimeError(f"{button.name} is hidden or disabled: nobody can press it")
        rect = button.rect
        where = rect.center()
        if button.inherits("QCheckBox") or button.inherits("QRadioButton"):
            where = QtCore.QPoint(8, rect.height() // 2)  # a wide one answers to its box and text alone
        QtTest.QTest.mouseClick(button, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, where)
        self.process_events()

    def press_key(self, keys: str) -> None:
        """Types a key, such as "Shift+Z", into the window."""
        sequence = QtTest.QTest.keySequence
        self.window.activateWindow()
        self.window.setFocus()
        sequence(self.window, keys)
        self.process_events()

    def process_events(self) -> None:
        """Lets Qt work off what is waiting."""
        QtWidgets.QApplication.processEvents()

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Lets Qt work until the condition holds.

        Raises:
            TimeoutError: It did not in that time.
            Exception: What a slot raised meanwhile.
        """
        end_s = time.monotonic() + timeout_s
        known = len(self.errors)
        while not condition():
            if len(self.errors) > known:
                raise self.errors.pop()
            if time.monotonic() > end_s:
                raise TimeoutError(f"the condition did not hold within {timeout_s} s")
            QtTest.QTest.qWait(10)

    def take_errors(self) -> list[BaseException]:
        """The exceptions so far; they count as seen."""
        taken = list(self.errors)
        self.errors.clear()
        return taken

    def screenshot(self, path: str | Path) -> None:
        """Writes the window as a PNG.

        Raises:
            OSError: It cannot be written.
        """
        self.process_events()
        if not self.window.grab().save(str(path), "PNG"):
            raise OSError(f"{path} cannot be written")

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        traceback.print_exception(kind, error, trace)
        self.errors.append(error)

    def _use_own_settings(self, stack: ExitStack) -> None:
        """Nothing is read from or written to the settings of whoever runs the tests."""
        stack.callback(QSettings.setDefaultFormat, QSettings.defaultFormat())
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        folder = str(self.application.folder / "settings")
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        self._qt.setOrganizationName("NA-MIC")
        self._qt.setApplicationName("Slicer")

    def _install_modules(self, stack: ExitStack) -> None:
        """`qt`, `ctk`, `SampleData`, and what belongs under `slicer`."""
        modules = {"qt": QtNamespace(), "ctk": ctk_namespace(), **scripted_modules()}
        for name, module in modules.items():
            before = sys.modules.get(name)
            sys.modules[name] = module
            if before is None:
                stack.callback(sys.modules.pop, name, None)
            else:
                stack.callback(sys.modules.__setitem__, name, before)
            if name.startswith("slicer."):
                SlicerApplication.install(stack, slicer, name.partition(".")[2], module)
        SlicerApplication.install(stack, slicer, "qSlicerScriptedLoadableModule", ScriptedModuleObject)
        SlicerApplication.install(stack, slicer, "qSlicerScriptedLoadableModuleWidget", ScriptedModulePanel)

    def _open_window(self, stack: ExitStack) -> None:
        """The main window: the panel's place, and the views in a two by two grid."""
        self.window = QtWidgets.QMainWindow()
        self.window.setObjectName("qSlicerMainWindow")
        self.window.setWindowTitle("Slicer-like test harness")
        stack.callback(self._close_window)
        self._panel_area = QtWidgets.QScrollArea()
        self._panel_area.setWidgetResizable(True)
        self._panel_area.setFixedWidth(PANEL_WIDTH)
        central = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(central)
        row.setContentsMargins(2, 2, 2, 2)
        row.addWidget(self._panel_area)
        grid = QtWidgets.QGridLayout()
        grid.setSpacing(2)
        row.addLayout(grid, 1)
        self._slices = {
            name: ViewWidget(SliceView(self.application, name, orientation, color), color)
            for name, orientation, color in DEFAULT_VIEWS
        }
        three_d = ViewWidget(ThreeDView(self.application)) if self._three_d else None
        self._views = [*self._slices.values(), *([three_d] if three_d else [])]
        for view_widget in self._views:
            stack.callback(view_widget.view.close)
        places = {"Red": (0, 0), "Yellow": (1, 1), "Green": (1, 0)}
        for name, view_widget in self._slices.items():
            grid.addWidget(view_widget, *places[name])
        if three_d is not None:
            grid.addWidget(three_d, 0, 1)
        layout_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLayoutNode")
        self.application.app.layout_manager = LayoutManager(self._slices, three_d, layout_node)
        self.window.setCentralWidget(central)
        self.window.resize(*self._size)
        self.window.show()
        self.process_events()

    def _close_modules(self) -> None:
        """What Slicer does at its end."""
        for widget in self._widgets:
            widget.exit()
        self.application.app.emit("aboutToQuit()")
        for widget in self._widgets:
            widget.cleanup()
        self._widgets.clear()
        self.process_events()

    def _close_window(self) -> None:
        self.window.close()
        self.window.deleteLater()
        self._work_off()

    def _work_off(self) -> None:
        """Deletes what waits for it."""
        QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
        QtWidgets.QApplication.processEvents()

    @staticmethod
    def _forget(folder: Path, before: set[str]) -> None:
        """Unloads what was imported from a module's folder."""
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and folder in Path(file).resolve().parents:
                del sys.modules[name]
