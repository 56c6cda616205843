"""What a clinician does: buttons pressed and views clicked by the mouse, with a real engine behind them.

The harness is Slicer-like, not Slicer: its core is Slicer's own, its widgets are not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from Testing.service.conftest import serve  # noqa: F401 - a fixture for the tests here too
from Testing.slicer.conftest import ROOT

slicer = pytest.importorskip("slicer", reason="no Slicer core: pip install 'gsmedseg[web]'")
pytestmark = pytest.mark.slow

ENGINE_S = 60.0
"""An engine starts and answers in a few seconds; a busy machine takes longer."""


@pytest.fixture
def case(desktop: Any, widget: Any) -> Any:
    """The sample image in an empty scene; volume, and a point inside its organ."""
    from GSMedSegUI.sample import add_sample_volume

    slicer.mrmlScene.Clear(0)
    volume, inside = add_sample_volume()
    desktop.show_volume(volume)
    widget.panel.scene_changed()
    yield volume, inside
    desktop.process_events()
    assert desktop.errors == []


@pytest.fixture(scope="module", autouse=True)
def _sections(desktop: Any, widget: Any) -> None:
    """All sections are open, so that their buttons can be pressed."""
    widget.panel.ui.engineSection.collapsed = widget.panel.ui.optionsSection.collapsed = False
    desktop.process_events()


def add_another(name: str) -> tuple[Any, np.ndarray]:
    """The sample image once more; volume, and a point inside its organ."""
    from GSMedSegUI.sample import add_sample_volume

    volume, inside = add_sample_volume()
    volume.SetName(name)
    return volume, inside


def mask_of(widget: Any) -> np.ndarray:
    """(K, J, I) what the chosen segment has."""
    from GSMedSegLib.mrml.segments import read_mask

    interaction = widget.logic.interaction
    return read_mask(interaction.segmentation, widget.logic.segment_id, interaction.volume).whole()


def click(desktop: Any, widget: Any, ras: np.ndarray, button: str = "foregroundButton") -> np.ndarray:
    """A click in the axial view, and the mask it gives."""
    ui = widget.panel.ui
    if not getattr(ui, button).checked:
        desktop.click(getattr(ui, button))
    desktop.slice_view("Red").click_ras(ras)
    assert widget.logic.interaction.ledger.clicks(widget.logic.segment_id), "the click did not arrive"
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    return mask_of(widget)


def test_press_click_and_the_mask_is_there(desktop: Any, widget: Any, case: Any, tmp_path: Path):
    """The whole way: button, mouse, engine process, segment; then undo, redo, a second segment, a box."""
    volume, inside = case
    ui = widget.panel.ui
    mask = click(desktop, widget, inside)
    from GSMedSegLib.mrml.volumes import world_to_voxel

    at = world_to_voxel(volume, inside)
    (placed,) = widget.logic.interaction.ledger.clicks(widget.logic.segment_id)
    assert placed.positive
    assert np.abs(np.array(placed.kji) - at).max() <= 1  # a pixel of the view is less than a voxel
    assert mask[placed.kji]
    assert 1000 < mask.sum() < 60_000
    assert ui.foregroundButton.checked, "placing stays active"
    segment = widget.logic.interaction.segmentation.GetSegmentation().GetSegment(widget.logic.segment_id)
    assert "SCT^85756007^Tissue" in segment.GetTerminology(), "a code that DICOM takes, until one is chosen"

    corrected = click(desktop, widget, inside + np.array((0, 60, 0)), "backgroundButton")
    assert not ui.foregroundButton.checked
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 2
    desktop.click(ui.undoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert np.array_equal(mask_of(widget), mask)
    desktop.click(ui.redoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert np.array_equal(mask_of(widget), corrected)

    first = widget.logic.segment_id
    desktop.click(ui.acceptButton)
    assert widget.logic.segment_id != first
    assert not mask_of(widget).any()
    desktop.screenshot(tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 10_000


def test_a_killed_engine_comes_back_by_itself(desktop: Any, widget: Any, case: Any):
    _, inside = case
    before = click(desktop, widget, inside)
    engine = widget.logic.engine
    pid = engine.pid
    engine._process.kill()
    desktop.click(widget.panel.ui.undoButton)
    widget.logic._background._answers.clear()  # what is remembered here would do without the engine
    desktop.click(widget.panel.ui.redoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert engine.pid != pid
    assert np.array_equal(mask_of(widget), before)


def test_a_click_beside_the_image_is_told_and_not_kept(desktop: Any, widget: Any, case: Any):
    _, inside = case
    click(desktop, widget, inside)
    clicks = widget.logic.interaction.ledger.clicks(widget.logic.segment_id)
    assert not widget.panel._clicked(inside + np.array((500, 0, 0)), True)
    assert "outside the image" in widget.panel.ui.statusLabel.text
    assert widget.logic.interaction.ledger.clicks(widget.logic.segment_id) == clicks


def test_without_an_image_the_button_says_what_is_missing(desktop: Any, widget: Any):
    slicer.mrmlScene.Clear(0)
    widget.panel.scene_changed()
    desktop.click(widget.panel.ui.foregroundButton)
    assert not widget.panel.ui.foregroundButton.checked
    assert any("choose an image first" in str(error) for error in desktop.errors)
    desktop.errors.clear()


def test_shortcuts_live_with_the_panel(desktop: Any, widget: Any, case: Any):
    ui = widget.panel.ui
    assert "Shift+F" in ui.foregroundButton.toolTip
    assert len(widget.panel._shortcuts._active) == 7
    widget.exit()
    assert widget.panel._shortcuts._active == []
    widget.enter()
    assert len(widget.panel._shortcuts._active) == 7


def test_a_locked_segment_stays_locked(desktop: Any, widget: Any, case: Any):
    from GSMedSegLib.mrml.segments import is_locked

    _, inside = case
    click(desktop, widget, inside)
    desktop.click(widget.panel.ui.lockButton)
    assert is_locked(widget.logic.interaction.segmentation, widget.logic.segment_id)
    desktop.click(widget.panel.ui.lockButton)
    assert not is_locked(widget.logic.interaction.segmentation, widget.logic.segment_id)


def test_the_services_packages_are_the_extras_own():
    """Slicer's set-up installs what the pip package's extra `server` names."""
    import re

    from GSMedSegUI.set_up import SERVICE_PACKAGES, missing, requirements

    listed = re.search(r"^server = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert listed is not None
    assert set(re.findall(r'"([^"]+)"', listed.group(1))) == set(SERVICE_PACKAGES)
    assert missing() == []
    assert any(line.startswith("torch") for line in requirements())


def test_a_box_is_drawn_by_two_clicks(desktop: Any, widget: Any, case: Any):
    _, inside = case
    desktop.click(widget.panel.ui.boxButton)
    for corner in (-25, 25):
        desktop.slice_view("Red").click_ras(inside + np.array((corner, corner, 0)))
    desktop.wait_until(lambda: widget.logic.interaction is not None and not widget.logic.busy, ENGINE_S)
    ledger, segment_id = widget.logic.interaction.ledger, widget.logic.segment_id
    box = ledger.box(segment_id)
    assert box is not None
    from GSMedSegLib.mrml.volumes import world_to_voxel

    volume, _ = case
    at = world_to_voxel(volume, inside)
    assert all(a <= x <= b for a, x, b in zip(box.min_kji, at, box.max_kji, strict=True))
    assert mask_of(widget)[at]
    desktop.click(widget.panel.ui.undoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert not mask_of(widget).any()


@pytest.mark.skipif(sys.platform == "win32", reason="PythonSlicer is a shell script here")
def test_the_modules_own_test_passes_in_a_source_checkout(
    widget: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As "Reload and Test" runs it: Slicer's Python finds its packages, and has not heard of the library."""
    from GSMedSeg import GSMedSegTest

    python = tmp_path / "PythonSlicer"
    python.write_text(f'#!/bin/sh\necho >> {tmp_path}/runs\nexec "{sys.executable}" -S "$@"\n', "utf-8")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    GSMedSegTest().runTest()
    assert (tmp_path / "runs").read_text("utf-8").count("\n") == 1


def test_no_console_opens_on_windows(widget: Any, monkeypatch: pytest.MonkeyPatch):
    """One that the user closes would end pip."""
    from GSMedSegUI.process import run_module

    popen, given = subprocess.Popen, []

    def record(*command: Any, creationflags: int = 0, **options: Any) -> Any:
        given.append(creationflags)
        return popen(*command, **options)

    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "Popen", record)
    assert run_module(lambda line: None, "this") == 0
    assert given == [0x08000000]


@pytest.fixture
def drawn(desktop: Any, widget: Any, case: Any) -> Any:
    """The node of a box drawn in the axial view, once its mask is there."""
    _, inside = case
    desktop.click(widget.panel.ui.boxButton)
    for corner in (-25, 25):
        desktop.slice_view("Red").click_ras(inside + np.array((corner, corner, 0)))
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    return widget.panel._placement._nodes["box"]


def box_of(widget: Any) -> Any:
    """What the ledger has."""
    return widget.logic.interaction.ledger.box(widget.logic.segment_id)


def test_a_boxs_handles_set_it_anew(desktop: Any, widget: Any, case: Any, drawn: Any):
    """By a real drag; a click on the handle alone is none."""
    volume, _ = case
    before, mask, steps = box_of(widget), mask_of(widget), widget.logic.interaction.ledger.to_json()
    bounds = [0.0] * 6
    drawn.GetRASBounds(bounds)
    # Slicer takes the middle of a handle, on the box's edge, for the edge: a little beside it.
    face = np.array((bounds[1] - 1.1, (bounds[2] + bounds[3]) / 2 - 1.1, (bounds[4] + bounds[5]) / 2))
    view = desktop.slice_view("Red")
    view.drag_ras(face, face)
    assert widget.logic.interaction.ledger.to_json() == steps
    view.drag_ras(face, face - np.array((15, 0, 0)))
    after = box_of(widget)
    assert after != before
    from GSMedSegLib.mrml.volumes import box_in_world

    drawn.GetRASBounds(bounds)
    corners = [[bounds[2 * axis + (c >> axis & 1)] for axis in range(3)] for c in range(8)]
    assert (after.min_kji, after.max_kji) == box_in_world(volume, corners)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert not np.array_equal(mask_of(widget), mask)
    assert drawn.GetDisplayNode().GetVisibility()
    desktop.click(widget.panel.ui.undoButton)
    assert box_of(widget) == before
    assert not drawn.GetDisplayNode().GetVisibility(), "it would show another box than there is"


def test_a_box_is_shown_with_its_segment_only(desktop: Any, widget: Any, case: Any, drawn: Any):
    shown = drawn.GetDisplayNode().GetVisibility
    assert shown()
    desktop.click(widget.panel.ui.acceptButton)
    assert not shown()
    drawn.InvokeEvent(drawn.PointEndInteractionEvent)
    assert widget.logic.segment_id not in widget.logic.interaction.ledger.objects


def test_a_box_that_is_undone_or_cleared_goes(desktop: Any, widget: Any, case: Any, drawn: Any):
    desktop.click(widget.panel.ui.clearButton)
    assert not drawn.GetDisplayNode().GetVisibility()


def test_a_box_moved_out_of_the_image_goes(desktop: Any, widget: Any, case: Any, drawn: Any):
    before = box_of(widget)
    drawn.SetCenter(1000, 0, 0)
    drawn.InvokeEvent(drawn.PointEndInteractionEvent)
    assert "outside the volume" in widget.panel.ui.statusLabel.text
    assert box_of(widget) == before
    assert not drawn.GetDisplayNode().GetVisibility()


def test_a_field_left_unchanged_does_not_end_the_engine(desktop: Any, widget: Any, case: Any):
    """Qt tells of the end of editing whenever a field loses the focus."""
    _, inside = case
    click(desktop, widget, inside)
    engine, ui = widget.logic.engine, widget.panel.ui
    desktop.slice_view("Red").click_ras(inside + np.array((7, 9, 0)))
    assert widget.logic.busy
    for name in ("urlEdit", "tokenEdit", "caFileEdit", "weightsEdit"):
        getattr(ui, name).editingFinished.emit()
    assert widget.logic.engine is engine
    assert widget.logic.busy
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 2
    ui.tokenEdit.text = "another one"
    ui.tokenEdit.editingFinished.emit()
    assert widget.logic.engine is None
    ui.tokenEdit.text = ""
    ui.tokenEdit.editingFinished.emit()


def test_an_editor_opened_after_the_first_click_counts(desktop: Any, widget: Any, case: Any):
    """Its masking; the segment editor makes its node when it is opened first."""
    volume, inside = case
    whole = click(desktop, widget, inside)
    editor = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    editor.UnRegister(None)
    editor.SetSingletonTag("SegmentEditor")
    editor = slicer.mrmlScene.AddNode(editor)
    editor.SetAndObserveSegmentationNode(widget.logic.interaction.segmentation)
    editor.SetSourceVolumeIntensityMask(True)
    grey = slicer.util.arrayFromVolume(volume)
    editor.SetSourceVolumeIntensityMaskRange(float(grey.max()) + 1, float(grey.max()) + 2)
    assert np.array_equal(click(desktop, widget, inside + np.array((6, 9, 0))), whole), "nothing may change"


def test_a_deleted_image_is_let_go_of(desktop: Any, widget: Any, case: Any):
    """Also where it is not the one that is looked at."""
    from GSMedSegUI.sample import add_sample_volume

    first, inside = case
    click(desktop, widget, inside)
    ui = widget.panel.ui
    second, there = add_sample_volume()
    ui.segmentationSelector.setCurrentNode(None)
    ui.volumeSelector.setCurrentNode(second)
    desktop.show_volume(second)
    click(desktop, widget, there)
    assert len(widget.logic._interactions) == 2
    slicer.mrmlScene.RemoveNode(second)
    desktop.process_events()
    ui.segmentationSelector.setCurrentNode(None)
    ui.volumeSelector.setCurrentNode(first)
    desktop.process_events()
    assert [one.volume for one in widget.logic._interactions.values()] == [first]
    slicer.mrmlScene.RemoveNode(first)
    desktop.process_events()
    widget.panel.scene_changed()
    assert widget.logic._interactions == {}
    assert widget.logic.interaction is None


def test_cancel_restores_the_mask_before(desktop: Any, widget: Any, case: Any):
    _, inside = case
    before = click(desktop, widget, inside)
    engine = psutil.Process(widget.logic.engine.pid)
    engine.suspend()  # the click stays under way until it is cancelled
    try:
        desktop.slice_view("Red").click_ras(inside + np.array((7, 9, 0)))
        assert widget.logic.busy
        assert widget.panel.ui.cancelButton.enabled
        desktop.click(widget.panel.ui.cancelButton)
        assert not widget.logic.busy
    finally:
        engine.resume()
    assert np.array_equal(mask_of(widget), before)
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 1


@pytest.fixture
def held(desktop: Any, widget: Any, case: Any) -> Any:
    """A first mask, and an engine that answers nothing more until it is resumed."""
    _, inside = case
    click(desktop, widget, inside)
    engine = psutil.Process(widget.logic.engine.pid)
    engine.suspend()
    yield engine
    engine.resume()


def test_cancel_reaches_an_image_that_was_left(desktop: Any, widget: Any, case: Any, held: Any):
    _, inside = case
    ui, left = widget.panel.ui, widget.logic.interaction
    desktop.slice_view("Red").click_ras(inside + np.array((7, 9, 0)))
    ui.segmentationSelector.setCurrentNode(None)
    assert widget.logic.interaction is not left
    desktop.click(ui.cancelButton)
    assert not widget.logic.busy
    assert [len(left.ledger.clicks(segment)) for segment in left.ledger.objects] == [1]


def test_a_mask_arrives_though_the_next_frame_is_shown(desktop: Any, widget: Any, case: Any, held: Any):
    """Clicks there wait for it, and say so: they are for another image."""
    volume, inside = case
    ui, first = widget.panel.ui, widget.logic.segment_id
    before = mask_of(widget)
    desktop.slice_view("Red").click_ras(inside + np.array((7, 9, 0)))
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume) + 20)
    desktop.click(ui.acceptButton)
    second = widget.logic.segment_id
    assert not widget.panel._clicked(inside, True)
    assert "when it is there" in ui.statusLabel.text
    held.resume()
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert click(desktop, widget, inside).any()
    assert widget.logic.segment_id == second
    widget.logic.segment_id = first
    assert len(widget.logic.interaction.ledger.clicks(first)) == 2
    assert not np.array_equal(mask_of(widget), before)


def test_no_click_is_shown_without_its_segmentation(desktop: Any, widget: Any, case: Any):
    """Nor taken for the image before, where the one that was chosen cannot be segmented."""
    _, inside = case
    click(desktop, widget, inside)
    panel, interaction = widget.panel, widget.logic.interaction
    shown = panel._placement._nodes["foreground"].GetNumberOfControlPoints
    for selector, chosen in (
        (panel.ui.segmentationSelector, interaction.segmentation),
        (panel.ui.volumeSelector, interaction.volume),
    ):
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "to be")
        assert shown() == 1
        selector.setCurrentNode(other if selector is panel.ui.volumeSelector else None)
        desktop.process_events()
        assert shown() == 0
        assert widget.logic.interaction is None
        selector.setCurrentNode(chosen)
        desktop.process_events()
    assert widget.logic.interaction is interaction


def test_the_image_that_is_looked_at_is_chosen(desktop: Any, widget: Any):
    """Of several; where it cannot be segmented, the first that can."""
    slicer.mrmlScene.Clear(0)
    first, _ = add_another("first")
    second, _ = add_another("second")
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(labels, np.ones((4, 4, 4), np.int16))
    for seen, chosen in ((second, second), (labels, first), (None, first)):
        widget.panel._parameters.volume = None
        slicer.util.setSliceViewerLayers(background=seen)
        widget.panel.enter()
        assert widget.panel._parameters.volume is chosen


def test_a_star_shows_where_to_click_next(desktop: Any, widget: Any, case: Any):
    _, inside = case
    widget.panel.ui.hintCheckBox.checked = True
    click(desktop, widget, inside)
    assert widget.logic.interaction.hint_ras(widget.logic.segment_id) is not None
    widget.panel.ui.hintCheckBox.checked = False
    desktop.process_events()
    assert not widget.logic.interaction.wants_hint


@pytest.fixture
def server_chosen(widget: Any) -> Any:
    """The panel set to a server, and to this computer again at the end."""
    ui = widget.panel.ui
    ui.serverRadio.checked = True
    yield ui
    ui.ownRadio.checked = True
    ui.serverRadio.checked = False
    ui.tokenEdit.text = ui.urlEdit.text = ""
    widget.panel.engine._changed()


def test_a_server_is_tested_used_and_told_apart_from_others(
    desktop: Any,
    widget: Any,
    case: Any,
    server_chosen: Any,
    serve: Any,  # noqa: F811
):
    """The address may lack http://; a wrong token and a silent port each have a text of their own."""
    from Testing.service.conftest import TOKEN, free_port

    ui = server_chosen
    texts = []
    with serve() as served:
        address = served.url.removeprefix("http://")
        for url, token in (
            (address, TOKEN),
            (address, "wrong-wrong-wrong-wrong"),
            (f"127.0.0.1:{free_port()}", TOKEN),
        ):
            ui.engineLabel.text = ""
            ui.urlEdit.text, ui.tokenEdit.text = url, token
            widget.panel.engine._changed()
            desktop.click(ui.testButton)
            texts.append(ui.engineLabel.text or str(desktop.errors[-1]))
        assert "weights of its own, on cpu" in texts[0]
        assert "token" in texts[1]
        assert len(set(texts)) == 3
        assert len(desktop.errors) == 2
        desktop.errors.clear()
        ui.urlEdit.text, ui.tokenEdit.text = address, TOKEN
        widget.panel.engine._changed()
        _, inside = case
        click(desktop, widget, inside)
        assert widget.logic.engine.connect().about()["version"]
    import qt

    kept = qt.QSettings()
    assert kept.value("GSMedSeg/url") == address
    assert not [key for key in kept.allKeys() if TOKEN in str(kept.value(key))], "a token is not written down"


def test_the_end_leaves_nothing_on_a_server(
    case: Any,
    serve: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    from GSMedSegUI.controller import Controller

    from GSMedSegLib.service.engines import ServerEngine
    from Testing.service.conftest import TOKEN

    monkeypatch.setattr("GSMedSegLib.service.background.CLOSE_S", 60.0)  # the machine may be busy
    volume, inside = case
    controller = Controller(slicer.mrmlScene)
    with serve() as served:
        controller.use_engine(ServerEngine(served.url, TOKEN))
        controller.select(volume, controller.new_segmentation(volume))
        controller.click(inside, True)
        controller.wait()
        assert served.client().about()["sessions"] == 1
        controller.close()
        assert served.client().about()["sessions"] == 0


@pytest.mark.parametrize(
    ("opened", "into"),
    [
        ("before the image", "an empty scene"),
        ("after the image", "an empty scene"),
        ("after the image", "the same scene"),
    ],
)
def test_a_saved_scene_goes_on(desktop: Any, widget: Any, case: Any, tmp_path: Path, opened: str, into: str):
    """With its own image, segmentation and segment, wherever the parameters stand in the file."""
    _, inside = case
    panel = widget.panel
    chosen, _ = add_another("chosen")
    if opened == "after the image":
        panel.scene_importing()
        slicer.mrmlScene.RemoveNode(widget.logic.getParameterNode())
        panel.enter()
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "not chosen")
    panel.ui.volumeSelector.setCurrentNode(chosen)
    desktop.show_volume(chosen)
    desktop.click(panel.ui.foregroundButton)
    desktop.click(panel.ui.acceptButton)
    click(desktop, widget, inside)
    before = click(desktop, widget, inside + np.array((4, 6, 0)))
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    if into == "an empty scene":
        slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(path))
    desktop.process_events()
    volume = panel._parameters.volume
    assert volume is not chosen
    assert volume.GetName() == "chosen"
    desktop.show_volume(volume)
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 2
    assert np.array_equal(mask_of(widget), before)
    click(desktop, widget, inside + np.array((-5, 3, 0)))
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 3
    desktop.click(widget.panel.ui.undoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert np.array_equal(mask_of(widget), before)


def test_memory_is_told_before_it_is_taken(desktop: Any, widget: Any, case: Any):
    from GSMedSegLib.memory_need import needed_gib

    volume, _ = case
    i, j, k = volume.GetImageData().GetDimensions()
    assert f"about {needed_gib(i * j * k):.1f} GiB" in widget.panel.ui.memoryLabel.text
    widget.panel.engine.show_need(10**12)
    assert "Crop it" in widget.panel.ui.memoryLabel.text
    widget.panel.engine.show_need(0)
    assert widget.panel.ui.memoryLabel.text == ""


def refuse_then_accept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers the next two questions; they are in the list that is returned."""
    asked: list[str] = []
    answers = iter([False, True])

    def confirm(text: str, *_: Any, **__: Any) -> bool:
        asked.append(text)
        return next(answers)

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    return asked


def test_weights_are_fetched_only_after_their_terms(
    desktop: Any, widget: Any, case: Any, monkeypatch: pytest.MonkeyPatch
):
    """Refused, nothing is asked of the network; accepted, the download runs and its failure is told."""
    monkeypatch.setenv("GSMEDSEG_OFFLINE", "1")
    asked = refuse_then_accept(monkeypatch)
    ui = widget.panel.ui
    ui.weightsEdit.text = "vista3d"
    widget.panel.engine._changed()
    try:
        desktop.click(ui.startButton)
        assert "NVIDIA Open Model License" in asked[0]
        assert desktop.errors == []
        desktop.click(ui.startButton)
        assert len(asked) == 2
        assert "could not be downloaded" in str(desktop.errors[-1])
        assert "network is switched off" in ui.logText.toPlainText()
    finally:
        ui.weightsEdit.text = "compact"
        widget.panel.engine._changed()
        desktop.errors.clear()


def test_surfaces_become_voxels_after_one_question(
    desktop: Any, widget: Any, case: Any, monkeypatch: pytest.MonkeyPatch
):
    """Refused, they stay as they are; accepted with the button, the click asks no more."""
    import vtk

    from GSMedSegLib.mrml.segments import is_voxels

    _, inside = case
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(inside + np.array((20.0, 0.0, 0.0)))
    sphere.SetRadius(6.0)
    sphere.Update()
    surface = slicer.vtkSegment()
    surface.SetName("planned")
    surface.AddRepresentation("Closed surface", sphere.GetOutput())
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segmentation.GetSegmentation().AddSegment(surface, "planned")
    widget.panel.ui.segmentationSelector.setCurrentNode(segmentation)
    asked = refuse_then_accept(monkeypatch)
    button = widget.panel.ui.foregroundButton
    desktop.click(button)
    assert not button.checked
    assert not is_voxels(segmentation)
    desktop.click(button)
    assert button.checked
    assert is_voxels(segmentation)
    assert click(desktop, widget, inside).any()
    assert len(asked) == 2


def write_wheel(folder: Path, name: str) -> None:
    """A package that pip can install without a network."""
    import zipfile

    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_packages_are_installed_only_with_consent(
    desktop: Any, widget: Any, case: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Refused, nothing runs; accepted, pip itself runs, and the log shows what it says."""
    import importlib.util

    import GSMedSegUI.set_up as set_up

    target = tmp_path / "installed"
    write_wheel(tmp_path, "gsmedseg_needed")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("TARGET", str(target))):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setattr(set_up, "requirements", lambda: ["torch>=2.4", "gsmedseg_needed>=1"])
    asked = refuse_then_accept(monkeypatch)
    ui = widget.panel.ui
    ui.logText.plainText = ""
    desktop.click(ui.setUpButton)
    assert "gsmedseg_needed" in asked[0]
    assert ui.logText.toPlainText() == ""
    assert not target.exists()
    desktop.click(ui.setUpButton)
    assert "Successfully installed gsmedseg_needed-1.0" in ui.logText.toPlainText().replace(
        "-needed", "_needed"
    )
    assert ui.logText.toPlainText().rstrip().endswith("Everything is installed")
    assert importlib.util.find_spec("gsmedseg_needed") is not None
    ui.logText.plainText = ""
    desktop.click(ui.setUpButton)
    assert len(asked) == 2, "nothing is missing any more"
    assert ui.logText.toPlainText().strip() == "Everything is installed"


def test_a_package_that_is_too_old_is_missing(widget: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from GSMedSegUI.set_up import missing

    for name, version in (("monai", "1.3.0"), ("torch", "2.0.1+cu117"), ("scipy", "1.11.0rc1")):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing() == ["monai>=1.4", "torch>=2.4"]


def test_painting_between_clicks_stays_and_can_be_taken_back(desktop: Any, widget: Any, case: Any):
    from GSMedSegLib.cropped import crop
    from GSMedSegLib.mrml.segments import write_mask

    _, inside = case
    clicked = click(desktop, widget, inside)
    interaction, segment_id = widget.logic.interaction, widget.logic.segment_id
    painted = clicked.copy()
    painted[2:6, 2:8, 2:8] = True
    write_mask(interaction.segmentation, segment_id, interaction.volume, crop(painted))
    after = click(desktop, widget, inside + np.array((6, 9, 0)))
    assert after[2:6, 2:8, 2:8].all()
    for expected in (painted, clicked):
        desktop.click(widget.panel.ui.undoButton)
        desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
        assert np.array_equal(mask_of(widget), expected)


def test_each_image_has_its_own_segmentation(desktop: Any, widget: Any, case: Any):
    """A second image elsewhere in the world; back at the first one its clicks are still there."""
    from GSMedSegUI.sample import add_sample_volume

    first, inside = case
    mask = click(desktop, widget, inside)
    ours = widget.panel._parameters.segmentation
    second, there = add_sample_volume()
    moved = np.array((30.0, 10.0, 5.0))
    second.SetOrigin(*(np.array(second.GetOrigin()) + moved))
    ui = widget.panel.ui
    ui.segmentationSelector.setCurrentNode(None)
    ui.volumeSelector.setCurrentNode(second)
    desktop.show_volume(second)
    assert np.array_equal(click(desktop, widget, there + moved), mask), "the same image, the same click"
    assert widget.panel._parameters.segmentation is not ours
    ui.volumeSelector.setCurrentNode(first)
    ui.segmentationSelector.setCurrentNode(ours)
    desktop.process_events()
    assert np.array_equal(mask_of(widget), mask)
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 1


def test_saved_cases_and_clicks_go_on_elsewhere(
    desktop: Any, widget: Any, case: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The trainer's reader takes the case; the click is in the file by its segment's name."""
    import qt

    from GSMedSegLib.case_source import find_sources
    from GSMedSegLib.prompts import ClickLedger

    _, inside = case
    mask = click(desktop, widget, inside)
    ui = widget.panel.ui
    paths = iter([tmp_path / "cases" / "one.npz", tmp_path / "clicks.json"])
    (tmp_path / "cases").mkdir()
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(next(paths)))
    desktop.click(ui.saveCaseButton)
    assert "objects: 1" in ui.statusLabel.text
    (source,) = find_sources(tmp_path / "cases")
    assert np.array_equal(source.load().case.truth == 1, mask)
    desktop.click(ui.saveClicksButton)
    assert "gsmedseg segment" in ui.statusLabel.text
    (clicked,) = ClickLedger.load(tmp_path / "clicks.json").clicks("Segment_1")
    assert mask[clicked.kji]


def test_the_doctors_report_is_on_the_clipboard(desktop: Any, widget: Any):
    import qt

    desktop.click(widget.panel.ui.doctorButton)
    text = qt.QApplication.clipboard().text()
    assert "memory" in text
    assert text.strip() in widget.panel.ui.logText.toPlainText()
    assert "on the clipboard" in widget.panel.ui.engineLabel.text


def test_options_hold_for_every_image_and_engine(desktop: Any, widget: Any, case: Any):
    """And the panel shows what is done: a scene brings its own choice along."""
    from GSMedSegLib.mrml.segments import Overwrite

    _, inside = case
    ui = widget.panel.ui
    try:
        click(desktop, widget, inside)
        ui.overwriteComboBox.currentIndex = ui.overwriteComboBox.findData("others")
        widget.logic.use_engine(widget.panel.engine._make_source())
        assert widget.logic.interaction.overwrite is Overwrite.OTHERS
        widget.panel._parameters.overwrite = "overlap"
        desktop.process_events()
        assert ui.overwriteComboBox.itemData(ui.overwriteComboBox.currentIndex) == "overlap"
        assert widget.logic.interaction.overwrite is Overwrite.OVERLAP
    finally:
        widget.panel._parameters.overwrite = "nothing"


def test_a_volume_without_voxels_is_told(desktop: Any, widget: Any):
    """As any output selector makes it: it is not chosen by itself, and does no harm when it is."""
    slicer.mrmlScene.Clear(0)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "to be")
    widget.panel.enter()
    assert widget.panel._parameters.volume is None
    widget.panel._parameters.volume = empty
    widget.panel._parameters.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    desktop.process_events()
    assert '"to be" has no voxels' in widget.panel.ui.statusLabel.text
    assert desktop.errors == []


def test_a_segment_deleted_elsewhere(desktop: Any, widget: Any, case: Any):
    """In the Segment Editor, or in the Data module."""
    _, inside = case
    click(desktop, widget, inside)
    kept = widget.logic.segment_id
    desktop.click(widget.panel.ui.acceptButton)
    gone = widget.logic.segment_id
    click(desktop, widget, inside + np.array((0, 60, 0)))
    segments = widget.logic.interaction.segmentation.GetSegmentation()
    segments.RemoveSegment(gone)
    desktop.click(widget.panel.ui.undoButton)
    assert widget.logic.segment_id == kept
    assert widget.panel._parameters.segment == kept
    segments.RemoveSegment(kept)
    widget.panel._show()
    assert widget.logic.segment_id == ""


def test_a_deleted_segmentation_does_not_stop_the_scene_from_closing(desktop: Any, widget: Any, case: Any):
    _, inside = case
    click(desktop, widget, inside)
    slicer.mrmlScene.RemoveNode(widget.logic.interaction.segmentation)
    slicer.mrmlScene.Clear(0)
    assert widget.logic.interaction is None
    assert widget.logic._interactions == {}


def test_a_stopped_engine_stays_stopped(desktop: Any, widget: Any, case: Any):
    """While a mask is made: the click is dropped, and the next one has an engine that the panel knows."""
    _, inside = case
    before = click(desktop, widget, inside)
    stopped = widget.logic.engine
    desktop.slice_view("Red").click_ras(inside + np.array((7, 9, 0)))
    assert widget.logic.busy
    desktop.click(widget.panel.ui.stopButton)
    assert not widget.logic.busy
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 1
    desktop.click(widget.panel.ui.undoButton)
    desktop.click(widget.panel.ui.redoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert np.array_equal(mask_of(widget), before)
    assert not stopped.running
    assert widget.logic.engine.running


def test_another_engine_takes_no_step_and_no_neighbour_away(desktop: Any, widget: Any, case: Any):
    """What undo gives back, and what was undone, is known as before."""
    _, inside = case
    ui = widget.panel.ui
    first = click(desktop, widget, inside)
    neighbour = widget.logic.segment_id
    desktop.click(ui.acceptButton)
    try:
        ui.overwriteComboBox.currentIndex = ui.overwriteComboBox.findData("others")
        second = click(desktop, widget, inside)
        assert (first & second).any()
        desktop.click(ui.stopButton)
        desktop.click(ui.undoButton)
        widget.logic.segment_id = neighbour
        assert np.array_equal(mask_of(widget), first)
        widget.logic.use_engine(widget.panel.engine._make_source())
        desktop.click(ui.redoButton)
        desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
        assert np.array_equal(mask_of(widget), second)
    finally:
        widget.panel._parameters.overwrite = "nothing"


def test_clicks_of_an_image_that_was_cropped_since_are_told(desktop: Any, widget: Any, case: Any):
    """By Crop Volume into itself, say; each click says so, and another segmentation goes on."""
    volume, inside = case
    click(desktop, widget, inside)
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[:-20].copy())
    widget.panel._selected()
    for _ in range(2):
        assert not widget.panel._clicked(inside, True)
        assert "another segmentation" in widget.panel.ui.statusLabel.text
    widget.panel.ui.segmentationSelector.setCurrentNode(None)
    assert widget.panel._clicked(inside, True)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert mask_of(widget).any()


def test_the_star_is_not_shown_with_another_segment(desktop: Any, widget: Any, case: Any):
    _, inside = case
    widget.panel.ui.hintCheckBox.checked = True
    try:
        click(desktop, widget, inside)
        star = widget.panel._placement._nodes["hint"]
        assert star.GetNumberOfControlPoints() == 1
        desktop.click(widget.panel.ui.acceptButton)
        assert star.GetNumberOfControlPoints() == 0
    finally:
        widget.panel.ui.hintCheckBox.checked = False


def test_a_click_under_the_mouse_keeps_its_colour(desktop: Any, widget: Any, case: Any):
    """By default Slicer shows it in green, which is foreground's."""
    from GSMedSegLib.mrml.placement import COLORS

    _, inside = case
    click(desktop, widget, inside)
    for role in ("foreground", "background"):
        display = widget.panel._placement._node(role).GetDisplayNode()
        assert display.GetActiveColor() == display.GetSelectedColor() == COLORS[role]


def test_an_image_in_colours_is_not_chosen_by_itself(desktop: Any, widget: Any):
    """A photograph or a screenshot that was loaded first: it has three values a voxel."""
    from GSMedSegUI.sample import add_sample_volume

    slicer.mrmlScene.Clear(0)
    photograph = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photograph")
    slicer.util.updateVolumeFromArray(photograph, np.zeros((1, 8, 8, 3), np.uint8))
    volume, _ = add_sample_volume()
    widget.panel.scene_changed()
    assert widget.panel._parameters.volume is volume


def test_a_click_counts_where_it_is_made(desktop: Any, widget: Any, case: Any):
    """The mouse is over the view when a mask arrives, and Slicer shows where it would put a point."""
    from GSMedSegLib.mrml.volumes import world_to_voxel

    volume, inside = case
    view, places = desktop.slice_view("Red"), []
    desktop.click(widget.panel.ui.foregroundButton)
    for offset in ((0, 0, 0), (8, 9, 0), (-7, -4, 0)):
        places.append(world_to_voxel(volume, view.click_ras(inside + np.array(offset))))
        view.hover_ras(inside + np.array((3, -6, 0)))
        desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    clicks = widget.logic.interaction.ledger.clicks(widget.logic.segment_id)
    assert [one.kji for one in clicks] == places
    desktop.click(widget.panel.ui.undoButton)
    desktop.wait_until(lambda: not widget.logic.busy, ENGINE_S)
    assert widget.panel._placement._nodes["foreground"].GetNumberOfDefinedControlPoints() == 2
