"""The panel: widgets on one side, the controller on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from GSMedSegLib.mrml.placement import Placement
from GSMedSegLib.mrml.segments import Overwrite, is_locked, is_voxels, make_voxels, set_locked
from GSMedSegLib.service.background import Told
from GSMedSegUI.controller import Controller
from GSMedSegUI.engine_panel import EnginePanel
from GSMedSegUI.parameters import Parameters
from GSMedSegUI.shortcuts import Shortcuts

POLL_MS = 20
WORK_S = 0.005
"""How long each poll lets the thread that talks to the engine work: Slicer gives it no other time."""

ICONS = {
    "foregroundButton": "AddForeground",
    "backgroundButton": "AddBackground",
    "boxButton": "Box",
    "undoButton": "Undo",
    "redoButton": "Redo",
    "clearButton": "Clear",
    "acceptButton": "Accept",
}

PLACED = {"foregroundButton": "foreground", "backgroundButton": "background", "boxButton": "box"}


class Panel:
    """Connects the widgets with what they do.

    Args:
        ui: the loaded panel.
        controller: does it.
        resource_path: finds the module's files.
    """

    def __init__(self, ui: Any, controller: Controller, resource_path: Callable[[str], str]) -> None:
        self.ui = slicer.util.childWidgetVariables(ui)
        self.controller = controller
        self._resource_path = resource_path
        self._placement: Placement | None = None
        self._parameters: Any = None
        self._gui_tag: Any = None
        self._observed: list[tuple[Any, int]] = []
        self._drawn: tuple[Any, str, Any] | None = None
        """The box in the views: interaction, segment and box that it stands for."""
        self.engine = EnginePanel(self.ui, controller)
        for name, icon in ICONS.items():
            getattr(self.ui, name).icon = qt.QIcon(resource_path(f"Icons/{icon}.png"))
        for value, text in self._overwrites():
            self.ui.overwriteComboBox.addItem(text, value)
        self._connect()
        self._shortcuts = Shortcuts(self._keys())
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        self.scene_changed()

    # What Slicer calls

    def enter(self) -> None:
        """The panel is shown."""
        self._shortcuts.install()
        self.scene_changed()

    def leave(self) -> None:
        """The panel is hidden: placing ends, the box goes, and the keys are free again."""
        self._shortcuts.remove()
        if self._placement is not None:
            self._placement.stop()
            self._placement.hide_box()

    def close(self) -> None:
        """The panel is gone for good."""
        self._timer.stop()
        self._shortcuts.remove()
        self._observe_parameters(None)
        if self._placement is not None:
            self._placement.close()
            self._placement = None

    def scene_closing(self) -> None:
        """All nodes are about to go."""
        self._timer.stop()
        self._drawn = None
        self.controller.forget_scene()
        self._observe_parameters(None)
        if self._placement is not None:
            self._placement.close()
            self._placement = None

    def scene_importing(self) -> None:
        """Nodes are about to come from a file, those that the parameters name after the parameters.

        Slicer's wrapper reads a parameter when it changes and not again: made before, it would have no image,
        and what the widgets show would be taken for the user's choice.
        """
        self._observe_parameters(None)

    def scene_changed(self) -> None:
        """The scene is another one, or has other nodes."""
        if self._placement is None:
            self._placement = Placement(slicer.mrmlScene, self._clicked, self._boxed, self._show)
        if self._parameters is None:
            self._observe_parameters(Parameters(self.controller.getParameterNode()))
        if self._parameters.volume is None:
            self._parameters.volume = _likely_image()
        self._selected()

    # What the user does

    def _connect(self) -> None:
        ui = self.ui
        for name in PLACED:
            getattr(ui, name).connect("toggled(bool)", self._placer(name))
        buttons = {
            "undoButton": self._with_engine(self.controller.undo),
            "redoButton": self._with_engine(self.controller.redo),
            "clearButton": self.controller.clear,
            "acceptButton": self.controller.accept,
            "segmentButton": self._with_engine(self.controller.segment),
            "cancelButton": self.controller.cancel,
            "addSegmentButton": self.controller.add_segment,
            "saveClicksButton": self._save_clicks,
            "saveCaseButton": self._save_case,
        }
        for name, action in buttons.items():
            getattr(ui, name).connect("clicked(bool)", self._doing(action))
        ui.lockButton.connect("toggled(bool)", self._lock)
        ui.segmentsTable.connect("selectionChanged(QItemSelection,QItemSelection)", self._segment_chosen)
        ui.overwriteComboBox.connect("currentIndexChanged(int)", self._overwrite_chosen)

    def _keys(self) -> dict[str, tuple[Any, Callable[[], None]]]:
        ui = self.ui
        return {
            "Shift+F": (ui.foregroundButton, ui.foregroundButton.toggle),
            "Shift+B": (ui.backgroundButton, ui.backgroundButton.toggle),
            "Shift+X": (ui.boxButton, ui.boxButton.toggle),
            "Shift+Z": (ui.undoButton, ui.undoButton.click),
            "Shift+Y": (ui.redoButton, ui.redoButton.click),
            "Shift+N": (ui.acceptButton, ui.acceptButton.click),
            "Esc": (ui.cancelButton, ui.cancelButton.click),
        }

    def _placer(self, name: str) -> Callable[[bool], None]:
        def toggled(checked: bool) -> None:
            placement = self._placement
            if placement is None:
                return
            try:
                if checked and placement.active != PLACED[name]:
                    with slicer.util.tryWithErrorDisplay(_("There is nothing to click on yet.")):
                        if self._ready():
                            placement.start(PLACED[name])
                elif not checked and placement.active == PLACED[name]:
                    placement.stop()
            finally:
                self._show()

        return toggled

    def _ready(self) -> bool:
        """Whether there are an image, an engine and a segmentation; the last is made when it is missing."""
        parameters = self._parameters
        if parameters.volume is None:
            raise ValueError(_("choose an image first"))
        if not self.engine.ensure():
            return False
        if parameters.segmentation is None:
            parameters.segmentation = self.controller.new_segmentation(parameters.volume)
        if not is_voxels(parameters.segmentation):
            question = _(
                "The segmentation is one of surfaces or contours, and clicks are for voxels. Turn all of it "
                "into voxels? Details may be lost, and Undo does not bring them back."
            )
            if not slicer.util.confirmOkCancelDisplay(question, _("GSMedSeg: surfaces become voxels")):
                return False
            make_voxels(parameters.segmentation, parameters.volume)
        if self.controller.interaction is None:
            self.controller.select(parameters.volume, parameters.segmentation)
        if not self.controller.segment_id:
            self.controller.add_segment()
        return True

    def _doing(self, action: Callable[[], Any]) -> Callable[[bool], None]:
        def clicked(_checked: bool = False) -> None:
            try:
                with slicer.util.tryWithErrorDisplay(_("That did not work.")):
                    action()
            finally:
                self._timer.start()
                self._show()

        return clicked

    def _with_engine(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action, once there is the engine that the panel shows."""

        def act() -> None:
            if self.engine.ensure():
                action()

        return act

    def _clicked(self, ras: np.ndarray, positive: bool) -> bool:
        try:
            if not self._ready():  # what is chosen may have changed since placing began
                return False
            self.controller.click(ras, positive)
        except (ValueError, RuntimeError) as error:
            self._say(str(error))
            return False
        self._timer.start()
        self._show_state()
        return True

    def _boxed(self, corners_ras: np.ndarray) -> None:
        self._drawn = None
        try:
            if self._ready():
                self.controller.box(corners_ras)
                self._drawn = self._box()
        except (ValueError, RuntimeError) as error:
            self._say(str(error))
        self._timer.start()
        self._show()

    def _box(self) -> tuple[Any, str, Any] | None:
        """The box of the chosen segment, with whose it is; None when there is none."""
        interaction, segment_id = self.controller.interaction, self.controller.segment_id
        if interaction is None or segment_id not in interaction.ledger.objects:
            return None
        box = interaction.ledger.box(segment_id)
        return None if box is None else (interaction, segment_id, box)

    def _segment_chosen(self, *_arguments: Any) -> None:
        chosen = self.ui.segmentsTable.selectedSegmentIDs()
        if chosen and chosen[0] != self.controller.segment_id:
            self.controller.segment_id = chosen[0]
            self._show()

    def _lock(self, locked: bool) -> None:
        if self._parameters.segmentation is not None and self.controller.segment_id:
            set_locked(self._parameters.segmentation, self.controller.segment_id, locked)

    def _overwrite_chosen(self, index: int) -> None:
        self._parameters.overwrite = self.ui.overwriteComboBox.itemData(index)

    def _save_clicks(self) -> None:
        path = qt.QFileDialog.getSaveFileName(None, _("Save clicks"), "clicks.json", _("Clicks (*.json)"))
        if path and self.controller.interaction is not None:
            self.controller.interaction.save_clicks(path)
            self._say(_("Saved. Replay them with: gsmedseg segment IMAGE -o LABELS --clicks FILE"))

    def _save_case(self) -> None:
        path = qt.QFileDialog.getSaveFileName(None, _("Save as training case"), "case.npz", _("Case (*.npz)"))
        if path and self.controller.interaction is not None:
            count, shared = self.controller.interaction.save_case(path)
            text = _("Saved a training case; objects: {count}").format(count=count)
            if shared:
                text += " " + _(
                    "Attention: segments overlap; {shared} voxels went to the later one, for a case has one "
                    "label for each voxel"
                ).format(shared=shared)
            self._say(text)

    # What comes back

    def _poll(self) -> None:
        for told in self.controller.poll(WORK_S):
            if told.error is not None:
                self._say(str(told.error))
                slicer.util.errorDisplay(_("The mask could not be made.\n\n{why}").format(why=told.error))
            elif told.answer is None:
                self._show_progress(told)
            else:
                self._say(_("Done in {seconds:.2f} s").format(seconds=self.controller.last_s))
        self.engine.refresh()
        if not self.controller.busy:
            self._timer.stop()
            self._show()

    def _show_progress(self, told: Told) -> None:
        texts = {
            "engine": _("Starting the engine…"),
            "image": _("Sending the image…"),
            "recovering": _("The engine was lost; starting it again…"),
            "clicks": _("Segmenting…"),
        }
        self._say(texts[told.doing])
        self.ui.progressBar.maximum = max(told.total, 1)
        self.ui.progressBar.value = told.done

    def _observe_parameters(self, parameters: Any) -> None:
        if self._parameters is not None:
            self._parameters.disconnectGui(self._gui_tag)
            for node, tag in self._observed:
                node.RemoveObserver(tag)
            self._observed.clear()
        self._parameters = parameters
        if parameters is not None:
            self._gui_tag = parameters.connectGui(self.ui)
            node = parameters.parameterNode
            self._observed.append((node, node.AddObserver("ModifiedEvent", self._selected)))

    def _selected(self, *_arguments: Any) -> None:
        """Work on what is selected now."""
        parameters, controller = self._parameters, self.controller
        before = controller.interaction
        pair = (parameters.volume, parameters.segmentation)
        image = parameters.volume and parameters.volume.GetImageData()
        try:
            if before is None or (before.volume, before.segmentation) != pair:
                controller.segment_id = parameters.segment
                controller.select(*pair)
        except ValueError as error:
            self._say(str(error))
        controller.auto = parameters.auto
        self.engine.show_need(image.GetNumberOfPoints() if image else 0)
        controller.set_options(Overwrite(parameters.overwrite), parameters.smoothing_mm, parameters.hint)
        self.ui.overwriteComboBox.currentIndex = self.ui.overwriteComboBox.findData(parameters.overwrite)
        self._show()

    def _show(self) -> None:
        """Bring all widgets up to date."""
        if self._placement is None or self._parameters is None:
            return
        ui, controller = self.ui, self.controller
        segmentation = self._parameters.segmentation
        ui.segmentsTable.setSegmentationNode(segmentation)
        ui.show3DButton.setSegmentationNode(segmentation)
        interaction = controller.interaction
        if interaction is not None and self._parameters.segment != controller.segment_id:
            self._parameters.segment = controller.segment_id
        if interaction is not None and controller.segment_id:
            if list(ui.segmentsTable.selectedSegmentIDs()) != [controller.segment_id]:
                ui.segmentsTable.setSelectedSegmentIDs([controller.segment_id])
            hint = interaction.hint_ras(controller.segment_id) if self._parameters.hint else None
            self._placement.show(interaction.clicks_ras(controller.segment_id), hint)
            ui.lockButton.checked = is_locked(segmentation, controller.segment_id)
        else:
            self._placement.show([])
        if self._placement.active != "box" and (self._drawn is None or self._drawn != self._box()):
            self._placement.hide_box()
            self._drawn = None
        for name, role in PLACED.items():
            getattr(ui, name).checked = self._placement.active == role
        self._show_state()

    def _show_state(self) -> None:
        ui, controller = self.ui, self.controller
        interaction = controller.interaction
        chosen = interaction is not None and bool(controller.segment_id)
        ui.undoButton.enabled = interaction is not None and interaction.can_undo
        ui.redoButton.enabled = interaction is not None and interaction.can_redo
        for name in (
            "clearButton",
            "acceptButton",
            "segmentButton",
            "lockButton",
            "saveClicksButton",
            "saveCaseButton",
        ):
            getattr(ui, name).enabled = chosen
        ui.addSegmentButton.enabled = interaction is not None
        ui.cancelButton.enabled = controller.busy
        ui.progressBar.visible = controller.busy

    def _say(self, text: str) -> None:
        self.ui.statusLabel.text = text

    @staticmethod
    def _overwrites() -> list[tuple[str, str]]:
        return [
            (Overwrite.NOTHING.value, _("Leave other segments as they are")),
            (Overwrite.OTHERS.value, _("Take voxels from other segments")),
            (Overwrite.OVERLAP.value, _("Let segments overlap")),
        ]


def _likely_image() -> Any:
    """A volume that can be segmented: the one in the red view, else the first of the scene; or None."""
    red = slicer.app.applicationLogic().GetSliceLogicByLayoutName("Red")
    seen = red and red.GetSliceCompositeNode().GetBackgroundVolumeID()
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    for node in sorted(nodes, key=lambda node: node.GetID() != seen):
        image = node.GetImageData()
        grey = image is not None and image.GetNumberOfScalarComponents() == 1
        if grey and not node.IsA("vtkMRMLLabelMapVolumeNode"):
            return node
    return None
