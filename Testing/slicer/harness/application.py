"""Slicer's core as an application: one scene, the module logics, `slicer.app`; neither Qt nor a window.

    with SlicerApplication() as application:
        volume = slicer.util.loadVolume("ct.nii.gz")

While the context is open `slicer.app`, `slicer.mrmlScene` and `slicer.modules` exist, as they do in Slicer,
and the unmodified `slicer.util` works on them. Afterwards they are gone again.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import slicer.util
from vtkmodules.util.misc import calldata_type
from vtkmodules.vtkCommonCore import VTK_STRING, vtkCollection, vtkOutputWindow

from Testing.slicer.harness.io_manager import CoreIOManager

_MISSING = object()

#: Slicer's core modules by the name of their C++ class, with the class of their logic.
CORE_LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
}


class CoreModule:
    """A loadable C++ module, as `slicer.modules.volumes` gives it: its name and its logic."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name = name
        self.title = name
        self._logic = logic

    def logic(self) -> Any:
        """The module's logic: one object for the whole application."""
        return self._logic


class ModuleManager:
    """The modules by name, as `slicer.app.moduleManager()` gives them."""

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}

    def register(self, module: Any) -> None:
        """Adds a module: to `module()` and, in lower case, to `slicer.modules`."""
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)

    def module(self, name: str) -> Any | None:
        """The module of that name, None where there is none."""
        return self._modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        """The names of all modules."""
        return tuple(self._modules)


class CoreApp:
    """`slicer.app` as far as the core goes; what is asked for and not here raises AttributeError."""

    applicationName = "Slicer"
    applicationVersion = "5.11.0 (harness)"
    majorVersion = 5
    minorVersion = 11

    def __init__(self, application: SlicerApplication) -> None:
        self._application = application

    @property
    def temporaryPath(self) -> str:
        """A folder that lives as long as the application."""
        return str(self._application.folder)

    @property
    def cachePath(self) -> str:
        """Where downloads are kept; of this application only."""
        return str(self._application.folder / "cache")

    def mrmlScene(self) -> Any:
        """The scene."""
        return self._application.scene

    def applicationLogic(self) -> Any:
        """The `vtkSlicerApplicationLogic`."""
        return self._application.logic

    def coreIOManager(self) -> CoreIOManager:
        """What `slicer.util` reads and writes files with."""
        return self._application.io_manager

    def moduleManager(self) -> ModuleManager:
        """The modules by name."""
        return self._application.modules

    def testingEnabled(self) -> bool:
        """Whether message boxes are logged and not shown."""
        return self._application.testing

    def layoutManager(self) -> Any | None:
        """None: the core has no views."""
        return None

    def topLevelWidgets(self) -> list[Any]:
        """Empty: the core has no windows."""
        return []

    def processEvents(self) -> None:
        """Does nothing: the core has no event loop."""

    def pauseRender(self) -> None:
        """Does nothing: the core has no views."""

    def resumeRender(self) -> None:
        """Does nothing: the core has no views."""


class SlicerApplication:
    """The scene, the logics and `slicer.app`, from `__enter__` to `__exit__`.

    One at a time in a process, as many after each other as wanted.

    Args:
        testing: What `slicer.app.testingEnabled()` answers: message boxes are logged, not shown.
        app_class: The class of `slicer.app`; the desktop hands in its own.

    Attributes:
        scene: The `vtkMRMLScene`.
        logic: The `vtkSlicerApplicationLogic`.
        folder: A temporary folder, removed at the end.
        vtk_errors: Messages that VTK and MRML reported as errors; a test can assert that there are none.
    """

    def __init__(self, testing: bool = True, app_class: Callable[[SlicerApplication], Any] = CoreApp) -> None:
        self.testing = testing
        self.vtk_errors: list[str] = []
        self._app_class = app_class
        self._cleanup = ExitStack()

    def __enter__(self) -> SlicerApplication:
        if hasattr(slicer, "app"):
            raise RuntimeError(
                "One application at a time: slicer.app is there already. Close the other first."
            )
        with ExitStack() as stack:
            self._listen_to_vtk(stack)
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="slicer-", ignore_cleanup_errors=True)
            )
            self.folder = Path(folder)
            (self.folder / "cache").mkdir()
            self._create_scene(stack)
            self.modules = ModuleManager()
            self.io_manager = CoreIOManager(self)
            stack.callback(self.io_manager.close)
            self.app = self._app_class(self)
            self.install(stack, slicer, "mrmlScene", self.scene)
            self.install(stack, slicer, "modules", SimpleNamespace())
            self.install(stack, slicer, "app", self.app)
            self._register_logics()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    @staticmethod
    def install(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
        """Sets `owner.name` to `value` until the stack closes; then puts back what was there, or nothing."""
        before = getattr(owner, name, _MISSING)
        setattr(owner, name, value)
        if before is _MISSING:
            stack.callback(delattr, owner, name)
        else:
            stack.callback(setattr, owner, name, before)

    def _listen_to_vtk(self, stack: ExitStack) -> None:
        """VTK's errors go to `vtk_errors` and to stderr, its warnings to stderr, its chatter nowhere."""
        window = vtkOutputWindow()
        window.SetDisplayModeToNever()

        @calldata_type(VTK_STRING)
        def on_error(_caller: Any, _event: str, message: str) -> None:
            self.vtk_errors.append(message)
            sys.stderr.write(message)

        @calldata_type(VTK_STRING)
        def on_warning(_caller: Any, _event: str, message: str) -> None:
            sys.stderr.write(message)

        window.AddObserver("ErrorEvent", on_error)
        window.AddObserver("WarningEvent", on_warning)
        stack.callback(vtkOutputWindow.SetInstance, vtkOutputWindow.GetInstance())
        vtkOutputWindow.SetInstance(window)

    def _create_scene(self, stack: ExitStack) -> None:
        """The application logic, and the scene with the nodes that Slicer puts there at its start."""
        self.scene = slicer.vtkMRMLScene()
        stack.callback(self.scene.Clear, True)
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetTemporaryPath(str(self.folder))
        self.logic.SetMRMLScene(self.scene)
        self.logic.SetSliceLogics(vtkCollection())
        self.logic.SetViewLogics(vtkCollection())
        colors = self.logic.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        patient_right_is_screen_left = True
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, patient_right_is_screen_left)
        for factory in (
            slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(),
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(),
        ):
            factory.SetMRMLApplicationLogic(self.logic)
            stack.callback(factory.SetMRMLApplicationLogic, None)

    def _register_logics(self) -> None:
        """Every core module's logic: known to the application logic, to the scene and to `slicer.modules`."""
        share = _share_folder()
        for name, class_name in CORE_LOGICS.items():
            logic = self.logic.GetColorLogic() if name == "Colors" else getattr(slicer, class_name)()
            if share is not None and hasattr(logic, "SetModuleShareDirectory"):
                folder = share / "terminologies" if name == "Terminologies" else share
                logic.SetModuleShareDirectory(str(folder))
            if name != "Colors":
                logic.SetMRMLApplicationLogic(self.logic)
                logic.SetMRMLScene(self.scene)
            self.logic.SetModuleLogic(name, logic)
            self.modules.register(CoreModule(name, logic))


def _share_folder() -> Path | None:
    """trame-slicer's copy of Slicer's terminologies and display presets; None where it is not installed."""
    spec = importlib.util.find_spec("trame_slicer")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "resources"
