"""What a run shows: a bar, events, the seed's figure."""

from __future__ import annotations

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from Training.learning import Shown
from Training.progress import Progress, figure, memory_gib

CURVE = {"dsc_auc": 2.5, "dice": [0.5, 0.6, 0.7, 0.7, 0.7], "failed": {"case_x": "cannot be read"}}


def shown():
    image = np.linspace(0, 1, 512, dtype=np.float32).reshape(8, 8, 8)
    target = np.zeros((8, 8, 8), np.float32)
    target[3, 2:5, 2:5] = 1
    return Shown(image, target, 0.5 * target, (3, 4, 4))


def test_the_figure_is_the_slice_of_the_first_click():
    """Image, truth and answer side by side; the click is red."""
    picture = figure(shown())
    assert picture.shape == (8, 24, 3)
    assert picture[4, 4].tolist() == [255, 60, 60]
    assert (picture[2:5, 10:13] == 255).all()
    assert (picture[2:5, 18:21] == 127).all()
    assert not picture[0, 8:].any()


def test_events_can_be_read_back(tmp_path, capsys):
    """Losses, rate, validation curve and figure, at their steps; the bar shows smoothed figures."""
    with Progress(tmp_path, 100, 0, shows=True) as progress:
        for step in range(1, 101):
            progress.step(step, {"loss": 1.0 / step, "rate": 1e-4}, 4, shown())
        progress.curve(100, CURVE)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 101))
    assert events.Scalars("train/loss")[3].value == pytest.approx(0.25)
    assert events.Scalars("validation/Dice after click 2")[0].value == pytest.approx(0.6)
    assert events.Scalars("validation/DSC_AUC")[0].step == 100
    assert [e.step for e in events.Images("train/first point")] == [1, 50, 100]
    told = capsys.readouterr().err
    assert "step 100: DSC_AUC 2.500, Dice 0.500 0.600" in told
    assert "case_x failed: cannot be read" in told
    assert "GiB" in told


@pytest.mark.parametrize("method", ["add_scalar", "close"])
def test_a_run_goes_on_without_events_on_a_full_disk(tmp_path, capsys, monkeypatch, method):
    """It says so once."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, method, full)
    with Progress(tmp_path, 10, 0, shows=True) as progress:
        for step in (1, 2):
            progress.step(step, {"loss": 1.0}, 4, shown())
        progress.curve(2, CURVE)
    told = capsys.readouterr().err
    assert told.count("TensorBoard's events end here, the run goes on: [Errno 28]") == 1
    assert "2/10" in told


def test_other_processes_show_nothing(tmp_path, capsys):
    with Progress(tmp_path, 10, 0, shows=False) as progress:
        progress.step(1, {"loss": 1.0}, 4, shown())
        progress.curve(1, CURVE)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_memory_is_told_in_gib():
    """A Python process with torch has some, and not hundreds."""
    assert 0 <= memory_gib() < 500
