"""What Slicer has in Python beside its core: scripted modules, translation, sample data."""

from __future__ import annotations

import shutil
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import slicer
from PySide6.QtWidgets import QVBoxLayout, QWidget

from Testing.slicer.harness.parameter_node import parameter_node_module


class ScriptedModuleObject:
    """The C++ object of a scripted module: `parent` in its `__init__`, and `slicer.modules.x`.

    Args:
        path: Of the module's file.
    """

    _OPEN = frozenset(
        [
            "title",
            "categories",
            "dependencies",
            "contributors",
            "helpText",
            "acknowledgementText",
            "icon",
            "hidden",
            "index",
        ]
    )

    def __init__(self, path: Path) -> None:
        values: dict[str, Any] = {
            "name": path.stem,
            "path": str(path),
            "title": path.stem,
            "categories": [],
            "dependencies": [],
            "contributors": [],
            "helpText": "",
            "acknowledgementText": "",
            "icon": None,
            "hidden": False,
            "index": -1,
            "_representation": None,
        }
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._OPEN:
            raise AttributeError(f"a module has no property {name!r}; it has {', '.join(sorted(self._OPEN))}")
        self.__dict__[name] = value

    def widgetRepresentation(self) -> ScriptedModulePanel:
        """The module's panel, made when it is first asked for."""
        if self._representation is None:
            self.__dict__["_representation"] = ScriptedModulePanel()
        return self._representation

    def logic(self) -> Any:
        """The logic that Slicer itself makes for a scripted module: the one with its share folder."""
        return slicer.vtkSlicerScriptedLoadableModuleLogic()


class ScriptedModulePanel(QWidget):
    """The C++ widget of a scripted module: `parent` of the Python one."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("modulePanel")
        self._python: Any = None
        QVBoxLayout(self)

    def mrmlScene(self) -> Any:
        """The scene."""
        return slicer.mrmlScene

    def setMRMLScene(self, scene: Any) -> None:
        """Slicer hands the scene to each panel; here there is only one."""

    def self(self) -> Any:
        """The Python widget."""
        return self._python


class ScriptedLoadableModule:
    """The base class of a module."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = self.moduleName

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """A sentence with a link to the documentation."""
        return f'<p>See the <a href="{docPage or self.moduleName}">documentation</a>.</p>'


class ScriptedLoadableModuleWidget:
    """The base class of a module's panel: `parent`, `layout`, and what Slicer calls."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent if parent is not None else ScriptedModulePanel()
        self.layout = self.parent.layout()
        setattr(slicer.modules, type(self).__name__, self)

    def resourcePath(self, filename: str) -> str:
        """A file in the module's Resources folder."""
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        """Slicer's own adds the developer's buttons."""

    def cleanup(self) -> None:
        """Called when the module goes."""

    def enter(self) -> None:
        """Called when the module is shown."""

    def exit(self) -> None:
        """Called when another module is shown."""


class ScriptedLoadableModuleLogic:
    """The base class of a module's logic: it keeps the parameter node."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def createParameterNode(self) -> Any:
        """A new parameter node."""
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetNodeReferenceID("parameterNode", None)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node

    def getParameterNode(self) -> Any:
        """The module's parameter node, added to the scene when it is not there."""
        found = self.getAllParameterNodes()
        return found[0] if found else slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        """All of the module's parameter nodes."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetModuleName() == self.moduleName]


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The base class of a module's own test."""

    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)

    def runTest(self) -> None:
        """The module's."""

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        """Tells how far the test is; without the delay."""
        slicer.util.delayDisplay(message, 0)


class SampleDataSource:
    """One entry of the module Sample Data."""

    def __init__(
        self,
        sampleName: str | None = None,
        sampleDescription: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        checksums: Any = None,
        loadFiles: Any = None,
        customDownloader: Callable[[Any], Any] | None = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFileProperties: Any = None,
    ) -> None:
        self.sampleName = sampleName
        self.sampleDescription = sampleDescription or sampleName
        self.uris, self.fileNames, self.nodeNames = _many(uris), _many(fileNames), _many(nodeNames)
        self.checksums, self.loadFiles = _many(checksums), _many(loadFiles)
        self.customDownloader = customDownloader
        self.thumbnailFileName = thumbnailFileName
        self.loadFileTypes, self.loadFileProperties = _many(loadFileTypes), loadFileProperties or {}


class SampleDataLogic:
    """Registers and loads sample data; nothing is downloaded here."""

    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", **source: Any) -> None:
        """Adds an entry."""
        sources = vars(slicer.modules).setdefault("sampleDataSources", {})
        sources.setdefault(category, []).append(SampleDataSource(**source))

    def sourceForSampleName(self, sampleName: str) -> SampleDataSource | None:
        """The entry of a name."""
        groups = getattr(slicer.modules, "sampleDataSources", {}).values()
        return next((one for group in groups for one in group if one.sampleName == sampleName), None)

    def downloadSamples(self, sampleName: str) -> list[Any]:
        """Loads an entry's nodes.

        Raises:
            ValueError: There is no such entry.
            OSError: It lies on a server; the harness uses no network.
        """
        source = self.sourceForSampleName(sampleName)
        if source is None:
            raise ValueError(f"there is no sample data {sampleName!r}")
        if source.customDownloader is not None:
            return list(source.customDownloader(source))
        nodes = []
        for index, uri in enumerate(source.uris):
            parts = urlparse(uri)
            if parts.scheme != "file":
                raise OSError(f"{uri} is not on this machine, and the harness downloads nothing")
            name = source.fileNames[index] if index < len(source.fileNames) else Path(parts.path).name
            path = Path(slicer.app.cachePath) / name
            shutil.copyfile(url2pathname(parts.path), path)
            node_name = source.nodeNames[index] if index < len(source.nodeNames) else None
            kind = source.loadFileTypes[index] if index < len(source.loadFileTypes) else None
            nodes.append(
                slicer.util.loadNodeFromFile(str(path), kind, {"name": node_name} if node_name else {})
            )
        return nodes

    def downloadSample(self, sampleName: str) -> Any:
        """Loads an entry's first node."""
        return self.downloadSamples(sampleName)[0]


def _many(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) or not isinstance(value, list | tuple) else list(value)


def _translate(_context: str, text: str) -> str:
    """The text: the harness speaks English."""
    return text


def scripted_modules() -> dict[str, types.ModuleType]:
    """The Python modules that Slicer has and its core has not, by their name."""
    scripted = types.ModuleType("slicer.ScriptedLoadableModule", __doc__)
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    scripted.__dict__.update({cls.__name__: cls for cls in bases})
    scripted.__dict__["__all__"] = [cls.__name__ for cls in bases]
    i18n = types.ModuleType("slicer.i18n", __doc__)
    i18n.__dict__.update(tr=lambda text: text, translate=_translate, getContext=lambda path: Path(path).stem)
    samples = types.ModuleType("SampleData", __doc__)
    samples.__dict__.update(SampleDataLogic=SampleDataLogic, SampleDataSource=SampleDataSource)
    return {
        "slicer.ScriptedLoadableModule": scripted,
        "slicer.parameterNodeWrapper": parameter_node_module(),
        "slicer.i18n": i18n,
        "SampleData": samples,
    }
