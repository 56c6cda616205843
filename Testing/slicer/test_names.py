"""Every name of Slicer, Qt and CTK that the module uses is a real one."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from Testing.slicer.conftest import ROOT

SOURCES = sorted([*(ROOT / "GSMedSeg").rglob("*.py"), *(ROOT / "GSMedSegLib" / "mrml").glob("*.py")])

# What is in Slicer's desktop application alone. Source: Slicer's API documentation, 5.8 to 5.12.
DESKTOP = {
    "slicer.app", "slicer.app.applicationLogic", "slicer.app.connect", "slicer.app.processEvents",
    "slicer.i18n", "slicer.i18n.tr", "slicer.i18n.translate", "slicer.mrmlScene",
    "slicer.parameterNodeWrapper", "slicer.parameterNodeWrapper.WithinRange",
    "slicer.parameterNodeWrapper.parameterNodeWrapper",
    "slicer.ScriptedLoadableModule", "slicer.ScriptedLoadableModule.ScriptedLoadableModule",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleLogic",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleTest",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget",
}  # fmt: skip

# Qt classes as PythonQt gives them.
QT = {"QApplication", "QFileDialog", "QIcon", "QKeySequence", "QSettings", "QShortcut", "QTimer"}

WIDGETS = {
    "QCheckBox", "QComboBox", "QFrame", "QLabel", "QLineEdit", "QPlainTextEdit", "QProgressBar",
    "QPushButton",
    "QRadioButton", "QToolButton", "ctkCollapsibleButton", "ctkSliderWidget", "qMRMLNodeComboBox",
    "qMRMLSegmentationShow3DButton", "qMRMLSegmentsTableView", "qMRMLWidget",
}  # fmt: skip


def names_in(path: Path) -> Iterator[str]:
    """Dotted names that begin with slicer, qt or ctk, and what is imported from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in ("slicer", "qt", "ctk")
        ):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in ("slicer", "qt", "ctk"):
                yield ".".join([inner.id, *reversed(parts)])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_slicers_names_are_real(path: Path):
    """Those of its core are looked up there; those of the desktop stand in the table above."""
    import slicer
    import slicer.util

    for name in names_in(path):
        package, *parts = name.split(".")
        if package != "slicer":
            assert package == "qt", f"{path.name} uses {name}"
            assert parts[0] in QT, f"{path.name} uses {name}: put it into the table if PythonQt has it"
            continue
        if (
            name in DESKTOP
            or ".".join([package, *parts[:2]]) in DESKTOP
            or f"slicer.{parts[0]}" in DESKTOP - {"slicer.app"}
        ):
            continue
        found = slicer
        for part in parts:
            assert hasattr(found, part), f"{path.name} uses {name}, which Slicer's core does not have"
            found = getattr(found, part)


def test_widgets_and_properties_are_real():
    """Classes by the table, properties by the harness's loader, which refuses what Qt and it do not know."""
    root = ElementTree.parse(ROOT / "GSMedSeg" / "Resources" / "UI" / "GSMedSeg.ui").getroot()
    assert {element.get("class") for element in root.iter("widget")} <= WIDGETS
    names = [element.get("name") for element in root.iter("widget")]
    assert len(names) == len(set(names))


def test_every_widget_named_in_code_is_in_the_file():
    root = ElementTree.parse(ROOT / "GSMedSeg" / "Resources" / "UI" / "GSMedSeg.ui").getroot()
    names = {element.get("name") for element in root.iter("widget")}
    for path in (ROOT / "GSMedSeg" / "GSMedSegUI").glob("*.py"):
        for used in re.findall(r"\bui\.(\w+)", path.read_text(encoding="utf-8")):
            assert used in names, f"{path.name} uses ui.{used}"


def texts_shown_in(path: Path) -> Iterator[str]:
    """Literals of several words that are neither a docstring nor within `_(...)`: what a user may read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed: set[int] = set()
    for node in ast.walk(tree):
        translated = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if translated or docstring:
            passed |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            yield from re.findall(r".*[a-z] [a-z].*", node.value)


@pytest.mark.parametrize("path", sorted((ROOT / "GSMedSeg").rglob("*.py")), ids=lambda path: path.name)
def test_texts_can_be_translated(path: Path):
    assert set(texts_shown_in(path)) <= {"GSMedSeg contributors"}
