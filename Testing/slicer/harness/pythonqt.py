"""PythonQt's habits on PySide6's classes: properties are attributes, signals are told by signatures.

PySide6 has methods (`button.text()`), Slicer's PythonQt has properties (`button.text`). `PythonQtHabits`
changes the classes of PySide6 themselves while it is open, so that widgets which Qt made, a `.ui` loader's,
and subclasses written in Python all behave alike; afterwards they are as before.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import Shiboken

_QT_CONNECT = QtCore.QObject.connect
_QT_DISCONNECT = QtCore.QObject.disconnect


class QtProperty:
    """One Qt property as an attribute of its class.

    Args:
        name: The property's.
        before: What the class has under this name: mostly the getter; `QTimer.singleShot` is a static method.
        writable: Whether it can be assigned.
    """

    def __init__(self, name: str, before: Any, writable: bool) -> None:
        self.name = name
        self._before = before
        self._writable = writable
        upper = name[0].upper() + name[1:]
        self._question, self._setter = f"is{upper}", f"set{upper}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:  # asked of the class: its own method, so `qt.QTimer.singleShot(0, f)` works
            return self if self._before is None else self._before.__get__(None, owner)
        question = getattr(type(instance), self._question, None)
        if question is not None:
            return question(instance)
        if self._before is not None and not isinstance(self._before, staticmethod):
            return self._before.__get__(instance, owner)()
        return instance.property(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not self._writable:
            raise AttributeError(f"{type(instance).__name__}.{self.name} can only be read")
        setter = getattr(instance, self._setter, None)
        if setter is not None:
            setter(value)
        elif not instance.setProperty(self.name, value):
            raise TypeError(f"{type(instance).__name__}.{self.name} cannot be set to {value!r}")


class _Name:
    """PythonQt's `name`: the object's name."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.objectName

    def __set__(self, instance: Any, value: str) -> None:
        instance.setObjectName(value)


class PythonQtHabits:
    """Changes PySide6's QObject classes from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> PythonQtHabits:
        changes = [change for cls in qobject_classes() for change in self._changes(cls)]
        for cls, name, value in changes:  # after all were worked out: they look at unchanged classes
            before = cls.__dict__.get(name)
            if before is None:
                self._undo.append(lambda cls=cls, name=name: delattr(cls, name))
            else:
                self._undo.append(lambda cls=cls, name=name, before=before: setattr(cls, name, before))
            setattr(cls, name, value)
        return self

    def __exit__(self, *error: object) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    @staticmethod
    def _changes(cls: type) -> Iterator[tuple[type, str, Any]]:
        """(class, name, new value) for one class."""
        meta = cls.staticMetaObject  # type: ignore[attr-defined]
        own = meta.propertyOffset()
        for index in range(meta.propertyCount()):
            prop = meta.property(index)
            name = prop.name()
            before = cls.__dict__.get(name)
            if index >= own or before is not None:
                yield cls, name, QtProperty(name, before, prop.isWritable())
        if cls is QtCore.QObject:
            yield cls, "name", _Name()
            yield cls, "className", lambda self: self.metaObject().className()
            yield cls, "delete", lambda self: Shiboken.delete(self)
        read = cls.__getattribute__

        def get(self: Any, name: str) -> Any:
            if name == "connect":  # PySide6 finds these two before it looks at the class
                return lambda *arguments: connect(self, *arguments)
            if name == "disconnect":
                return lambda *arguments: disconnect(self, *arguments)
            return read(self, name)

        yield cls, "__getattribute__", get
        yield cls, "__setattr__", _set


def qobject_classes() -> list[type]:
    """All QObject classes of PySide6's core, GUI and widgets."""
    found = {}
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            cls = getattr(module, name)
            if (
                isinstance(cls, type)
                and issubclass(cls, QtCore.QObject)
                and cls.__module__.startswith("PySide6")
            ):
                found[cls] = None
    return list(found)


def _set(self: Any, name: str, value: Any) -> None:
    """Assigns; refuses names that a plain Qt object does not have, as PythonQt does."""
    for cls in type(self).__mro__:
        descriptor = cls.__dict__.get(name)
        if descriptor is not None and hasattr(type(descriptor), "__set__"):
            descriptor.__set__(self, value)
            return
        if isinstance(descriptor, QtCore.Property) and descriptor.fset is not None:
            descriptor.fset(self, value)
            return
    native = type(self).__module__.startswith("PySide6") or "cpp_class" in type(self).__dict__
    qt_does_it = isinstance(
        value, QtCore.SignalInstance
    ) or (  # PySide6 keeps signals, QUiLoader named children
        isinstance(value, QtCore.QObject) and value.objectName == name
    )
    if native and not qt_does_it and not name.startswith("_"):
        near = difflib.get_close_matches(name, dir(type(self)), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise AttributeError(f"{type(self).__name__} has no property {name!r} that could be set{hint}")
    self.__dict__[name] = value


# (signature, slot as given, slot as connected) by the address of the sender, until it is destroyed.
_connections: dict[int, list[tuple[str, Callable[..., Any], Callable[..., Any]]]] = {}


def connect(sender: QtCore.QObject, signature: str, slot: Callable[..., Any]) -> bool:
    """`sender.connect("clicked(bool)", slot)`: PythonQt's way, with the exact C++ signature.

    The slot gets as many of the signal's arguments as it takes.

    Raises:
        ValueError: The sender has no such signal; the message names what it has.
        TypeError: The slot cannot be called.
    """
    if not callable(slot):
        raise TypeError(f"{signature} is to be connected to {slot!r}, which cannot be called")
    normal = _checked(sender, signature)
    limited = _limited(slot)
    named = getattr(type(sender), "cpp_signals", {}).get(normal)
    if named is not None:
        getattr(sender, named).connect(limited)
    else:
        _QT_CONNECT(sender, QtCore.SIGNAL(normal), limited)
    address = Shiboken.getCppPointer(sender)[0]
    if address not in _connections:
        _connections[address] = []
        _QT_CONNECT(sender, QtCore.SIGNAL("destroyed()"), lambda: _connections.pop(address, None))
    _connections[address].append((normal, slot, limited))
    return True


def disconnect(sender: QtCore.QObject, signature: str, slot: Callable[..., Any]) -> bool:
    """Undoes one `connect`; False where there is none.

    Raises:
        ValueError: The sender has no such signal.
    """
    normal = _checked(sender, signature)
    known = _connections.get(Shiboken.getCppPointer(sender)[0], [])
    for entry in known:
        if entry[0] == normal and entry[1] == slot:
            known.remove(entry)
            named = getattr(type(sender), "cpp_signals", {}).get(normal)
            if named is not None:
                return bool(getattr(sender, named).disconnect(entry[2]))
            return bool(_QT_DISCONNECT(sender, QtCore.SIGNAL(normal), entry[2]))
    return False


def signals(sender: QtCore.QObject) -> list[str]:
    """The signatures of all signals of an object."""
    meta = sender.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    found = [
        bytes(m.methodSignature().data()).decode()
        for m in methods
        if m.methodType() == QtCore.QMetaMethod.Signal
    ]
    return [*getattr(type(sender), "cpp_signals", {}), *(name for name in found if "PyObject" not in name)]


def _checked(sender: QtCore.QObject, signature: str) -> str:
    """The signature as Qt writes it."""
    normal = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    known = signals(sender)
    if normal not in known:
        name = normal.split("(")[0]
        near = [one for one in known if one.split("(")[0] == name] or difflib.get_close_matches(
            normal, known, 3
        )
        raise ValueError(
            f"{type(sender).__name__} has no signal {signature!r}; it has {', '.join(near or known)}"
        )
    return normal


def _limited(slot: Callable[..., Any]) -> Callable[..., Any]:
    """The slot, called with no more arguments than it takes."""
    try:
        parameters = inspect.signature(slot).parameters.values()
    except (TypeError, ValueError):  # a C++ method: it says no signature, Qt's slots take what they get
        return lambda *arguments: _call_longest(slot, arguments)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return lambda *arguments: slot(*arguments)
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return lambda *arguments: slot(*arguments[:count])


def _call_longest(slot: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    for count in range(len(arguments), 0, -1):
        try:
            return slot(*arguments[:count])
        except TypeError:
            continue
    return slot()
