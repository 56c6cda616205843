"""Stand-ins for what Slicer has in Python beside its core: scripted modules, parameter nodes, translation."""

from __future__ import annotations

import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import slicer

from Testing.slicer.stage.qt_namespace import unwrap, wrap


class ScriptedLoadableModule:
    """What Slicer knows of a module before it is opened."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """A module's panel: `layout` is where its widgets go."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.layout = parent.layout()
        self.moduleName = type(self).__name__.removesuffix("Widget")

    def resourcePath(self, filename: str) -> str:
        path = Path(getattr(slicer.modules, self.moduleName.lower()).path)
        return str(path.parent / "Resources" / filename)

    def setup(self) -> None:
        """Slicer adds its reload buttons here."""

    def cleanup(self) -> None:
        """Slicer calls it at the end."""


class ScriptedLoadableModuleLogic:
    """A module's logic, with one parameter node of the scene."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(self.moduleName)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's self test."""

    def __init__(self) -> None:
        super().__init__("runTest")

    def delayDisplay(self, message: str, *_: Any) -> None:
        slicer.app.processEvents()


def parameterNodeWrapper(cls: type) -> type:
    """The attributes of a class as parameters of a node: strings, numbers, Booleans and nodes."""
    hints = get_type_hints(cls)
    defaults = {name: getattr(cls, name, None) for name in hints}

    def initialise(self: Any, node: Any) -> None:
        self.__dict__["parameterNode"] = node
        self.__dict__["_connections"] = {}

    def get(self: Any, name: str) -> Any:
        kind, node = hints[name], self.parameterNode
        if issubclass(kind, slicer.vtkMRMLNode):
            return node.GetNodeReference(name)
        text = node.GetParameter(name)
        if text == "":
            return defaults[name] if defaults[name] is not None else kind()
        return text == "true" if kind is bool else kind(text)

    def put(self: Any, name: str, value: Any) -> None:
        kind, node = hints[name], self.parameterNode
        if issubclass(kind, slicer.vtkMRMLNode):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}, got {value!r}")
            node.SetNodeReferenceID(name, None if value is None else value.GetID())
        else:
            if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
                raise TypeError(f"{name} is a {kind.__name__}, got {value!r}")
            node.SetParameter(name, str(value).lower() if kind is bool else str(value))

    for name in hints:
        setattr(
            cls,
            name,
            property(lambda self, n=name: get(self, n), lambda self, value, n=name: put(self, n, value)),
        )
    cls.__init__ = initialise  # type: ignore[misc]
    cls.connectGui = _connect_gui  # type: ignore[attr-defined]
    cls.disconnectGui = _disconnect_gui  # type: ignore[attr-defined]
    return cls


_GUI: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    "QCheckBox": ("toggled(bool)", lambda w: w.checked, lambda w, v: setattr(w, "checked", v)),
    "ctkSliderWidget": ("valueChanged(double)", lambda w: w.value, lambda w, v: setattr(w, "value", v)),
    "qMRMLNodeComboBox": (
        "currentNodeChanged(vtkMRMLNode*)",
        lambda w: w.currentNode(),
        lambda w, v: w.setCurrentNode(v),
    ),
}


def _connect_gui(self: Any, gui: Any) -> int:
    """Ties widgets to parameters by their dynamic property SlicerParameterName."""
    widgets = {}
    for widget in vars(gui).values():
        parameter = unwrap(widget).property("SlicerParameterName")
        if parameter:
            widgets[parameter] = wrap(unwrap(widget))
    slots = []
    for parameter, widget in widgets.items():
        signal, read, _ = _GUI[widget.className()]

        def changed(*_: Any, parameter: str = parameter, widget: Any = widget, read: Any = read) -> None:
            if getattr(self, parameter) != read(widget):
                setattr(self, parameter, read(widget))

        widget.connect(signal, changed)
        slots.append((widget, signal, changed))

    def show(*_: Any) -> None:
        for parameter, widget in widgets.items():
            _, read, write = _GUI[widget.className()]
            if read(widget) != getattr(self, parameter):
                write(widget, getattr(self, parameter))

    tag = self.parameterNode.AddObserver("ModifiedEvent", show)
    show()
    self._connections[tag] = slots
    return int(tag)


def _disconnect_gui(self: Any, tag: int) -> None:
    self.parameterNode.RemoveObserver(tag)
    for widget, signal, slot in self._connections.pop(tag):
        widget.disconnect(signal, slot)


def python_modules() -> dict[str, types.ModuleType]:
    """The modules that Slicer's Python has and its core does not, by name."""
    base = types.ModuleType("slicer.ScriptedLoadableModule")
    for cls in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(base, cls.__name__, cls)
    wrapper = types.ModuleType("slicer.parameterNodeWrapper")
    wrapper.parameterNodeWrapper = parameterNodeWrapper  # type: ignore[attr-defined]
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text  # type: ignore[attr-defined]
    i18n.translate = lambda context, text: text  # type: ignore[attr-defined]
    sample = types.ModuleType("SampleData")
    sample.SampleDataLogic = type(  # type: ignore[attr-defined]
        "SampleDataLogic",
        (),
        {
            "sources": {},
            "registerCustomSampleDataSource": classmethod(
                lambda cls, **source: cls.sources.__setitem__(source["sampleName"], source)
            ),
        },
    )
    return {
        "slicer.ScriptedLoadableModule": base,
        "slicer.parameterNodeWrapper": wrapper,
        "slicer.i18n": i18n,
        "SampleData": sample,
    }
