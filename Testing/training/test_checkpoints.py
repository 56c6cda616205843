"""What a run leaves behind can be gone on from, and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from GSMedSegLib.checkpoint import read_checkpoint
from Training import checkpoints
from Training.checkpoints import State, changed_settings, export, resume, save, seen_before
from Training.config import Config, Optimisation, as_table
from Training.optimiser import freeze, make_optimiser
from Training.seen import Trace


@pytest.fixture
def make_state(make_network):
    """A state of two tiny networks, with an optimiser that has made a step."""

    def make(seed, steps=0):
        network, average = (make_network(additions=True, seed=seed + n) for n in (0, 100))
        network.train().requires_grad_(True)
        optimiser = make_optimiser(network, Optimisation())
        for _ in range(steps):
            sum(p.square().sum() for p in network.parameters()).backward()
            optimiser.step()
        return State(network, average, optimiser, torch.amp.GradScaler("cpu", enabled=False))

    return make


def same_weights(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_checkpoint_is_the_whole_state(make_state, tmp_path):
    """Saved and loaded into a fresh start: weights, average, optimiser, step, curves."""
    state, fresh = make_state(0, steps=1), make_state(7)
    state.step, state.curves, state.best_step = 41, {0: {"dice": [0.5]}, 40: {"dice": [0.75]}}, 40
    save(tmp_path / "last.pt", state, as_table(Config(seed=3)))
    assert resume(tmp_path / "none.pt", fresh) is None
    settings = resume(tmp_path / "last.pt", fresh)
    assert settings["seed"] == 3
    assert (fresh.step, fresh.curves, fresh.best_step) == (41, state.curves, 40)
    assert same_weights(fresh.network, state.network)
    assert same_weights(fresh.average, state.average)
    moments = [s.optimiser.state_dict()["state"] for s in (fresh, state)]
    assert moments[0].keys() == moments[1].keys() != set()
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


def test_what_is_set_counts_and_not_what_was_saved(make_state, tmp_path):
    """Weight decay and the shares of the learning rate may be changed from one part of a run to the next."""
    save(tmp_path / "last.pt", make_state(0, steps=1), {})
    fresh = make_state(7)
    for group in fresh.optimiser.param_groups:
        group["factor"], group["weight_decay"] = 0.5, 0.25
    resume(tmp_path / "last.pt", fresh)
    assert {(g["factor"], g["weight_decay"]) for g in fresh.optimiser.param_groups} == {(0.5, 0.25)}
    assert fresh.optimiser.state_dict()["state"]


@pytest.mark.parametrize(
    "changed",
    [{"rate_factors": {"point_head": 0.5}}, {"freeze": ("image_encoder",)}],
    ids=["rate_factors", "freeze"],
)
@pytest.mark.parametrize("back", [False, True])
def test_what_is_trained_and_how_fast_may_change(make_network, tmp_path, changed, back):
    """As when the encoder is let go of after a while: what was remembered of each weight stays with it."""
    plain, other = Optimisation(), replace(Optimisation(), **changed)

    def made(settings):
        network = make_network(additions=True).train()
        freeze(network, settings.freeze)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return State(network, make_network(additions=True), make_optimiser(network, settings), scaler)

    before, now = (made(settings) for settings in ((other, plain) if back else (plain, other)))
    sum(p.square().sum() for p in before.network.parameters() if p.requires_grad).backward()
    before.optimiser.step()
    save(tmp_path / "last.pt", before, {})
    resume(tmp_path / "last.pt", now)
    for old, new in zip(before.network.parameters(), now.network.parameters(), strict=True):
        known = old.requires_grad and new.requires_grad
        assert (new in now.optimiser.state) == known
        if known:
            assert torch.equal(now.optimiser.state[new]["exp_avg"], before.optimiser.state[old]["exp_avg"])
    factors = {group["factor"] for group in now.optimiser.param_groups}
    assert factors == {1.0, *((plain if back else other).rate_factors.values())}


def test_what_another_optimiser_remembers_is_refused(make_state, tmp_path):
    """Nobody could go on from it."""
    save(tmp_path / "last.pt", make_state(0, steps=1), {})
    fresh = make_state(0)
    fresh.optimiser = make_optimiser(fresh.network, Optimisation(optimiser="muon"))
    with pytest.raises(ValueError, match=r"another network or optimiser.*made by AdamW, not by Muon"):
        resume(tmp_path / "last.pt", fresh)


def test_a_full_disk_keeps_the_last_good_checkpoint(make_state, tmp_path, monkeypatch):
    """What was there is still there, whole, and nothing half-written beside it."""
    path = tmp_path / "last.pt"
    state = make_state(0)
    state.step = 1
    save(path, state, {})
    good = path.read_bytes()

    def full(stored, file):
        Path(file).write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail] . PytorchStreamWriter failed writing file: No space left on device"
        )

    monkeypatch.setattr(checkpoints.torch, "save", full)
    state.step = 2
    with pytest.raises(OSError, match=r"last.pt cannot be written: .*No space left"):
        save(path, state, {})
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_fp16_may_begin_and_end_in_the_midst_of_a_run(make_state, tmp_path):
    """A run in another precision has no scale of the loss to remember."""
    scaled = torch.amp.GradScaler("cpu", init_scale=512.0)
    for before, scale in ((scaled, 512.0), (torch.amp.GradScaler("cpu", enabled=False), 4.0)):
        save(tmp_path / "last.pt", replace(make_state(0), scaler=before), {})
        fresh = replace(make_state(7), scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
        resume(tmp_path / "last.pt", fresh)
        assert fresh.scaler.get_scale() == scale
    save(tmp_path / "last.pt", replace(make_state(0), scaler=scaled), {})
    resume(tmp_path / "last.pt", make_state(7))


def test_what_weights_were_trained_on(make_state, tmp_path):
    """As the checkpoint beside them says, or the run's own one once there is one; else nothing is known."""
    weights, output = tmp_path / "weights.safetensors", str(tmp_path / "next")
    weights.write_bytes(b"")
    for init in (str(weights), "compact", "", "."):
        assert seen_before(output, init) == frozenset()
    smith, doe = Trace("a", "1f", ("/a.npz",), "Smith"), Trace("b", "", ("/b", "/c"), "")
    save(tmp_path / "last.pt", replace(make_state(0), seen=frozenset({smith, doe})), {})
    assert seen_before(output, str(weights)) == {smith, doe}
    torch.save({"model": {}, "seen": ["P001"]}, tmp_path / "last.pt")
    assert seen_before(output, str(weights)) == frozenset(), "one of before anything was remembered"
    (tmp_path / "next").mkdir()
    save(tmp_path / "next" / "last.pt", replace(make_state(0), before=frozenset({doe})), {})
    assert seen_before(output, str(weights)) == {doe}


@pytest.mark.parametrize("content", [b"PK", ["a list"], torch.zeros(3), {"weights": {}}])
def test_a_checkpoint_that_is_none_of_ours_tells_nothing(tmp_path, content):
    weights, last = tmp_path / "weights.safetensors", tmp_path / "last.pt"
    weights.write_bytes(b"")
    last.write_bytes(content) if isinstance(content, bytes) else torch.save(content, last)
    with pytest.raises(
        ValueError, match=r"last\.pt, which should say what .* were trained on, is damaged, or of"
    ):
        seen_before(str(tmp_path / "next"), str(weights))


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_damaged_checkpoint_is_refused(make_state, tmp_path, damage):
    """With what to do; it is neither overwritten nor passed over."""
    path = tmp_path / "last.pt"
    save(path, make_state(0), {})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "text":
        path.write_text("hello", encoding="utf-8")
    else:
        torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match=r"damaged, or of another network or optimiser; move it away"):
        resume(path, make_state(0))
    assert path.exists()


def test_exported_weights_are_the_librarys(make_state, tmp_path):
    """In fp16, with what they say about themselves."""
    network = make_state(0).network
    export(tmp_path / "w.safetensors", network, {"roi": "16"})
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert read.metadata["roi"] == "16"
    assert {tensor.dtype for tensor in read.tensors.values()} == {torch.float16}
    assert read.tensors.keys() == network.state_dict().keys()


def test_changed_settings_are_named():
    """Within groups too; what is the same is not."""
    before, now = as_table(Config()), as_table(Config(seed=1, optimisation=Optimisation(epochs=31)))
    assert changed_settings(before, now) == ["optimisation.epochs: 30 → 31", "seed: 0 → 1"]
    assert changed_settings(before, before) == []
