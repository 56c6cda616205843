"""Slicer's own widgets, as far as the modules under test use them, bound to the real scene."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6.QtCore import Property, QItemSelection, Qt, Signal
from PySide6.QtGui import QColor, QIcon, QPixmap
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)


class _Flag:
    """A Boolean property that is kept and has no effect here."""

    def __new__(cls, name: str, default: bool = True) -> Any:
        key = f"_{name}"
        return Property(
            bool, lambda self: getattr(self, key, default), lambda self, value: setattr(self, key, value)
        )


class ctkCollapsibleButton(QWidget):
    """A section with a title that folds away."""

    contentsCollapsed = Signal(bool)
    SIGNATURES: ClassVar = {"contentsCollapsed(bool)": "contentsCollapsed"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._button = QToolButton(self)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setStyleSheet("font-weight: bold; border: none; padding: 4px; text-align: left;")
        self._button.clicked.connect(lambda: self.setCollapsed(not self._collapsed))
        self._collapsed = False
        self._arrow()

    def _arrow(self) -> None:
        self._button.setArrowType(Qt.ArrowType.RightArrow if self._collapsed else Qt.ArrowType.DownArrow)

    def isCollapsed(self) -> bool:
        return self._collapsed

    def setCollapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            if child is not self._button:
                child.setHidden(collapsed)
        self._arrow()
        self._fit()
        self.contentsCollapsed.emit(collapsed)

    def _fit(self) -> None:
        self.setMaximumHeight(self._button.sizeHint().height() + 4 if self._collapsed else 16777215)

    def resizeEvent(self, event: Any) -> None:
        self._button.resize(self.width(), self._button.sizeHint().height())
        super().resizeEvent(event)

    def showEvent(self, event: Any) -> None:
        if self.layout() is not None:
            self.layout().setContentsMargins(8, self._button.sizeHint().height() + 4, 8, 4)
        self.setCollapsed(self._collapsed)
        super().showEvent(event)

    def _text(self) -> str:
        return self._button.text()

    def _set_text(self, text: str) -> None:
        self._button.setText(text)

    text = Property(str, _text, _set_text)
    collapsed = Property(bool, isCollapsed, setCollapsed)


class ctkSliderWidget(QWidget):
    """A slider beside a spin box."""

    valueChanged = Signal(float)
    SIGNATURES: ClassVar = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._box = QSlider(Qt.Orientation.Horizontal, self), QDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._slider.valueChanged.connect(lambda n: self._box.setValue(n * self._box.singleStep()))
        self._box.valueChanged.connect(self._changed)

    def _changed(self, value: float) -> None:
        self._slider.setMaximum(round(self._box.maximum() / self._box.singleStep()))
        self._slider.setValue(round(value / self._box.singleStep()))
        self.valueChanged.emit(value)

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    value = Property(float, lambda self: self._box.value(), setValue)
    minimum = Property(float, lambda self: self._box.minimum(), lambda self, v: self._box.setMinimum(v))
    maximum = Property(float, lambda self: self._box.maximum(), lambda self, v: self._box.setMaximum(v))
    singleStep = Property(
        float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v)
    )
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, v: self._box.setDecimals(v))
    suffix = Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))


class qMRMLWidget(QWidget):
    """A widget that knows the scene."""

    mrmlSceneChanged = Signal(object)
    SIGNATURES: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(qMRMLWidget):
    """Chooses a node of the scene. Like Slicer's it chooses none by itself."""

    currentNodeChanged = Signal(object)
    SIGNATURES: ClassVar = {"currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._combo = QComboBox(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._types: list[str] = []
        self._node: Any = None
        self._scene_tags: list[int] = []
        self._combo.activated.connect(lambda n: self._choose(self._combo.itemData(n)))

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._scene_tags:
            self._scene.RemoveObserver(tag)
        self._scene_tags = []
        super().setMRMLScene(scene)
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent):
                self._scene_tags.append(scene.AddObserver(event, lambda *_: self._fill()))
        self._fill()

    def currentNode(self) -> Any:
        return self._node

    def currentNodeID(self) -> str:
        return "" if self._node is None else self._node.GetID()

    def setCurrentNode(self, node: Any) -> None:
        if node is not self._node:
            self._node = node
            self._fill()
            self.currentNodeChanged.emit(node)

    def addNode(self) -> Any:
        node = self._scene.AddNewNodeByClass(self._types[0])
        self.setCurrentNode(node)
        return node

    def _choose(self, node_id: str | None) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id else None)

    def _fill(self) -> None:
        nodes = []
        for kind in self._types if self._scene is not None else []:
            found = self._scene.GetNodesByClass(kind)
            found.UnRegister(None)
            nodes += [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]
        if self._node is not None and self._node not in nodes:
            self._node = None
            self.currentNodeChanged.emit(None)
        self._combo.clear()
        self._combo.addItem("None" if self.noneEnabled else "", None)
        for node in nodes:
            if not node.GetHideFromEditors():
                self._combo.addItem(node.GetName(), node.GetID())
        self._combo.setCurrentIndex(max(0, self._combo.findData(self.currentNodeID())))

    def _set_types(self, types: list[str]) -> None:
        self._types = list(types)

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = _Flag("noneEnabled", False)
    addEnabled = _Flag("addEnabled")
    removeEnabled = _Flag("removeEnabled")
    renameEnabled = _Flag("renameEnabled", False)
    editEnabled = _Flag("editEnabled", False)
    selectNodeUponCreation = _Flag("selectNodeUponCreation")


class qMRMLSegmentsTableView(qMRMLWidget):
    """The segments of a segmentation with their colours."""

    selectionChanged = Signal(QItemSelection, QItemSelection)
    SIGNATURES: ClassVar = {"selectionChanged(QItemSelection,QItemSelection)": "selectionChanged"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._table = QTableWidget(0, 2, self)
        self._table.setHorizontalHeaderLabels(["", "Name"])
        self._table.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self._table.setColumnWidth(0, 28)
        self._table.verticalHeader().hide()
        self._table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._node: Any = None
        self._tags: list[int] = []
        self._table.itemSelectionChanged.connect(
            lambda: self.selectionChanged.emit(QItemSelection(), QItemSelection())
        )

    def setSegmentationNode(self, node: Any) -> None:
        if node is self._node:
            return
        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._node, self._tags = node, []
        if node is not None:
            segmentation = slicer.vtkSegmentation
            for event in (
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.SegmentModified,
            ):
                self._tags.append(node.AddObserver(event, lambda *_: self._fill()))
        self._fill()

    def segmentationNode(self) -> Any:
        return self._node

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        rows = sorted({index.row() for index in self._table.selectedIndexes()})
        return tuple(self._table.item(row, 1).data(Qt.ItemDataRole.UserRole) for row in rows)

    def setSelectedSegmentIDs(self, names: Any) -> None:
        self._table.clearSelection()
        for row in range(self._table.rowCount()):
            if self._table.item(row, 1).data(Qt.ItemDataRole.UserRole) in names:
                self._table.selectRow(row)

    def _fill(self) -> None:
        chosen = self.selectedSegmentIDs()
        self._table.blockSignals(True)
        self._table.setRowCount(0)
        ids = [] if self._node is None else list(self._node.GetSegmentation().GetSegmentIDs())
        for row, name in enumerate(ids):
            segment = self._node.GetSegmentation().GetSegment(name)
            swatch = QPixmap(16, 16)
            swatch.fill(QColor.fromRgbF(*segment.GetColor()))
            self._table.insertRow(row)
            self._table.setItem(row, 0, QTableWidgetItem(QIcon(swatch), ""))
            item = QTableWidgetItem(segment.GetName())
            item.setData(Qt.ItemDataRole.UserRole, name)
            self._table.setItem(row, 1, item)
        self.setSelectedSegmentIDs(chosen)
        self._table.blockSignals(False)


class qMRMLSegmentationShow3DButton(QPushButton):
    """Shows the segments as surfaces."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self._node: Any = None
        self.toggled.connect(self._show)

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node
        self.setEnabled(node is not None)

    def _show(self, shown: bool) -> None:
        if self._node is not None and shown:
            self._node.CreateClosedSurfaceRepresentation()
        elif self._node is not None:
            self._node.RemoveClosedSurfaceRepresentation()


CUSTOM_WIDGETS = {
    cls.__name__: cls
    for cls in (
        ctkCollapsibleButton,
        ctkSliderWidget,
        qMRMLNodeComboBox,
        qMRMLSegmentationShow3DButton,
        qMRMLSegmentsTableView,
        qMRMLWidget,
    )
}
