"""The module `qt`, as Slicer's Python has it, over PySide6, whose classes have PythonQt's habits then."""

from __future__ import annotations

import difflib
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

from Testing.slicer.harness.ui_loader import UiLoader

_MODULES = (QtCore, QtGui, QtWidgets, QtNetwork)


class QFileDialog(QtWidgets.QFileDialog):
    """Answers with paths alone: the filter chosen is an out-argument in C++, which PythonQt leaves out."""

    @staticmethod
    def getOpenFileName(*arguments: Any, **options: Any) -> str:
        """One file to open; empty when cancelled."""
        return QtWidgets.QFileDialog.getOpenFileName(*arguments, **options)[0]

    @staticmethod
    def getOpenFileNames(*arguments: Any, **options: Any) -> tuple[str, ...]:
        """Several files to open; empty when cancelled."""
        return tuple(QtWidgets.QFileDialog.getOpenFileNames(*arguments, **options)[0])

    @staticmethod
    def getSaveFileName(*arguments: Any, **options: Any) -> str:
        """A file to write; empty when cancelled."""
        return QtWidgets.QFileDialog.getSaveFileName(*arguments, **options)[0]


class QInputDialog(QtWidgets.QInputDialog):
    """Answers with the value alone: whether it was accepted is an out-argument in C++."""

    @staticmethod
    def getText(*arguments: Any, **options: Any) -> str:
        """A line of text; empty when cancelled."""
        return QtWidgets.QInputDialog.getText(*arguments, **options)[0]

    @staticmethod
    def getItem(*arguments: Any, **options: Any) -> str:
        """One of a list."""
        return QtWidgets.QInputDialog.getItem(*arguments, **options)[0]

    @staticmethod
    def getInt(*arguments: Any, **options: Any) -> int:
        """A whole number."""
        return QtWidgets.QInputDialog.getInt(*arguments, **options)[0]

    @staticmethod
    def getDouble(*arguments: Any, **options: Any) -> float:
        """A number."""
        return QtWidgets.QInputDialog.getDouble(*arguments, **options)[0]


class QtNamespace(types.ModuleType):
    """`qt.QPushButton`, `qt.Qt.AlignLeft`, …; names that Qt does not have are refused."""

    def __init__(self) -> None:
        super().__init__("qt", __doc__)
        self.__dict__.update(QFileDialog=QFileDialog, QInputDialog=QInputDialog, QUiLoader=UiLoader)

    def __getattr__(self, name: str) -> Any:
        # Qt's names alone: PySide6's own, such as Signal and Slot, are unknown to PythonQt.
        if (name.startswith("Q") and not name.startswith("Qt")) or name == "Qt":
            for module in _MODULES:
                if hasattr(module, name):
                    return getattr(module, name)
        near = difflib.get_close_matches(name, [n for m in _MODULES for n in dir(m)], 1)
        raise AttributeError(f"module 'qt' has no {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
