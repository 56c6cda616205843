"""`qt.QUiLoader`: reads a .ui file with Slicer's widgets in it, and refuses what Slicer would not know."""

from __future__ import annotations

import difflib
import functools
import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from Testing.slicer.harness.ctk_namespace import CTK_WIDGETS
from Testing.slicer.harness.pythonqt import connect
from Testing.slicer.harness.qmrml_widgets import QMRML_WIDGETS

CUSTOM_WIDGETS = {**CTK_WIDGETS, **QMRML_WIDGETS}


class UiLoader:
    """Loads .ui files."""

    def load(self, file: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """The widget that an open file describes, with its connections made.

        Raises:
            ValueError: A widget class or a property that is not known, or a connection that cannot be made.
            RuntimeError: The file is no .ui file.
        """
        root = ElementTree.fromstring(file.readAll().data())
        _check(root)
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)  # made below: Qt does not know the signals that name MRML's types
        loader = QtUiTools.QUiLoader()
        for cls in CUSTOM_WIDGETS.values():
            loader.registerCustomWidget(cls)
        buffer = QtCore.QBuffer()
        buffer.setData(QtCore.QByteArray(ElementTree.tostring(root)))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = loader.load(buffer, parent)
        if widget is None:
            raise RuntimeError(f"the .ui file could not be loaded: {loader.errorString()}")
        for connection in connections if connections is not None else ():
            _wire(widget, *(connection.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot")))
        return widget


@functools.cache
def _properties(cls: type) -> list[str]:
    """The names of a class's properties; kept, for PySide6 throws a used class's meta-object away."""
    meta = cls.staticMetaObject  # type: ignore[attr-defined]
    return [meta.property(index).name() for index in range(meta.propertyCount())]


def _check(root: ElementTree.Element) -> None:
    """Raises ValueError with all unknown classes and properties."""
    faults = []
    for element in root.iter("widget"):
        class_name, name = element.get("class", ""), element.get("name", "")
        cls = CUSTOM_WIDGETS.get(class_name) or getattr(QtWidgets, class_name, None)
        if class_name == "Line":  # Designer's name of a QFrame
            cls = QtWidgets.QFrame
        if cls is None:
            faults.append(f"{name}: no widget class {class_name}")
            continue
        known = _properties(cls)
        for prop in element.findall("property"):
            wanted = prop.get("name", "")
            if (
                prop.get("stdset") == "0"
                or wanted in known
                or (class_name == "Line" and wanted == "orientation")
            ):
                continue
            near = difflib.get_close_matches(wanted, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            faults.append(f"{name}: {class_name} has no property {wanted}{hint}")
    if faults:
        raise ValueError("the .ui file asks for what Slicer does not have: " + "; ".join(faults))


def _wire(root: Any, sender: str, signal: str, receiver: str, slot: str) -> None:
    """Makes one of the file's connections."""
    ends = []
    for name in (sender, receiver):
        found = root if root.objectName == name else root.findChild(QtCore.QObject, name)
        if found is None:
            raise ValueError(f"the .ui file connects {name}, which it does not have")
        ends.append(found)
    method = getattr(type(ends[1]), slot.split("(")[0], None)
    if method is None:
        raise ValueError(f"the .ui file connects to {receiver}.{slot}, and there is no such slot")
    connect(ends[0], signal, lambda *arguments: method(ends[1], *arguments))
