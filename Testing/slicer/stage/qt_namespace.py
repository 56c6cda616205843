"""`qt` as Slicer's Python has it, over PySide6: what PythonQt does otherwise, and the tests rely on.

Qt properties are attributes, read and written without call; `connect` takes the exact signature; attributes
that Qt does not know are refused, as PythonQt refuses them when they are set.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

_MODULES = (QtCore, QtGui, QtWidgets)
_WRAPPER = "_gsmedseg_wrapper"


class Wrapped:
    """A QObject with PythonQt's habits."""

    def __init__(self, wrapped: QtCore.QObject) -> None:
        object.__setattr__(self, "q", wrapped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        q = self.q
        if name == "name":
            return q.objectName()
        if q.metaObject().indexOfProperty(name) >= 0:
            return wrap(q.property(name))
        if name in (n.data().decode() for n in q.dynamicPropertyNames()):
            return q.property(name)
        value = getattr(q, name)
        return _calling(value) if callable(value) else wrap(value)

    def __setattr__(self, name: str, value: Any) -> None:
        known = "objectName" if name == "name" else name
        if self.q.metaObject().indexOfProperty(known) < 0:
            raise AttributeError(f"{type(self.q).__name__} has no property {name!r}")
        if not self.q.setProperty(known, unwrap(value)):
            raise TypeError(f"{type(self.q).__name__}.{name} does not take {value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapped) and self.q is other.q

    def __hash__(self) -> int:
        return hash(id(self.q))

    def connect(self, signature: str, slot: Callable[..., Any]) -> bool:
        """Connect a signal, named by its exact signature."""
        self._signal(signature).connect(slot)
        return True

    def disconnect(self, signature: str, slot: Callable[..., Any]) -> bool:
        """Undo `connect`."""
        self._signal(signature).disconnect(slot)
        return True

    def className(self) -> str:
        """Of the wrapped object."""
        return type(self.q).__name__

    def dynamicPropertyNames(self) -> list[str]:
        """Those that the .ui file adds."""
        return [name.data().decode() for name in self.q.dynamicPropertyNames()]

    def _signal(self, signature: str) -> Any:
        name = signature.split("(")[0]
        slicers_own = getattr(self.q, "SIGNATURES", {})
        if signature in slicers_own:
            return getattr(self.q, name)
        normalized = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
        if self.q.metaObject().indexOfSignal(normalized) < 0 or name in slicers_own.values():
            raise ValueError(f"{type(self.q).__name__} has no signal {signature!r}")
        return getattr(self.q, name)


def wrap(value: Any) -> Any:
    """A QObject, or a list of them, with PythonQt's habits; anything else as it is."""
    if isinstance(value, QtCore.QObject):
        wrapper = getattr(value, _WRAPPER, None)
        if wrapper is None:
            wrapper = Wrapped(value)
            setattr(value, _WRAPPER, wrapper)
        return wrapper
    if isinstance(value, (list, tuple)):
        return type(value)(wrap(one) for one in value)
    return value


def unwrap(value: Any) -> Any:
    """What PySide6 takes."""
    if isinstance(value, Wrapped):
        return value.q
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(one) for one in value)
    return value


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return wrap(function(*unwrap(arguments), **{key: unwrap(value) for key, value in named.items()}))

    return call


class _Class:
    """A Qt class whose objects come wrapped, with its enumerations and static functions."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return wrap(self.cls(*unwrap(arguments), **{key: unwrap(value) for key, value in named.items()}))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.cls, name)
        return _calling(value) if callable(value) and not isinstance(value, type) else value

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(unwrap(instance), self.cls)


class QtNamespace(types.ModuleType):
    """The module `qt`: every Qt class by its name.

    Args:
        replaced: names that the harness answers itself, such as the loader of .ui files.
    """

    def __init__(self, replaced: dict[str, Any]) -> None:
        super().__init__("qt")
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        for module in _MODULES:
            value = getattr(module, name, None)
            if value is not None:
                plain = isinstance(value, type) and (issubclass(value, QtCore.QObject) or name == "QFile")
                return _Class(value) if plain else value
        raise AttributeError(f"qt has no {name!r}")
