"""Loads .ui files with Slicer's widgets; a class or property that nobody knows is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6.QtCore import QBuffer, QByteArray, QFile
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QWidget

from Testing.slicer.stage.qt_namespace import unwrap, wrap
from Testing.slicer.stage.slicer_widgets import CUSTOM_WIDGETS


class UiLoader:
    """`qt.QUiLoader`."""

    def load(self, file: Any) -> Any:
        """The widget of an open file."""
        source: QFile = unwrap(file)
        root = ElementTree.fromstring(bytes(source.readAll().data()))
        connections = root.find("connections")
        wired = [] if connections is None else list(connections)
        if connections is not None:
            root.remove(connections)  # their signatures name types that PySide6 does not have
        loader = QUiLoader()
        for cls in CUSTOM_WIDGETS.values():
            loader.registerCustomWidget(cls)
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(root)))
        buffer.open(QBuffer.OpenModeFlag.ReadOnly)
        widget = loader.load(buffer)
        if widget is None:
            raise RuntimeError(loader.errorString())
        by_name = {child.objectName(): child for child in [widget, *widget.findChildren(QWidget)]}
        _check(root, by_name)
        for connection in wired:
            sender, signal, receiver, slot = (
                connection.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot")
            )
            source_widget, target = wrap(by_name[sender]), by_name[receiver]
            source_widget.connect(signal, getattr(target, slot.split("(")[0]))
        return wrap(widget)


def _check(root: ElementTree.Element, by_name: dict[str, QWidget]) -> None:
    for element in root.iter("widget"):
        name, kind = element.get("name", ""), element.get("class", "")
        widget = by_name.get(name)
        if widget is None or type(widget).__name__ != kind:
            raise ValueError(f'widget "{name}": there is no class {kind!r}, or the name is taken')
        for prop in element.findall("property"):
            known = widget.metaObject().indexOfProperty(prop.get("name", "")) >= 0
            if not known and prop.get("stdset") != "0":
                raise ValueError(f'widget "{name}": {kind} has no property {prop.get("name")!r}')
