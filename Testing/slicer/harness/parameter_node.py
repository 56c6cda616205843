"""The module `slicer.parameterNodeWrapper`: a class's annotations, kept in a node and bound to widgets.

Of the types that Slicer's wrapper takes, these: bool, int, float, str, and nodes; each of them also within
`Annotated[…, Default(…)]`, numbers also with `WithinRange(…)`, nodes also within `Optional`.

As Slicer's, it remembers what it read: when it was made, and whenever the parameter node changed. A node that
comes into the scene after the parameter that names it is not seen.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import slicer

_SIMPLE: dict[type, Callable[[str], Any]] = {
    bool: lambda text: text == "True",
    int: int,
    float: float,
    str: str,
}

#: The property that holds a parameter of a type, and the signal of its change, by the kind of widget.
_BOUND = (
    ("qMRMLNodeComboBox", None, "currentNodeChanged(vtkMRMLNode*)"),
    ("ctkSliderWidget", "value", "valueChanged(double)"),
    ("QDoubleSpinBox", "value", "valueChanged(double)"),
    ("QSpinBox", "value", "valueChanged(int)"),
    ("QSlider", "value", "valueChanged(int)"),
    ("QLineEdit", "text", "textChanged(QString)"),
    ("QPlainTextEdit", "plainText", "textChanged()"),
    ("QComboBox", "currentText", "currentTextChanged(QString)"),
    ("QAbstractButton", "checked", "toggled(bool)"),
)


class Default:
    """`Annotated[int, Default(3)]`: the value of a parameter that was never set."""

    def __init__(self, value: Any) -> None:
        self.value = value


class WithinRange:
    """`Annotated[float, WithinRange(0, 5)]`: another number is refused."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum


class _Parameter:
    """One annotated attribute of a wrapped class."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        self.range: WithinRange | None = None
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            default = next((note.value for note in notes if isinstance(note, Default)), default)
            self.range = next((note for note in notes if isinstance(note, WithinRange)), None)
        if get_origin(annotation) in (Union, types.UnionType):
            kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
            annotation = kinds[0] if len(kinds) == 1 else annotation
        self.kind = annotation
        self.is_node = isinstance(annotation, type) and issubclass(annotation, slicer.vtkMRMLNode)
        if not self.is_node and annotation not in _SIMPLE:
            raise TypeError(
                f"parameter {name}: this harness has bool, int, float, str and nodes, not {annotation}"
            )
        self.default = default if default is not None or self.is_node else annotation()

    def __get__(self, wrapper: Any, _owner: type | None = None) -> Any:
        if wrapper is None:
            return self
        return wrapper._values[self.name]

    def read(self, node: Any) -> Any:
        """What the node has now."""
        if self.is_node:
            return node.GetNodeReference(self.name)
        if not node.HasParameter(self.name):
            return self.default
        return _SIMPLE[self.kind](node.GetParameter(self.name))

    def __set__(self, wrapper: Any, value: Any) -> None:
        node = wrapper.parameterNode
        if self.is_node:
            if value is not None and not isinstance(value, self.kind):
                raise ValueError(
                    f"parameter {self.name} takes {self.kind.__name__}, not {type(value).__name__}"
                )
            with slicer.util.NodeModify(node):
                node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
                wrapper._values[self.name] = self.read(node)  # before others are told
            return
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise ValueError(f"parameter {self.name} takes {self.kind.__name__}, not {value!r}")
        if self.range is not None and not self.range.minimum <= value <= self.range.maximum:
            raise ValueError(f"parameter {self.name} is from {self.range.minimum} to {self.range.maximum}")
        with slicer.util.NodeModify(node):
            node.SetParameter(self.name, str(value))
            wrapper._values[self.name] = self.read(node)


class _Binding:
    """Widgets that show parameters, and are shown by them, until it is closed."""

    def __init__(self, wrapper: Any, pairs: Mapping[str, Any]) -> None:
        self._wrapper = wrapper
        self._updating = False
        self._widgets = []
        for name, widget in pairs.items():
            prop, signal = _bound(widget)
            if type(widget).__name__ == "ctkSliderWidget" and wrapper.allParameters[name].range is None:
                raise RuntimeError(f"{widget.name} is a slider: {name} must be annotated with WithinRange")
            write = self._writer(name, widget, prop)
            widget.connect(signal, write)
            self._widgets.append((name, widget, prop, signal, write))
        self._tag = wrapper.parameterNode.AddObserver("ModifiedEvent", lambda *_: self.show())
        self.show()

    def show(self) -> None:
        """Brings the widgets up to date."""
        if self._updating:
            return
        self._updating = True
        try:
            for name, widget, prop, _signal, _write in self._widgets:
                value = getattr(self._wrapper, name)
                if prop is None:
                    if widget.currentNode() is not value:
                        widget.setCurrentNode(value)
                elif getattr(widget, prop) != value:
                    setattr(widget, prop, value)
        finally:
            self._updating = False

    def close(self) -> None:
        """The widgets go their own way."""
        self._wrapper.parameterNode.RemoveObserver(self._tag)
        for _name, widget, _prop, signal, write in self._widgets:
            widget.disconnect(signal, write)

    def _writer(self, name: str, widget: Any, prop: str | None) -> Callable[[], None]:
        def write() -> None:
            if not self._updating:
                setattr(self._wrapper, name, widget.currentNode() if prop is None else getattr(widget, prop))

        return write


def _bound(widget: Any) -> tuple[str | None, str]:
    """The property and the signal of a widget's value."""
    for class_name, prop, signal in _BOUND:
        if any(cls.__name__ == class_name for cls in type(widget).__mro__):
            return prop, signal
    raise TypeError(f"{type(widget).__name__} cannot show a parameter")


def parameterNodeWrapper(cls: type) -> type:
    """The class, with its annotated attributes kept in the `vtkMRMLScriptedModuleNode` it is made with."""
    parameters = {
        name: _Parameter(name, annotation, cls.__dict__.get(name))
        for name, annotation in get_type_hints(cls, include_extras=True).items()
    }

    class Wrapper(cls):  # type: ignore[misc, valid-type]
        allParameters = parameters

        def __init__(self, parameter_node: Any) -> None:
            object.__setattr__(self, "parameterNode", parameter_node)
            object.__setattr__(self, "_bindings", {})
            object.__setattr__(self, "_values", {})
            self._read()
            this = weakref.ref(self)

            def changed(*_: Any) -> None:
                wrapper = this()
                if wrapper is not None:  # it lives as long as somebody uses it
                    wrapper._read()

            parameter_node.AddObserver("ModifiedEvent", changed)

        def _read(self) -> None:
            self._values.update((name, one.read(self.parameterNode)) for name, one in parameters.items())

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in parameters:
                raise AttributeError(
                    f"{cls.__name__} has no parameter {name}; it has {', '.join(parameters)}"
                )
            parameters[name].__set__(self, value)

        def connectGui(self, gui: Any) -> int:
            """Binds widgets whose property SlicerParameterName names a parameter; an ID to undo it."""
            pairs = {}
            for widget in vars(gui).values() if not hasattr(gui, "children") else _family(gui):
                name = widget.property("SlicerParameterName") if hasattr(widget, "property") else None
                if name and name not in parameters:
                    raise ValueError(f"{widget.name} is bound to {name}, which {cls.__name__} does not have")
                if name:
                    pairs[name] = widget
            return self.connectParametersToGui(pairs)

        def connectParametersToGui(self, pairs: Mapping[str, Any]) -> int:
            """Binds widgets by the name of the parameter; an ID to undo it."""
            tag = max(self._bindings, default=0) + 1
            self._bindings[tag] = _Binding(self, pairs)
            return tag

        def disconnectGui(self, tag: int) -> None:
            """Undoes `connectGui`."""
            self._bindings.pop(tag).close()

        def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
            """Observes the node."""
            return int(self.parameterNode.AddObserver(event, callback, priority))

        def RemoveObserver(self, tag: int) -> None:
            """Observes the node no longer."""
            self.parameterNode.RemoveObserver(tag)

        def Modified(self) -> None:
            """Tells the node's observers."""
            self.parameterNode.Modified()

    for name, parameter in parameters.items():
        setattr(Wrapper, name, parameter)
    Wrapper.__name__, Wrapper.__qualname__, Wrapper.__doc__ = cls.__name__, cls.__qualname__, cls.__doc__
    return Wrapper


def _family(widget: Any) -> list[Any]:
    """The widget and everything in it."""
    return [widget, *(one for child in widget.children() for one in _family(child))]


def parameter_node_module() -> types.ModuleType:
    """The module `slicer.parameterNodeWrapper`."""
    module = types.ModuleType("slicer.parameterNodeWrapper", __doc__)
    module.__dict__.update(
        parameterNodeWrapper=parameterNodeWrapper, Default=Default, WithinRange=WithinRange
    )
    return module
