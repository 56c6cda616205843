"""What `slicer.util` loads and saves with: `slicer.app.coreIOManager()`, for the usual files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from vtkmodules.vtkCommonCore import vtkCommand

if TYPE_CHECKING:
    from Testing.slicer.harness.application import SlicerApplication

#: The kinds of file by the end of their name, the longest first.
FILE_TYPES = {
    ".seg.nrrd": "SegmentationFile",
    ".seg.nhdr": "SegmentationFile",
    ".seg.vtm": "SegmentationFile",
    ".mrk.json": "MarkupsFile",
    ".nii.gz": "VolumeFile",
    ".fcsv": "MarkupsFile",
    ".nrrd": "VolumeFile",
    ".nhdr": "VolumeFile",
    ".mrml": "SceneFile",
    ".nii": "VolumeFile",
    ".mha": "VolumeFile",
    ".mhd": "VolumeFile",
    ".mrb": "SceneFile",
    ".tfm": "TransformFile",
    ".vtk": "ModelFile",
    ".vtp": "ModelFile",
    ".stl": "ModelFile",
    ".ply": "ModelFile",
    ".obj": "ModelFile",
    ".h5": "TransformFile",
}

#: The kind of file that a node is written as, by the most general class.
WRITERS = {
    "vtkMRMLSegmentationNode": "SegmentationFile",
    "vtkMRMLMarkupsNode": "MarkupsFile",
    "vtkMRMLVolumeNode": "VolumeFile",
    "vtkMRMLTransformNode": "TransformFile",
    "vtkMRMLModelNode": "ModelFile",
    "vtkMRMLTableNode": "TableFile",
    "vtkMRMLTextNode": "TextFile",
}

# vtkSlicerVolumesLogic's loading options, by the property that `slicer.util.loadVolume` documents.
_VOLUME_OPTIONS = {
    "labelmap": 0x1,
    "center": 0x2,
    "singleFile": 0x4,
    "autoWindowLevel": 0x8,
    "discardOrientation": 0x10,
}


class CoreIOManager:
    """Reads files into the scene and writes nodes and scenes, in Slicer's own C++.

    Args:
        application: Whose scene it is.
    """

    def __init__(self, application: SlicerApplication) -> None:
        self._application = application
        self._scene = application.scene
        # A bundle (.mrb) is unpacked and read through the scene's data manager.
        self._remote_io = slicer.vtkMRMLRemoteIOLogic()
        self._remote_io.SetMRMLScene(self._scene)
        self._remote_io.SetMRMLApplicationLogic(application.logic)
        self._remote_io.GetCacheManager().SetRemoteCacheDirectory(str(application.folder / "cache"))
        self._data_io = slicer.vtkDataIOManagerLogic()
        self._data_io.SetMRMLScene(self._scene)
        self._data_io.SetMRMLApplicationLogic(application.logic)
        self._data_io.SetAndObserveDataIOManager(self._remote_io.GetDataIOManager())
        self._remote_io.AddDataIOToScene()

    def close(self) -> None:
        """Takes the data manager off the scene."""
        self._remote_io.RemoveDataIOFromScene()

    def fileType(self, filename: str | Path) -> str:
        """The kind of a file by its name, such as "VolumeFile"; "NoFile" where it is not known."""
        name = Path(filename).name.lower()
        return next((kind for end, kind in FILE_TYPES.items() if name.endswith(end)), "NoFile")

    def fileWriterFileType(self, node: Any) -> str:
        """The kind of file that a node is saved as; "NoFile" where it cannot be."""
        return next((kind for class_name, kind in WRITERS.items() if node.IsA(class_name)), "NoFile")

    def loadNodes(self, kind: str, properties: Mapping[str, Any], nodes: Any, messages: Any = None) -> bool:
        """Reads a file into the scene.

        Args:
            kind: Such as "VolumeFile", see `FILE_TYPES`.
            properties: "fileName", and what `slicer.util`'s loaders document for the kind.
            nodes: A vtkCollection that takes the nodes read.
            messages: A vtkMRMLMessageCollection that takes the reason of a failure.

        Returns:
            Whether it was read.
        """
        path = Path(properties["fileName"])
        if not path.is_file():
            return _refuse(messages, f"There is no file {path}")
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear", False)), messages)
        readers = {
            "VolumeFile": self._load_volume,
            "SegmentationFile": self._load_segmentation,
            "MarkupsFile": self._load_markups,
            "ModelFile": self._load_model,
            "TransformFile": self._load_transform,
        }
        if kind not in readers:
            return _refuse(messages, f"This harness reads {', '.join(readers)}; {path.name} is {kind}")
        node = readers[kind](path, properties)
        if node is None:
            return _refuse(messages, f"{path} could not be read as {kind}")
        if nodes is not None:
            nodes.AddItem(node)
        return True

    def saveNodes(self, kind: str, properties: Mapping[str, Any], messages: Any = None) -> bool:
        """Writes a node by its own storage node, or the scene.

        Args:
            kind: "SceneFile", or the node's kind of file.
            properties: "fileName"; "nodeID" but for scenes.
            messages: A vtkMRMLMessageCollection that takes the reason of a failure.

        Returns:
            Whether it was written.
        """
        path = Path(properties["fileName"]).absolute()
        if kind == "SceneFile":
            return self._save_scene(path, messages)
        node = self._scene.GetNodeByID(properties["nodeID"])
        if node is None or not node.IsA("vtkMRMLStorableNode"):
            return _refuse(messages, f"{properties['nodeID']} is no node with data of its own")
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(str(path)):
            return _refuse(messages, f"{node.GetClassName()} has no storage node")
        storage = node.GetStorageNode()
        storage.SetFileName(str(path))
        storage.SetURI(None)
        storage.SetUseCompression(int(properties.get("useCompression", True)))
        return bool(storage.WriteData(node))

    def _load_volume(self, path: Path, properties: Mapping[str, Any]) -> Any | None:
        options = sum(
            flag for name, flag in _VOLUME_OPTIONS.items() if properties.get(name, name == "autoWindowLevel")
        )
        logic = slicer.modules.volumes.logic()
        node = logic.AddArchetypeVolume(str(path), str(properties.get("name") or _base_name(path)), options)
        if node is not None and properties.get("show", True):
            selection = self._application.logic.GetSelectionNode()
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            self._application.logic.PropagateVolumeSelection()
        return node

    def _load_segmentation(self, path: Path, properties: Mapping[str, Any]) -> Any | None:
        name = str(properties.get("name") or _base_name(path))
        return slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), True, name)

    def _load_markups(self, path: Path, properties: Mapping[str, Any]) -> Any | None:
        node_id = slicer.modules.markups.logic().LoadMarkups(
            str(path), str(properties.get("name") or _base_name(path))
        )
        return self._scene.GetNodeByID(node_id) if node_id else None

    def _load_model(self, path: Path, _properties: Mapping[str, Any]) -> Any | None:
        storage = slicer.vtkMRMLModelStorageNode()
        storage.SetFileName(str(path))
        node = self._scene.AddNewNodeByClass("vtkMRMLModelNode", _base_name(path))
        if not storage.ReadData(node):
            self._scene.RemoveNode(node)
            return None
        node.SetAndObserveStorageNodeID(self._scene.AddNode(storage).GetID())
        node.CreateDefaultDisplayNodes()
        return node

    def _load_transform(self, path: Path, _properties: Mapping[str, Any]) -> Any | None:
        return slicer.modules.transforms.logic().AddTransform(str(path), self._scene)

    def _load_scene(self, path: Path, clear: bool, messages: Any) -> bool:
        if path.suffix.lower() == ".mrb":
            return bool(self._scene.ReadFromMRB(str(path), clear, messages))
        self._scene.SetURL(str(path))
        return bool(self._scene.Connect(messages) if clear else self._scene.Import(messages))

    def _save_scene(self, path: Path, messages: Any) -> bool:
        if path.suffix.lower() == ".mrb":
            return bool(self._scene.WriteToMRB(str(path), None, messages))
        if path.suffix.lower() == ".mrml":
            self._scene.SetURL(str(path))
            self._scene.SetRootDirectory(str(path.parent))
            return bool(self._scene.Commit(str(path), messages))
        path.mkdir(parents=True, exist_ok=True)
        return bool(self._application.logic.SaveSceneToSlicerDataBundleDirectory(str(path), None, messages))


def _base_name(path: Path) -> str:
    """The file's name without its known ending."""
    ending = next((end for end in FILE_TYPES if path.name.lower().endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def _refuse(messages: Any, reason: str) -> bool:
    """Leaves the reason where `slicer.util` shows it from; always False."""
    if messages is not None:
        messages.AddMessage(vtkCommand.ErrorEvent, reason)
    return False
