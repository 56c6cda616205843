"""The training run: it learns, it stops and goes on, and what it writes segments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from GSMedSegLib.checkpoint import read_checkpoint
from GSMedSegLib.npz import Case, read_case, write_case
from GSMedSegLib.predictor import Predictor, load_engine
from GSMedSegLib.sharding import Ranks
from Training import checkpoints, examples, finetune
from Training.cases import find_data
from Training.checkpoints import State
from Training.config import OPTIMISERS, Config, NewNetwork, Optimisation, Sampling, Source, Validation
from Training.examples import Example
from Training.finetune import Stop, main, take_step, train
from Training.learning import Tally
from Training.optimiser import make_optimiser

ROOT = Path(__file__).resolve().parents[2]
TINY = NewNetwork(8, (1, 1, 2), 16, (8, 16))


@pytest.fixture(autouse=True)
def _leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No allocator settings; threads as they were."""
    monkeypatch.setattr(finetune, "keep_freed_memory", lambda: False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A folder of four small cases, each with a bright ball and a dim one."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cases"
    folder.mkdir()
    grid = np.indices((20, 24, 24))
    for name in "abcd":
        labels = np.zeros((20, 24, 24), np.uint8)
        for label in (1, 2):
            center = rng.uniform(6, 14, 3)[:, None, None, None]
            labels[((grid - center) ** 2).sum(0) < rng.uniform(12, 30)] = label
        image = labels * 80 + rng.integers(0, 40, labels.shape)
        write_case(folder / f"{name}.npz", Case(name, image.astype(np.uint8), (2.0, 1.0, 1.0), labels))
    return folder


@pytest.fixture
def config(cases: Path, tmp_path: Path) -> Config:
    """A run that takes a second: a tiny network, one view of 16³ a case, no other process."""
    return Config(
        data=(Source(path=str(cases)),),
        init="",
        output=str(tmp_path / "run"),
        device="cpu",
        workers=0,
        network=TINY,
        sampling=Sampling(cases=2, views=1, objects=2, roi=16),
        optimisation=Optimisation(
            epochs=3, steps_per_epoch=1, warmup_steps=1, precision="fp32", head_share=0.5, learning_rate=1e-3
        ),
    )


def another(case: Path, path: Path) -> None:
    """A case like another one, whose image is not the same."""
    like = read_case(case)
    noise = np.random.default_rng(zlib.crc32(path.stem.encode())).integers(0, 9, like.image.shape)
    path.parent.mkdir(exist_ok=True)
    write_case(path, replace(like, image=(like.image // 2 + noise).astype(np.uint8)))


def last(config: Config) -> dict:
    return torch.load(Path(config.output) / "last.pt", weights_only=True)


def longer(config: Config, **changes) -> Config:
    return replace(config, optimisation=replace(config.optimisation, **changes))


def after(config: Config, **changes) -> Config:
    """A run that starts from what another one made."""
    init, output = f"{config.output}/weights.safetensors", f"{config.output} and on"
    return replace(config, **{"init": init, "output": output, **changes})


def losses(config: Config) -> list[float]:
    """Of every step, from the events; where a step was done twice, the later counts.

    File by file: several runs within a second are not in the order of their names.
    """
    found: dict[int, float] = {}
    for file in sorted((Path(config.output) / "events").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            found |= {e.step: e.value for e in events.Scalars("train/loss")}
    return [found[step] for step in sorted(found)]


def same_weights(a: dict, b: dict) -> bool:
    return all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])


def test_a_run_ends_with_weights_and_their_card(config, capsys):
    """Without validation: the average of the weights, said to be unmeasured. A second run only says so."""
    train(config)
    output = Path(config.output)
    assert last(config)["step"] == 3
    checkpoint = read_checkpoint(output / "weights.safetensors", check_finite=True)
    assert checkpoint.metadata["roi"] == "16"
    assert checkpoint.metadata["intensity"] == "view"
    assert checkpoint.metadata["steps"] == "3"
    average = last(config)["average"]
    assert all(torch.allclose(checkpoint.tensors[k].float(), average[k], atol=2e-3) for k in average)
    assert "Not measured" in (output / "MODEL_CARD.md").read_text(encoding="utf-8")
    written = {
        p.name: p.stat().st_mtime_ns for p in output.iterdir() if p.is_file() and p.name != "checked.json"
    }
    capsys.readouterr()
    train(config)
    assert f"at its end already, weights: {output / 'weights.safetensors'}" in capsys.readouterr().out
    assert written == {name: (output / name).stat().st_mtime_ns for name in written}


def test_the_window_of_the_cases_goes_with_the_weights(config):
    """A run from these weights on other cases forgets it."""
    train(replace(config, data=(replace(config.data[0], window=(-160, 240)),)))
    weights = Path(config.output) / "weights.safetensors"
    assert read_checkpoint(weights).metadata["window"] == "-160 240"
    train(replace(config, init=str(weights), output=f"{config.output}-2"))
    assert "window" not in read_checkpoint(f"{config.output}-2/weights.safetensors").metadata


def test_what_is_exported_segments(config, blobs):
    """The weights load by their path, with the ROI and intensities they were trained on."""
    train(config)
    path = Path(config.output) / "weights.safetensors"
    predictor = Predictor(load_engine(str(path), device="cpu", precision="fp32"))
    predictor.set_image(blobs(20, 24, 28))
    predictor.add_object("a")
    predictor.add_click("a", (10, 12, 14))
    assert predictor.predict("a")[10, 12, 14]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_an_interrupted_run_ends_as_one_that_was_not(config, tmp_path, monkeypatch, optimiser):
    """Stopped by a signal after its second step and gone on with: the same losses, the same weights."""
    whole = longer(replace(config, output=str(tmp_path / "whole")), epochs=5, optimiser=optimiser)
    train(whole)
    broken = longer(config, epochs=5, optimiser=optimiser)
    plain, calls = finetune.take_step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(finetune, "take_step", interrupted)
    train(broken)
    assert last(broken)["step"] == 2
    assert not (Path(broken.output) / "weights.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(finetune, "take_step", plain)
    train(broken)
    assert last(broken)["step"] == 5
    assert losses(broken) == losses(whole)
    assert same_weights(last(broken), last(whole))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_after_the_step(config, monkeypatch, name):
    """A run of a thousand steps saves what it has."""
    plain, calls = finetune.learn, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return plain(*arguments)

    monkeypatch.setattr(finetune, "learn", interrupted)
    train(longer(config, epochs=1000))
    assert last(config)["step"] == 2
    assert (Path(config.output) / "average.safetensors").exists()


@pytest.mark.parametrize(("pattern", "told"), [("", True), ("[abcd]", True), ("a|", False)])
def test_whom_a_split_takes_for_a_patient_is_said(config, capsys, pattern, told):
    """Whoever has several scans of a patient learns that they may fall on both sides. `a|`: only two."""
    train(replace(config, validation=Validation(share=0.25, patient=pattern)))
    said = "validation cases, each taken for a patient of its own (--patient finds whose they are)"
    assert (said in capsys.readouterr().err) == told


@pytest.mark.parametrize(("within_s", "code"), [(0.0, 130), (3600.0, 0)])
def test_a_second_ctrl_c_breaks_a_validation_off(tmp_path, cases, monkeypatch, capfd, within_s, code):
    """A second one that comes at once, as launchers pass it on, is the same wish: the step is waited for."""
    monkeypatch.setattr(finetune, "ONE_WISH_S", within_s)
    plain = finetune.validate

    def interrupted(*arguments, **named):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)  # a clock of Windows ticks every 16 ms
        signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **named)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(finetune, "validate", interrupted)
    assert main([str(toml(tmp_path / "run.toml", cases)), "--share", "0.25"]) == code
    assert signal.getsignal(signal.SIGINT) is before
    told = capfd.readouterr().err
    assert told.count("stopping after this step; Ctrl-C again breaks off at once") == 1
    assert ("broken off; the same command goes on from the last checkpoint" in told) == (code == 130)
    assert ("stopped after step 1 of 2" in told) == (code == 0)


def test_a_killed_run_goes_on_from_its_last_checkpoint(config, tmp_path, monkeypatch):
    """Killed outright between two checkpoints: what follows is repeated, to the same losses."""
    whole = longer(replace(config, output=str(tmp_path / "whole")), epochs=5)
    train(whole)
    broken = replace(longer(config, epochs=5), save_every_s=0.0)
    plain, calls = checkpoints.save, []

    def lost(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt  # nothing of ours catches it: as good as dead
        return plain(*arguments)

    monkeypatch.setattr(checkpoints, "save", lost)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert last(broken)["step"] == 2
    monkeypatch.setattr(checkpoints, "save", plain)
    train(broken)
    assert losses(broken) == losses(whole)
    assert same_weights(last(broken), last(whole))


def test_what_a_killed_run_had_begun_to_write_is_deleted(config):
    """With large weights gigabytes each time; what is not the run's stays."""
    output = Path(config.output)
    output.mkdir()
    begun = [output / f".0123abcd-{name}" for name in ("last.pt", "best.safetensors")]
    for path in (*begun, output / ".notes-last.pt"):
        path.write_bytes(b"half")
    train(config)
    assert not any(path.exists() for path in begun)
    assert (output / ".notes-last.pt").exists()


def test_a_full_disk_on_the_way_is_told_and_tried_again(config, monkeypatch, capsys):
    """The run goes on; at the end it must be written."""
    plain, calls = checkpoints.save, []

    def full(*arguments):
        calls.append(None)
        if len(calls) == 1:
            raise OSError("no space left")
        plain(*arguments)

    monkeypatch.setattr(checkpoints, "save", full)
    train(replace(config, save_every_s=0.0))
    assert "not saved, the run goes on and tries again: no space left" in capsys.readouterr().err
    assert last(config)["step"] == 3
    monkeypatch.setattr(checkpoints, "save", lambda *arguments: full(*arguments) if calls.clear() else full())
    with pytest.raises(OSError, match="no space left"):
        train(longer(config, epochs=4))
    assert last(config)["step"] == 3, "the last good one is still there"


def test_validation_keeps_the_best_and_tells_what_training_brought(config, capsys):
    """Curves before, on the way and after; the best step's weights; figure, table, summary, card."""
    config = replace(longer(config, epochs=4), validation=Validation(share=0.25, every=2))
    train(config)
    output = Path(config.output)
    curves = last(config)["curves"]
    assert sorted(curves) == [0, 2, 4]
    best = max((2, 4), key=lambda step: curves[step]["dsc_auc"])
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert last(config)["best_step"] == summary["best_step"]
    assert curves[summary["best_step"]]["dsc_auc"] == curves[best]["dsc_auc"]
    assert summary["before"] == curves[0]["dsc_auc"]
    exported_in_half_precision = summary["best_step"] != 4
    wanted = pytest.approx(curves[best]["dsc_auc"], abs=0.05 if exported_in_half_precision else 0)
    assert summary["after"] == wanted
    assert read_checkpoint(output / "weights.safetensors").metadata["steps"] == str(summary["best_step"])
    assert (output / "clicks.png").stat().st_size > 5000
    assert "| before |" in capsys.readouterr().out
    assert "| after |" in (output / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("look", [2, 3], ids=["on the way", "the last"])
def test_a_validation_that_was_broken_off_is_made_again(config, tmp_path, monkeypatch, look):
    """Else the best weights might never be looked at; the run ends as one that was not broken off."""
    config = replace(longer(config, epochs=4), validation=Validation(share=0.25, every=2))
    whole = replace(config, output=str(tmp_path / "whole"))
    train(whole)
    plain, looks = finetune.validate, []

    def broken_off(*arguments, **named):
        looks.append(None)
        if len(looks) == look:
            raise KeyboardInterrupt  # nothing of ours catches it: as good as dead
        return plain(*arguments, **named)

    monkeypatch.setattr(finetune, "validate", broken_off)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    train(config)
    assert last(config)["curves"] == last(whole)["curves"]
    assert last(config)["best_step"] == last(whole)["best_step"]
    looks.clear()
    train(config)
    assert not looks, "it is at its end"


def test_a_case_without_labels_is_never_drawn(config, cases, monkeypatch):
    """It is left out, and the run sees the four others."""
    empty = Case(
        "e", np.arange(512).reshape(8, 8, 8).astype(np.uint8), (1.0,) * 3, np.zeros((8, 8, 8), np.uint8)
    )
    write_case(cases / "e.npz", empty)
    plain, seen = finetune.learn, set()

    def watched(network, views, *arguments):
        seen.update(view.name for view in views)
        return plain(network, views, *arguments)

    monkeypatch.setattr(finetune, "learn", watched)
    train(longer(config, epochs=6))
    assert seen == set("abcd")


def test_validation_may_begin_later(config, cases, tmp_path):
    """A run that had none, prolonged with cases of their own: what is before is what the first look saw."""
    apart = tmp_path / "apart"
    apart.mkdir()
    (cases / "d.npz").rename(apart / "d.npz")
    train(config)
    train(replace(longer(config, epochs=5), validation=Validation(path=str(apart), every=1)))
    summary = json.loads((Path(config.output) / "summary.json").read_text(encoding="utf-8"))
    assert summary["before"] == last(config)["curves"][3]["dsc_auc"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": 0.5}, r"was validated with other cases \(1 of them\); scores could not be compared"),
        ({"limit_objects": 1}, r"was validated in another way \(validation\.limit_objects: .* → 1\)"),
        ({"strategy": "reference"}, r"was validated in another way \(validation\.strategy: adaptive → ref"),
    ],
)
def test_scores_of_a_run_are_of_the_same_cases(config, changed, message):
    """Else "before" and "after" in the model card would not be of one thing; how often may change."""
    first = replace(config, validation=Validation(share=0.25, every=1))
    train(first)
    train(replace(longer(first, epochs=4), validation=replace(first.validation, every=2)))
    with pytest.raises(ValueError, match=message):
        train(replace(longer(first, epochs=5), validation=replace(first.validation, **changed)))


def test_a_run_keeps_its_origin(config, tmp_path):
    """The model card names it, and its terms hold."""
    train(config)
    other = tmp_path / "other.safetensors"
    (Path(config.output) / "weights.safetensors").rename(other)
    with pytest.raises(ValueError, match=r"started from other weights \(init:  → .*other\.safetensors\)"):
        train(replace(longer(config, epochs=5), init=str(other)))


def test_who_was_trained_on_does_not_validate(config):
    """A share that is asked for later, or drawn by another seed: the figures would flatter."""
    train(config)
    later = replace(longer(config, epochs=5), validation=Validation(share=0.25, every=1))
    with pytest.raises(ValueError, match=r"was trained on patients that are to validate it now: [abcd]; "):
        train(later)
    train(replace(later, output=config.output + " anew"))


def test_whom_earlier_runs_were_trained_on_validates_no_later_one(config, cases, tmp_path):
    """From a run's weights on with other patients, and from those with all of them and two more."""
    train(config)
    others = tmp_path / "others"
    for name in ("others/e", "others/f", "cases/g", "cases/h"):
        another(cases / "a.npz", tmp_path / f"{name}.npz")
    second = after(config, data=(Source(path=str(others)),))
    train(second)
    assert {name for name, *_ in last(second)["trained_on"]} == set("abcdef")
    third = after(second, data=config.data)
    for seed in range(5):
        data = find_data(replace(third, seed=seed, validation=Validation(share=0.3)))
        assert [case.name for case in data.validation] in (["g"], ["h"])
        assert data.left_out == 4


def test_other_people_of_the_same_names_validate(config, cases, tmp_path):
    """`001` is in many data sets; and the first run's cases may have moved meanwhile."""
    train(config)
    for name in "abcd":
        another(cases / f"{name}.npz", tmp_path / "elsewhere" / f"{name}.npz")
    later = after(config, validation=Validation(share=0.5))
    assert len(find_data(replace(later, data=(Source(path=str(tmp_path / "elsewhere")),))).validation) == 2
    cases.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="trained on all these patients"):
        find_data(replace(later, data=(Source(path=str(tmp_path / "moved")),)))


def test_a_pattern_finds_patients_of_an_earlier_run_without_one(config, cases, tmp_path):
    train(config)
    new = tmp_path / "new"
    for name in ("a_2", "b_2", "c_2", "e_1"):
        another(cases / "a.npz", new / f"{name}.npz")
    split = Validation(share=0.5, patient="^[a-e]")
    for seed in range(4):
        data = find_data(after(config, data=(Source(path=str(new)),), seed=seed, validation=split))
        assert [case.name for case in data.validation] == ["e_1"]
        assert data.left_out == 3


def test_weights_are_not_validated_with_their_own_cases(config, cases, tmp_path):
    """Nor where those are given apart, before or in this run."""
    other = tmp_path / "other"
    another(cases / "a.npz", other / "z.npz")
    shutil.copy(cases / "b.npz", other / "copy.npz")
    apart = Validation(path=str(other))
    with pytest.raises(ValueError, match="trained on and validated with: copy; take them out of one"):
        find_data(replace(config, validation=apart))
    train(config)
    later = after(config, data=(Source(path=str(tmp_path / "y")),), validation=apart)
    another(cases / "a.npz", tmp_path / "y" / "y.npz")
    with pytest.raises(
        ValueError, match=r"start from were trained on cases of .*other, or others of their patients: copy; "
    ):
        find_data(later)
    (other / "copy.npz").unlink()
    assert [case.name for case in find_data(later).validation] == ["z"]


def test_a_run_keeps_its_split_when_the_run_before_it_is_deleted(config, cases, tmp_path):
    train(config)
    another(cases / "a.npz", cases / "e.npz")
    later = after(config, validation=Validation(share=0.2, every=1))
    train(later)
    (Path(config.output) / "last.pt").unlink()
    assert find_data(later).left_out == 4
    train(longer(later, epochs=4))
    assert {name for curve in last(later)["curves"].values() for name in curve["cases"]} == {"e"}


def test_a_finished_run_is_not_taken_for_one_of_other_data(config, cases, tmp_path):
    """As with a settings file whose output is always the same: nothing would be trained on them."""
    train(config)
    cases.rename(tmp_path / "others")
    others = replace(config, data=(Source(path=str(tmp_path / "others")),))
    with pytest.raises(ValueError, match=r"is after step 3 with other data \(data: .* or another output"):
        train(others)
    train(longer(others, epochs=4))


def test_a_run_cannot_end_before_where_it_is(config):
    train(config)
    with pytest.raises(ValueError, match=r"is after step 3, beyond the 2 steps .* give more epochs"):
        train(longer(config, epochs=2))


def test_a_disk_that_is_full_at_the_best_step_costs_no_run(config, monkeypatch, capsys):
    """It goes on without the best weights, and ends with the average."""
    plain = checkpoints.export

    def full(path, network, metadata):
        if path.name == "best.safetensors":
            raise OSError("no space left")
        plain(path, network, metadata)

    monkeypatch.setattr(checkpoints, "export", full)
    train(replace(config, validation=Validation(share=0.25, every=1)))
    assert last(config)["best_step"] is None
    assert (Path(config.output) / "weights.safetensors").exists()
    assert "not kept: no space left" in capsys.readouterr().err


def test_an_end_that_was_broken_off_is_made_again(config, monkeypatch):
    """Whatever fails after the last step, the same command ends the run."""
    plain = finetune.write_model_card

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(finetune, "write_model_card", full)
    with pytest.raises(OSError, match="no space left"):
        train(config)
    assert not (Path(config.output) / "weights.safetensors").exists()
    monkeypatch.setattr(finetune, "write_model_card", plain)
    train(config)
    assert (Path(config.output) / "weights.safetensors").exists()
    assert (Path(config.output) / "MODEL_CARD.md").exists()


def test_what_is_missing_is_said_before_the_training(config, monkeypatch):
    """Not when the curves are to be drawn, hours later."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"training needs tensorboard .*pip install 'gsmedseg\[train\]'"):
        train(config)


def test_processes_must_see_the_same_checkpoint(config, monkeypatch):
    """On machines that share no folder all but the first would start anew."""
    train(config)
    monkeypatch.setattr(Ranks, "agree", lambda self, item: 0 if item == 3 else item)
    with pytest.raises(ValueError, match="is not the same for all processes; let `output` be a folder"):
        train(longer(config, epochs=5))


def test_a_step_without_objects_moves_nothing(config, make_network):
    """Nor does it fail; the figures are zeros."""
    network = make_network(additions=True).train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = make_optimiser(network, config.optimisation)
    state = State(
        network, make_network(additions=True), optimiser, torch.amp.GradScaler("cpu", enabled=False)
    )
    nothing = Example(torch.zeros(16, 16, 16), torch.zeros(0, 16, 16, 16, dtype=torch.bool))
    figures, images, shown, stopped = take_step(
        state, [nothing], config, 10, 1, torch.device("cpu"), Ranks(), Stop()
    )
    assert (figures["loss"], images, shown, stopped) == (0, 0, None, False)
    assert state.step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_loss_that_is_not_finite_names_the_case(config, monkeypatch, capsys):
    """The run stops with exit code 2 before the weights are spoilt, and says what to do."""
    plain = finetune.start_network

    def spoilt(settings):
        network, metadata, settled = plain(settings)
        network.point_head.mixer.to_logits.bias.data.fill_(torch.nan)
        return network, metadata, settled

    monkeypatch.setattr(finetune, "start_network", spoilt)
    with pytest.raises(
        RuntimeError, match=r"the loss of [abcd](, [abcd])* is not finite at step 1; look at the case"
    ):
        train(config)
    assert not (Path(config.output) / "last.pt").exists()


def test_gradients_that_always_overflow_end_the_run(config, make_network, monkeypatch):
    """In fp16 a step that overflows is left out and the scale halved; after 27 the run does nothing else."""
    network = make_network(additions=True).train().requires_grad_(True)
    optimiser = make_optimiser(network, config.optimisation)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    state = State(network, make_network(additions=True), optimiser, scaler)

    def overflowing(*arguments):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf)
        return Tally(objects=1, views=1)

    monkeypatch.setattr(finetune, "learn", overflowing)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def step():
        take_step(state, [], config, 100, 100, torch.device("cpu"), Ranks(), Stop())

    for _ in range(26):
        step()
    with pytest.raises(RuntimeError, match=r"overflow in fp16 .* up to step 27; use bf16 or fp32"):
        step()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_case_that_is_away_in_the_middle_costs_no_step(tmp_path, cases, monkeypatch, capsys):
    """As on a share that is lost for a moment: one line, and the same command goes on after that step."""
    file = toml(tmp_path / "run.toml", cases, cache_gb=0.0)
    plain, read = examples.load_case, []

    def away(*arguments):
        read.append(None)
        if len(read) == 3:  # the first case of the second step
            raise OSError("the share is away")
        return plain(*arguments)

    monkeypatch.setattr(examples, "load_case", away)
    assert main([str(file)]) == 2
    (told,) = (line for line in capsys.readouterr().err.splitlines() if "away" in line)
    assert told == "Training.finetune: error: an example could not be made, the share is away"
    assert last(Config(output=str(tmp_path / "run")))["step"] == 1
    assert main([str(file)]) == 0
    assert "going on after step 1" in capsys.readouterr().err


def toml(path: Path, cases: Path, **more) -> Path:
    """A configuration file of the tiny run."""
    extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    path.write_text(
        f"output = {json.dumps(str(path.parent / 'run'))}\ninit = ''\ndevice = 'cpu'\nworkers = 0\n{extra}"
        f"[[data]]\npath = {json.dumps(str(cases))}\n"
        "[network]\ninit_filters = 8\nblocks_down = [1, 1, 2]\nwidth = 16\nmixer = [8, 16]\n"
        "[sampling]\ncases = 2\nviews = 1\nobjects = 2\nroi = 16\n"
        "[optimisation]\nepochs = 2\nsteps_per_epoch = 1\nwarmup_steps = 1\nprecision = 'fp32'\n",
        encoding="utf-8",
    )
    return path


def test_the_command_line(tmp_path, cases, capsys):
    """A run, its end, and what changed when it is prolonged."""
    file = toml(tmp_path / "run.toml", cases)
    assert main([str(file)]) == 0
    assert "weights: " in capsys.readouterr().out
    assert main([str(file), "--epochs", "3"]) == 0
    told = capsys.readouterr().err
    assert "changed since the last checkpoint: optimisation.epochs: 2 → 3" in told
    assert "going on after step 2" in told


def test_check_lists_what_is_broken(tmp_path, cases, capsys):
    """With its reason, and an exit code; nothing is trained."""
    file = toml(tmp_path / "run.toml", cases)
    assert main([str(file), "--check"]) == 0
    assert "4 cases, 0 broken, 0 without labels" in capsys.readouterr().out
    (cases / "b.npz").write_bytes(b"PK")
    assert main([str(file), "--check"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("b: ")
    assert "4 cases, 1 broken" in told
    assert main([str(file)]) == 2
    assert "1 of 4 cases are broken (b: " in capsys.readouterr().err
    assert main([str(file), "--skip_broken", "true"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--roi", "10"], "roi: expected a multiple of"),
        (["--init", "nobody"], "there is no 'nobody'"),
        (["--freeze", '["decoder"]'], "freeze: no weight's name begins with 'decoder'"),
        (["--data", "nowhere"], "nowhere"),
        (["--device", "tpu"], "tpu"),
        (["--precision", "fp16"], "fp16 is for CUDA; use precision fp32 or bf16"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, cases, capsys, overrides, message):
    """Exit code 2, what is wrong, no traceback."""
    assert main([str(toml(tmp_path / "run.toml", cases)), *overrides]) == 2
    told = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("Training.finetune: error")
    ]
    assert len(told) == 1
    assert message in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 1], ids=["a case each", "nothing for the second"])
def test_two_processes_train_as_one(tmp_path, cases, count):
    """The same cases a step, over one process or two, the second idle or not: twenty equal losses."""
    options = ["--epochs", "20", "--cases", str(count), "--share", "0.25", "--every", "10"]
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = [str(toml(folder / "run.toml", cases, threads=1)), *options]
        if processes == 1:
            assert main(words) == 0
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            command = [sys.executable, *launcher, "-m", "Training.finetune", *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
        config = Config(output=str(folder / "run"))
        found.append((losses(config), last(config)["curves"]))
    (one, curves_of_one), (two, curves_of_two) = found
    assert len(one) == len(set(one)) == 20
    assert one == pytest.approx(two, abs=1e-4)
    assert curves_of_one[0]["dice"] == pytest.approx(curves_of_two[0]["dice"], abs=1e-6)
    assert sorted(curves_of_one) == sorted(curves_of_two) == [0, 10, 20]
