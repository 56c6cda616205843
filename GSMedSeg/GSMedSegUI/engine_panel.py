"""The part of the panel about the engine: this computer or a server, its state, its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from GSMedSegLib.machine import Machine
from GSMedSegLib.memory_need import needed_gib
from GSMedSegLib.model_store import list_weights
from GSMedSegLib.service.client import EngineClient
from GSMedSegLib.service.engines import EngineSource, OwnEngine, ServerEngine
from GSMedSegUI.controller import Controller
from GSMedSegUI.process import own_engine, run_module
from GSMedSegUI.set_up import ensure_installed, missing

KEYS = ("server", "url", "caFile", "device", "weights")

CLI = "GSMedSegLib.cli"


def _described(facts: dict[str, Any]) -> str:
    """What an engine says about itself: weights, their terms, device."""
    weights, terms = facts.get("weights") or _("of its own"), facts.get("license")
    text = _("weights {weights}, on {device}").format(weights=weights, device=facts.get("device", ""))
    return text + (_("; terms: {terms}").format(terms=terms) if terms else "")


class EnginePanel:
    """Chooses an engine, starts and stops it, and shows what it says.

    Args:
        ui: the widgets by name.
        controller: uses the engine.
    """

    def __init__(self, ui: Any, controller: Controller) -> None:
        self._ui, self._controller = ui, controller
        self._lines = 0
        self._voxels = 0
        self._load_settings()
        self._used = self._settings()
        """What the engine there is was made from."""
        ui.serverRadio.connect("toggled(bool)", self._changed)
        for name in ("urlEdit", "tokenEdit", "caFileEdit", "weightsEdit"):
            getattr(ui, name).connect("editingFinished()", self._changed)
        ui.deviceComboBox.connect("currentTextChanged(QString)", self._changed)
        ui.testButton.connect("clicked(bool)", self._test)
        ui.startButton.connect("clicked(bool)", self._start)
        ui.stopButton.connect("clicked(bool)", self._stop)
        ui.setUpButton.connect("clicked(bool)", self._set_up)
        ui.doctorButton.connect("clicked(bool)", self._doctor)
        self._show()

    def ensure(self) -> bool:
        """Make sure that there is an engine to ask; False when the user does not want what it takes."""
        if self._controller.engine is not None:
            return True
        if not self._ui.serverRadio.checked and not (self._installed() and self._fetched()):
            self._show()
            return False
        self._controller.use_engine(self._make_source())
        self._show()
        return True

    def show_need(self, voxels: int) -> None:
        """Tell how much memory an image takes, and how much there is.

        Args:
            voxels: of the image; 0 for none.
        """
        self._voxels = voxels
        weights = self._weights()
        path = next((entry.path for entry in list_weights() if entry.name == weights), Path(weights))
        size = path.stat().st_size if path is not None and path.is_file() else 0
        memory = Machine().memory
        text = ""
        if voxels and not self._ui.serverRadio.checked and memory is not None and memory.free_gib is not None:
            need = needed_gib(voxels, size)
            text = _("This image takes about {need:.1f} GiB of memory; {free:.1f} are free.").format(
                need=need, free=memory.free_gib
            )
            if need > memory.free_gib:
                text += " " + _("Crop it, close other programs, or use a server.")
        self._ui.memoryLabel.text = text

    def log(self, text: str) -> None:
        """Add a line to the log."""
        self._ui.logText.appendPlainText(text)

    def refresh(self) -> None:
        """Show what the engine said since the last call; a timer calls it."""
        engine = self._controller.engine
        if isinstance(engine, OwnEngine):
            lines = list(engine.log)
            for line in lines[self._lines :] if self._lines <= len(lines) else lines:
                self.log(line)
            self._lines = len(lines)
        self._show()

    def _installed(self) -> bool:
        """Whether the engine's packages are there, or were installed with the user's consent."""
        return not missing() or ensure_installed(self.log)

    def _fetched(self) -> bool:
        """Whether the weights are there, or were downloaded after the user accepted their terms."""
        name = self._weights()
        entry = next((known for known in list_weights() if known.name == name), None)
        if entry is None or entry.path is not None:
            return True
        question = _("The weights are not on this computer yet.\n\n{terms}\n\nDownload them now?").format(
            terms=entry.terms
        )
        if not slicer.util.confirmOkCancelDisplay(question, _("GSMedSeg: terms of the weights")):
            return False
        if run_module(self.log, CLI, "weights", "fetch", name, "--accept-terms") != 0:
            raise RuntimeError(_("the weights could not be downloaded; see the log"))
        return True

    def _weights(self) -> str:
        return self._ui.weightsEdit.text.strip() or "compact"

    def _make_source(self) -> EngineSource:
        ui = self._ui
        self._used = self._settings()
        if ui.serverRadio.checked:
            return ServerEngine(
                ui.urlEdit.text, ui.tokenEdit.text.strip(), ui.caFileEdit.text.strip() or None
            )
        return own_engine("--device", ui.deviceComboBox.currentText, "--weights", self._weights())

    def _changed(self, *_arguments: Any) -> None:
        self._save_settings()
        if self._settings() != self._used:  # a field is also left without a change
            self._used = self._settings()
            self._drop()
        self.show_need(self._voxels)
        self._show()

    def _drop(self) -> None:
        self._controller.drop_engine()
        self._lines = 0

    def _test(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The server cannot be used."), waitCursor=True):
            ui = self._ui
            facts = EngineClient(
                ui.urlEdit.text, ui.tokenEdit.text.strip(), ui.caFileEdit.text.strip() or None, timeout_s=5
            ).about()
            ui.engineLabel.text = _("GSMedSeg {version}, {engine}").format(
                version=facts["version"], engine=_described(facts)
            )

    def _start(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The engine did not start."), waitCursor=True):
            if self.ensure() and self._controller.engine is not None:
                facts = self._controller.engine.connect(slicer.app.processEvents).about()
                self._ui.engineLabel.text = _("Ready: {engine}").format(engine=_described(facts))
            self.refresh()

    def _stop(self) -> None:
        self._drop()
        self._show()

    def _set_up(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The set-up failed."), waitCursor=True):
            ensure_installed(self.log)
        self._show()

    def _doctor(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The report could not be made."), waitCursor=True):
            lines: list[str] = []
            run_module(lines.append, CLI, "doctor")
            text = "\n".join(lines)
            self.log(text)
            qt.QApplication.clipboard().setText(text)
            self._ui.engineLabel.text = _("The report is in the log and on the clipboard")

    def _show(self) -> None:
        ui = self._ui
        server = ui.serverRadio.checked
        ui.serverFrame.visible = server
        ui.ownFrame.visible = not server
        engine = self._controller.engine
        running = isinstance(engine, OwnEngine) and engine.running
        ui.startButton.enabled = not running
        ui.stopButton.enabled = running
        if not running and not server and not ui.engineLabel.text:
            ui.engineLabel.text = _("Starts with the first click")

    def _load_settings(self) -> None:
        settings = qt.QSettings()
        values = {key: settings.value(f"GSMedSeg/{key}") or "" for key in KEYS}
        self._ui.serverRadio.checked = values["server"] == "true"
        self._ui.ownRadio.checked = values["server"] != "true"
        self._ui.urlEdit.text = values["url"]
        self._ui.caFileEdit.text = values["caFile"]
        self._ui.deviceComboBox.currentText = values["device"] or "auto"
        self._ui.weightsEdit.text = values["weights"] or "compact"

    def _settings(self) -> dict[str, str]:
        """What the widgets say about the engine."""
        return {
            "server": "true" if self._ui.serverRadio.checked else "false",
            "url": self._ui.urlEdit.text,
            "token": self._ui.tokenEdit.text,
            "caFile": self._ui.caFileEdit.text,
            "device": self._ui.deviceComboBox.currentText,
            "weights": self._ui.weightsEdit.text,
        }

    def _save_settings(self) -> None:
        """All but the token: it is kept for as long as Slicer runs."""
        settings, values = qt.QSettings(), self._settings()
        for key in KEYS:
            settings.setValue(f"GSMedSeg/{key}", values[key])
