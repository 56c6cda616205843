"""Slicer's own widgets, bound to the real scene: names and behaviour are Slicer's, looks are Qt's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import slicer
from PySide6.QtCore import Property, QItemSelection, QObject, QSignalBlocker, Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QInputDialog,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)


def _flag(name: str, default: bool) -> Property:
    """A Boolean property that is kept; the widget is refreshed when it is set."""
    key = f"_{name}"

    def write(self: Any, value: bool) -> None:
        setattr(self, key, bool(value))
        self.refresh()

    return Property(bool, lambda self: getattr(self, key, default), write)


class _Observations:
    """VTK observers that are removed together."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def add(self, subject: Any, event: Any, callback: Any) -> None:
        self._tags.append((subject, subject.AddObserver(event, callback)))

    def clear(self) -> None:
        for subject, tag in self._tags:
            subject.RemoveObserver(tag)
        self._tags.clear()


class qMRMLWidget(QWidget):
    """A widget that knows the scene and tells those that are connected to it."""

    cpp_class = True
    mrmlSceneChanged = Signal(object)
    cpp_signals: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    _scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(QWidget):
    """Chooses a node of the scene. Nothing is chosen by itself but what the user creates here."""

    cpp_class = True
    currentNodeChanged = Signal(object)
    nodeAddedByUser = Signal(object)
    currentNodeIDChanged = Signal(str)
    _changed_at_all = Signal(bool)
    cpp_signals: ClassVar = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_changed_at_all",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
    }

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._types: list[str] = []
        self._scene: Any = None
        self._node: Any = None
        self._base_name = ""
        self._watched = _Observations()
        self._watched_nodes = _Observations()
        self._box = QComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.activated.connect(self._on_activated)
        watched, nodes = self._watched, self._watched_nodes
        self.destroyed.connect(lambda: (watched.clear(), nodes.clear()))

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._watched.clear()
        self._scene = scene
        if scene is not None:
            for event in ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent"):
                self._watched.add(scene, getattr(slicer.vtkMRMLScene, event), lambda *_: self.refresh())
        self.refresh()

    def currentNode(self) -> Any | None:
        return self._node

    def setCurrentNode(self, node: Any | None) -> None:
        """Chooses a node of the scene and of one of the types, or none; another is taken as none."""
        self._choose(node if node in self._nodes() else None)
        self.refresh()

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id and self._scene is not None else None)

    def nodeCount(self) -> int:
        return len(self._nodes())

    def addNode(self, class_name: str = "") -> Any:
        """What "Create new" does: adds a node and, as `selectNodeUponCreation` says, chooses it."""
        class_name = class_name or self._types[0]
        base = self._base_name or slicer.vtkMRMLScene().CreateNodeByClass(class_name).GetNodeTagName()
        node = self._scene.AddNewNodeByClass(class_name, self._scene.GenerateUniqueName(base))
        if self.property("selectNodeUponCreation"):
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def setNodeTypes(self, types: Sequence[str]) -> None:
        self._types = list(types)
        self.refresh()

    def refresh(self) -> None:
        """Lists the nodes anew."""
        nodes = self._nodes()
        if self._node is not None and self._node not in nodes:
            self._choose(None)
        self._watched_nodes.clear()
        for node in nodes:
            self._watched_nodes.add(node, "ModifiedEvent", self._on_node_modified)
        with QSignalBlocker(self._box):
            self._box.clear()
            if self.property("noneEnabled") or self._node is None:
                self._box.addItem("None" if self.property("noneEnabled") else "Select a node", ("none", None))
            for node in nodes:
                self._box.addItem(node.GetName() or node.GetID(), ("node", node.GetID()))
                if node is self._node:
                    self._box.setCurrentIndex(self._box.findText(node.GetName() or node.GetID()))
            if self.property("addEnabled"):
                for class_name in self._types:
                    self._box.addItem(
                        f"Create new {class_name.removeprefix('vtkMRML').removesuffix('Node')}",
                        ("add", class_name),
                    )
            if self._node is not None and self.property("renameEnabled"):
                self._box.addItem("Rename current…", ("rename", None))
            if self._node is not None and self.property("removeEnabled"):
                self._box.addItem("Delete current", ("remove", None))

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        found = []
        for kind in self._types:
            nodes = self._scene.GetNodesByClass(kind)
            nodes.UnRegister(None)
            found += [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
        exact = [
            node
            for node in found
            if self.property("showChildNodeTypes") or node.GetClassName() in self._types
        ]
        return [node for node in exact if self.property("showHidden") or not node.GetHideFromEditors()]

    def _choose(self, node: Any | None) -> None:
        if node is self._node:
            return
        self._node = node
        self.currentNodeChanged.emit(node)
        self._changed_at_all.emit(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _on_activated(self, index: int) -> None:
        action, argument = self._box.itemData(index)
        if action in ("none", "node"):
            self.setCurrentNodeID(argument or "")
        elif action == "add":
            self.addNode(argument)
        elif action == "remove":
            self._scene.RemoveNode(self._node)
        else:
            name, accepted = QInputDialog.getText(self, "Rename", "Name:", text=self._node.GetName())
            if accepted and name:
                self._node.SetName(name)
        self.refresh()

    def _on_node_modified(self, node: Any, _event: str) -> None:
        index = next(
            (i for i in range(self._box.model().rowCount()) if self._box.itemData(i)[1] == node.GetID()), -1
        )
        if index >= 0 and self._box.itemText(index) != node.GetName():
            self._box.setItemText(index, node.GetName() or node.GetID())

    def _set_base_name(self, name: str) -> None:
        self._base_name = name

    nodeTypes = Property("QStringList", lambda self: self._types, setNodeTypes)
    currentNodeID = Property(str, lambda self: self._node.GetID() if self._node else "", setCurrentNodeID)
    baseName = Property(str, lambda self: self._base_name, _set_base_name)
    noneEnabled = _flag("none_enabled", False)
    addEnabled = _flag("add_enabled", True)
    removeEnabled = _flag("remove_enabled", True)
    editEnabled = _flag("edit_enabled", False)
    renameEnabled = _flag("rename_enabled", False)
    selectNodeUponCreation = _flag("select_upon_creation", True)
    showHidden = _flag("show_hidden", False)
    showChildNodeTypes = _flag("show_child_types", True)


class qMRMLSegmentsTableView(qMRMLWidget):
    """The segments of a segmentation: visibility, colour, name; rows can be selected and renamed."""

    cpp_class = True
    selectionChanged = Signal(QItemSelection, QItemSelection)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._refreshing = False
        self._watched = _Observations()
        self._table = QTableWidget(0, 3, self)
        self._table.setHorizontalHeaderLabels(["Show", "Color", "Name"])
        self._table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self._table.verticalHeader().hide()
        header = self._table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._table.selectionModel().selectionChanged.connect(self._on_selection)
        self._table.itemChanged.connect(self._on_item)
        watched = self._watched
        self.destroyed.connect(lambda: watched.clear())

    def segmentationNode(self) -> Any | None:
        return self._node

    def setSegmentationNode(self, node: Any | None) -> None:
        if node is self._node:
            return
        self._watched.clear()
        self._node = node
        if node is not None:
            events = slicer.vtkSegmentation
            for event in (events.SegmentAdded, events.SegmentRemoved, events.SegmentModified):
                self._watched.add(node, event, lambda *_: self.refresh())
            self._watched.add(
                node, slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, lambda *_: self.refresh()
            )
        self.refresh()

    def segmentCount(self) -> int:
        return len(self._ids())

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        rows = sorted(index.row() for index in self._table.selectionModel().selectedRows())
        return tuple(self._table.item(row, 2).data(Qt.ItemDataRole.UserRole) for row in rows)

    def setSelectedSegmentIDs(self, segment_ids: Sequence[str]) -> None:
        self._table.clearSelection()
        mode = self._table.property("selectionMode")
        self._table.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for row in range(self._table.model().rowCount()):
            if self._table.item(row, 2).data(Qt.ItemDataRole.UserRole) in segment_ids:
                self._table.selectRow(row)
        self._table.setSelectionMode(QAbstractItemView.SelectionMode(mode))

    def clearSelection(self) -> None:
        self._table.clearSelection()

    def setSelectionMode(self, mode: Any) -> None:
        self._table.setSelectionMode(QAbstractItemView.SelectionMode(mode))

    def rowOf(self, segment_id: str) -> Any:
        """The rectangle of a segment's name in this widget, for a test's mouse."""
        item = self._table.item(self._ids().index(segment_id), 2)
        rectangle = self._table.visualItemRect(item)
        return rectangle.translated(
            self._table.viewport().mapTo(self, rectangle.topLeft()) - rectangle.topLeft()
        )

    def refresh(self) -> None:
        """Lists the segments anew; the selection stays where it can."""
        selected = self.selectedSegmentIDs()
        self._refreshing = True
        with QSignalBlocker(self._table), QSignalBlocker(self._table.selectionModel()):
            self._table.setRowCount(0)
            for row, segment_id in enumerate(self._ids()):
                self._table.insertRow(row)
                self._fill(row, segment_id)
            self.setSelectedSegmentIDs(selected)
        self._refreshing = False
        if self.selectedSegmentIDs() != selected:
            self.selectionChanged.emit(QItemSelection(), QItemSelection())

    def _ids(self) -> list[str]:
        return list(self._node.GetSegmentation().GetSegmentIDs()) if self._node is not None else []

    def _fill(self, row: int, segment_id: str) -> None:
        segment = self._node.GetSegmentation().GetSegment(segment_id)
        display = self._node.GetDisplayNode()
        shown = QTableWidgetItem()
        shown.setFlags(
            Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        )
        visible = display is None or display.GetSegmentVisibility(segment_id)
        shown.setCheckState(Qt.CheckState.Checked if visible else Qt.CheckState.Unchecked)
        color = QTableWidgetItem()
        color.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
        color.setData(Qt.ItemDataRole.DecorationRole, QColor.fromRgbF(*segment.GetColor()))
        name = QTableWidgetItem(segment.GetName())
        name.setData(Qt.ItemDataRole.UserRole, segment_id)
        for column, item in enumerate((shown, color, name)):
            self._table.setItem(row, column, item)

    def _on_selection(self, selected: QItemSelection, deselected: QItemSelection) -> None:
        if not self._refreshing:
            self.selectionChanged.emit(selected, deselected)

    def _on_item(self, item: QTableWidgetItem) -> None:
        segment_id = self._table.item(item.row(), 2).data(Qt.ItemDataRole.UserRole)
        if item.column() == 2:
            self._node.GetSegmentation().GetSegment(segment_id).SetName(item.text())
        elif item.column() == 0 and self._node.GetDisplayNode() is not None:
            shown = item.checkState() == Qt.CheckState.Checked
            self._node.GetDisplayNode().SetSegmentVisibility(segment_id, shown)

    headerVisible = _flag("header_visible", True)
    visibilityColumnVisible = _flag("visibility_visible", True)
    colorColumnVisible = _flag("color_visible", True)
    opacityColumnVisible = _flag("opacity_visible", True)
    statusColumnVisible = _flag("status_visible", False)
    readOnly = _flag("read_only", False)


class qMRMLSegmentationShow3DButton(QPushButton):
    """Makes closed surfaces and shows them in 3D while it is down."""

    cpp_class = True
    _node: Any = None

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setText("Show 3D")
        self.setEnabled(False)
        self.toggled.connect(self._on_toggled)

    def segmentationNode(self) -> Any | None:
        return self._node

    def setSegmentationNode(self, node: Any | None) -> None:
        self._node = node
        self.setEnabled(node is not None)
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        with QSignalBlocker(self):
            self.setChecked(node is not None and node.GetSegmentation().ContainsRepresentation(surface))

    def _on_toggled(self, down: bool) -> None:
        if self._node is None:
            return
        if down:
            self._node.CreateClosedSurfaceRepresentation()
            self._node.GetDisplayNode().SetVisibility3D(True)
        else:
            self._node.RemoveClosedSurfaceRepresentation()


QMRML_WIDGETS: dict[str, type[QObject]] = {
    cls.__name__: cls
    for cls in (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView, qMRMLSegmentationShow3DButton)
}
