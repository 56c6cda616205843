"""What a clinician does: buttons pressed and views clicked by the mouse, with a real engine behind them.

The stage is Slicer-like, not Slicer: its core is Slicer's own, its widgets are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.slicer.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def case(desktop: Any, widget: Any) -> Any:
    """The sample image in an empty scene; volume, and a point inside its organ."""
    from GSMedSegUI.sample import add_sample_volume

    desktop.clear()
    volume, inside = add_sample_volume()
    desktop.show(volume, inside)
    widget.panel.scene_changed()
    yield volume, inside
    desktop.work()
    assert desktop.errors == []
    assert desktop.messages == []


def mask_of(widget: Any) -> np.ndarray:
    """(K, J, I) what the chosen segment has."""
    from GSMedSegLib.mrml.segments import read_mask

    interaction = widget.logic.interaction
    return read_mask(interaction.segmentation, widget.logic.segment_id, interaction.volume).whole()


def click(desktop: Any, widget: Any, ras: np.ndarray, button: str = "foregroundButton") -> np.ndarray:
    """A click in the axial view, and the mask it gives."""
    ui = widget.panel.ui
    if not getattr(ui, button).checked:
        desktop.press(getattr(ui, button))
    desktop.click_view("Red", ras)
    assert widget.logic.interaction.ledger.clicks(widget.logic.segment_id), "the click did not arrive"
    desktop.wait_until(lambda: not widget.logic.busy)
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

    corrected = click(desktop, widget, inside + np.array((0, 60, 0)), "backgroundButton")
    assert not ui.foregroundButton.checked
    assert len(widget.logic.interaction.ledger.clicks(widget.logic.segment_id)) == 2
    desktop.press(ui.undoButton)
    desktop.wait_until(lambda: not widget.logic.busy)
    assert np.array_equal(mask_of(widget), mask)
    desktop.press(ui.redoButton)
    desktop.wait_until(lambda: not widget.logic.busy)
    assert np.array_equal(mask_of(widget), corrected)

    first = widget.logic.segment_id
    desktop.press(ui.acceptButton)
    assert widget.logic.segment_id != first
    assert not mask_of(widget).any()
    desktop.screenshot(tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 10_000


def test_a_killed_engine_comes_back_by_itself(desktop: Any, widget: Any, case: Any):
    _, inside = case
    before = click(desktop, widget, inside)
    engine = widget.panel.engine._source
    pid = engine.pid
    engine._process.kill()
    desktop.press(widget.panel.ui.undoButton)
    widget.logic._background._answers.clear()  # what is remembered here would do without the engine
    desktop.press(widget.panel.ui.redoButton)
    desktop.wait_until(lambda: not widget.logic.busy)
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
    desktop.clear()
    widget.panel.scene_changed()
    desktop.press(widget.panel.ui.foregroundButton)
    assert not widget.panel.ui.foregroundButton.checked
    assert any("choose an image first" in str(error) for error in desktop.errors)
    desktop.errors.clear()
    desktop.messages.clear()


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
    desktop.press(widget.panel.ui.lockButton)
    assert is_locked(widget.logic.interaction.segmentation, widget.logic.segment_id)
    desktop.press(widget.panel.ui.lockButton)
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
