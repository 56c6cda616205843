"""The training run: it learns, it stops and goes on, and what it writes segments."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from GSMedSegLib.checkpoint import read_checkpoint
from GSMedSegLib.network import PointHead, Shape
from GSMedSegLib.predictor import Predictor, load_engine
from Training import finetune
from Training.config import Config
from Training.finetune import (
    FIRST_CLICKS,
    FIRST_GUESS,
    first_clicks,
    hard_dice,
    main,
    place_on_errors,
    rate,
    resume,
    save,
    schedule,
    start_network,
    to_prompts,
    train,
    train_step,
    update_average,
)
from Training.sampling import Example

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _leave_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No allocator settings; signals and threads as they were."""
    monkeypatch.setattr(finetune, "keep_freed_memory", lambda: False)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name, handler in handlers.items():
        signal.signal(name, handler)


@pytest.fixture
def config(training_data: Path, tmp_path: Path) -> Config:
    """A run that takes a second: a tiny network, one view of 16³, no other process."""
    return Config(
        data=str(training_data),
        output=str(tmp_path / "run"),
        init_filters=8,
        blocks_down=(1, 1, 2),
        width=16,
        mixer=(8, 16),
        roi=16,
        views=1,
        objects=2,
        steps=3,
        warmup_steps=1,
        bf16=False,
        workers=0,
    )


def bright_block():
    """A block that is brighter than what is around it."""
    target = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    target[0, 4:11, 5:12, 3:10] = True
    noise = 0.05 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    return Example(target[0].float() + noise, target)


def test_the_schedule_by_hand():
    """Warm-up in equal steps to 1, then half a cosine to 0.01: 0.505 half way."""
    config = Config(steps=300, warmup_steps=100)
    assert [schedule(step, config) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1])
    assert [schedule(step, config) for step in (100, 200, 300)] == pytest.approx([1, 0.505, 0.01])
    assert schedule(1000, config) == pytest.approx(0.01)
    assert schedule(0, Config(steps=10, warmup_steps=0)) == pytest.approx(1)
    falling = [schedule(step, config) for step in range(100, 301)]
    assert falling == sorted(falling, reverse=True)


def test_dice_by_hand():
    """Two of three voxels found with one too many: 2 · 2 / (3 + 3); two empty masks give 0."""
    truth, mask = torch.zeros(2, 1, 1, 1, 4, dtype=torch.bool), torch.zeros(2, 1, 1, 1, 4, dtype=torch.bool)
    truth[0, ..., :3], mask[0, ..., 1:] = True, True
    assert hard_dice(mask, truth).tolist() == pytest.approx([2 / 3, 0])


def test_the_average_by_hand(make_network):
    """At decay 0.75 a quarter of the way to the new weights; at 0 all of it. The network itself stays."""
    network, average = make_network(additions=True, seed=1), make_network(additions=True, seed=2)
    new, old = ([p.clone() for p in net.parameters()] for net in (network, average))
    update_average(average, network, 0.75)
    for ours, a, b in zip(average.parameters(), old, new):
        assert torch.allclose(ours, 0.75 * a + 0.25 * b, atol=1e-6)
    update_average(average, network, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), network.parameters()))
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), new))


def test_prompts_are_padded_to_the_longest():
    """Missing clicks have label -1."""
    owner = torch.tensor([0, 0, 1])
    ledger = [[((1, 2, 3), 1)], [((4, 5, 6), 0), ((7, 8, 9), 1)], [((0, 0, 1), 1)]]
    prompts = to_prompts(ledger, None, owner)
    assert prompts.labels.tolist() == [[1, -1], [0, 1], [1, -1]]
    assert prompts.coords[1].tolist() == [[4, 5, 6], [7, 8, 9]]
    assert prompts.coords[[0, 2], 0].tolist() == [[1, 2, 3], [0, 0, 1]]
    assert prompts.owner is owner


def test_an_object_starts_with_a_click_on_it(rng):
    """Shares add up to 1; every way starts with a positive, one of them is the corrector's only click."""
    assert sum(share for share, _ in FIRST_CLICKS) == pytest.approx(1)
    target = bright_block().targets[0].numpy()
    starts = [first_clicks(rng, target) for _ in range(300)]
    assert all(clicks[0][1] == 1 for clicks in starts)
    assert all(target[at] == (label == 1) for clicks in starts for at, label in clicks)
    assert sum(clicks == [((7, 8, 6), 1)] for clicks in starts) > 100


def test_further_clicks_lie_on_the_error(rng):
    """Found at half resolution, placed in one of the eight voxels there; a perfect object gets none."""
    truth = torch.zeros(3, 1, 16, 16, 16, dtype=torch.bool)
    truth[:, :, 2:8, 2:8, 2:8] = True
    coarse = torch.full((3, 1, 8, 8, 8), -5.0)
    coarse[:, :, 1:4, 1:4, 1:4] = 5
    coarse[0] = -5
    coarse[1, :, 5:8, 5:8, 5:8] = 5
    ledger = [[], [], []]
    for _ in range(40):
        place_on_errors(rng, ledger, truth, coarse)
    assert {at for at, _ in ledger[0]} == {(k, j, i) for k in (4, 5) for j in (4, 5) for i in (4, 5)}
    assert {label for _, label in ledger[0]} == {1}
    assert {tuple(x // 2 for x in at) for at, _ in ledger[1]} == {(6, 6, 6)}
    assert {label for _, label in ledger[1]} == {0}
    assert ledger[2] == []


def test_a_new_network_guesses_background(config):
    """Before the first step nearly every voxel is background, and the additions are there."""
    torch.manual_seed(0)
    network = start_network(config)
    mixer = network.point_head.mixer
    assert mixer.to_logits.bias.item() == FIRST_GUESS
    assert network.shape.click_features
    assert network.training
    example = bright_block()
    with torch.no_grad():
        low, image_low = network.encode(example.image[None, None])
        prompts = to_prompts([[((7, 8, 6), 1)]], None, torch.zeros(1, dtype=torch.long))
        logits, coarse = network.point_head.decode(low, image_low, prompts)
    assert coarse.mean() < -1
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("head_share", [0.0, 1.0], ids=["coarse", "head"])
def test_one_example_is_learnt(config, head_share):
    """Fifty steps on one block: the loss falls by half at least, and most of the block is found."""
    config = replace(config, head_share=head_share, learning_rate=3e-3)
    torch.manual_seed(0)
    network, rng = start_network(config), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    figures = []
    for _ in range(50):
        figures.append(train_step(network, [bright_block()], rng, config, CPU))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    first, last = (np.mean([f["loss"] for f in part]) for part in (figures[:5], figures[-5:]))
    assert last < 0.5 * first
    assert np.mean([f["dice"] for f in figures[-5:]]) > 0.7


def test_the_raters_gradient_ends_at_the_rater(config, monkeypatch):
    """With and without its loss the rest of the network is pulled the same way; the rater only with it."""
    pulls = []
    for weight in (0.0, 0.3):
        monkeypatch.setattr(finetune, "RATING_WEIGHT", weight)
        torch.manual_seed(0)
        network = start_network(config)
        train_step(network, [bright_block()], np.random.default_rng(0), replace(config, clip_norm=1e9), CPU)
        pulls.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    without, with_it = pulls
    for name, pull in with_it.items():
        if ".rater." in name:
            assert not without[name].any()
            assert pull.any() or name.endswith("bias")
        else:
            assert torch.allclose(pull, without[name], rtol=1e-4, atol=1e-7), name
    assert any(".rater." in name for name in with_it)


def test_the_raters_loss_by_hand(make_network):
    """A rater that always says one half: the loss is ln 2 whatever the Dice; without a rater it is 0."""
    low, owner = torch.randn(1, 16, 4, 4, 4), torch.zeros(2, dtype=torch.long)
    coarse, targets = torch.randn(2, 1, 4, 4, 4), torch.rand(2, 1, 4, 4, 4)
    head = PointHead(Shape(8, (1, 1, 1), 16, rater=True))
    torch.nn.init.zeros_(head.rater.to_rating[2].weight)
    torch.nn.init.zeros_(head.rater.to_rating[2].bias)
    assert rate(head, low, owner, coarse, targets).item() == pytest.approx(np.log(2))
    torch.nn.init.constant_(head.rater.to_rating[2].bias, 3.0)
    right = torch.where(targets > 0.5, 5.0, -5.0)
    sure = -np.log(1 / (1 + np.exp(-3)))
    assert rate(head, low, owner, right, targets).item() == pytest.approx(sure, rel=1e-5)
    assert rate(make_network().point_head, low, owner, coarse, targets).item() == 0


@pytest.mark.parametrize("head_share", [0.0, 1.0], ids=["coarse", "head"])
def test_gradients_reach_what_is_trained(config, head_share):
    """The encoder learns in every step, the full head in its share of them; gradients are clipped."""
    config = replace(config, head_share=head_share, clip_norm=0.01)
    torch.manual_seed(0)
    network = start_network(config)
    figures = train_step(network, [bright_block(), bright_block()], np.random.default_rng(0), config, CPU)
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert "image_encoder.encoder.conv_init.weight" in with_gradient
    assert "point_head.mixer.to_logits.weight" in with_gradient
    assert any(name.startswith("point_head.transformer") for name in with_gradient) == (head_share == 1)
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(min(0.01, figures["norm"]), rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(config):
    """Before the weights are spoilt, with what to do."""
    network = start_network(config)
    network.point_head.mixer.to_logits.bias.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="the loss is not finite; lower the learning rate"):
        train_step(network, [bright_block()], np.random.default_rng(0), config, CPU)
    assert all(p.grad is None for p in network.parameters())


def test_a_checkpoint_is_the_whole_state(config, tmp_path):
    """Saved and loaded into a fresh start: weights, average, optimiser and step; without a file, step 0."""
    network, average = start_network(config), start_network(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    train_step(network, [bright_block()], np.random.default_rng(0), config, CPU)
    optimiser.step()
    save(tmp_path / "last.pt", network, average, optimiser, 41)

    fresh, fresh_average = start_network(config), start_network(config)
    fresh_optimiser = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
    assert resume(tmp_path / "none.pt", fresh, fresh_average, fresh_optimiser) == 0
    assert resume(tmp_path / "last.pt", fresh, fresh_average, fresh_optimiser) == 41
    for ours, theirs in ((fresh, network), (fresh_average, average)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values())
        )
    moments = [o.state_dict()["state"] for o in (fresh_optimiser, optimiser)]
    assert moments[0].keys() == moments[1].keys() != set()
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


def steps_in_log(config):
    return [int(line.split(",")[0]) for line in (Path(config.output) / "log.csv").read_text().splitlines()]


def test_a_run_goes_on_where_it_stopped(config):
    """Three steps, then five in all: the log goes on, weights change, a third run has nothing left to do."""
    train(config)
    checkpoint = Path(config.output) / "last.pt"
    after_three = torch.load(checkpoint, weights_only=True)
    assert after_three["step"] == 3
    config = replace(config, steps=5)
    train(config)
    after_five = torch.load(checkpoint, weights_only=True)
    assert after_five["step"] == 5
    assert steps_in_log(config) == [3, 5]
    name = "image_encoder.encoder.conv_init.weight"
    assert not torch.equal(after_five["model"][name], after_three["model"][name])
    written = checkpoint.stat().st_mtime_ns
    train(config)
    assert checkpoint.stat().st_mtime_ns == written
    assert steps_in_log(config) == [3, 5]


def test_a_run_is_reproducible(config, tmp_path):
    """The same settings, the same weights."""
    weights = []
    for name in ("first", "second"):
        train(replace(config, output=str(tmp_path / name)))
        weights.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_after_the_step(config, monkeypatch, name):
    """Asked to stop in its second step, a run of a thousand saves two steps and ends."""
    plain, calls = finetune.train_step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return plain(*arguments)

    monkeypatch.setattr(finetune, "train_step", interrupted)
    train(replace(config, steps=1000))
    assert torch.load(Path(config.output) / "last.pt", weights_only=True)["step"] == 2
    assert (Path(config.output) / "average.safetensors").exists()


def test_what_is_exported_segments(config, blobs):
    """The averaged weights load by their path, with the ROI and intensities they were trained on."""
    train(config)
    path = Path(config.output) / "average.safetensors"
    checkpoint = read_checkpoint(path, check_finite=True)
    assert checkpoint.metadata["roi"] == "16"
    assert checkpoint.metadata["intensity"] == "view"
    assert checkpoint.metadata["steps"] == "3"
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.float16}
    average = torch.load(Path(config.output) / "last.pt", weights_only=True)["average"]
    assert all(torch.allclose(checkpoint.tensors[k].float(), average[k], atol=2e-3) for k in average)
    predictor = Predictor(load_engine(str(path), device="cpu", precision="fp32"))
    predictor.set_image(blobs(20, 24, 28))
    predictor.add_object("a")
    predictor.add_click("a", (10, 12, 14))
    assert predictor.predict("a")[10, 12, 14]


def test_training_starts_from_given_weights(config, tmp_path):
    """`init` gives the weights and the shape; the file itself is not written to."""
    train(config)
    path = Path(config.output) / "average.safetensors"
    before = path.read_bytes()
    given = read_checkpoint(path).tensors
    again = replace(
        config, init=str(path), output=str(tmp_path / "again"), width=32, learning_rate=1e-6, steps=1
    )
    train(again)
    assert path.read_bytes() == before
    weights = torch.load(tmp_path / "again" / "last.pt", weights_only=True)["model"]
    assert weights.keys() == given.keys()
    assert all(torch.allclose(weights[k], given[k].float(), atol=1e-4) for k in given)


def test_the_command_line(config, tmp_path, capsys):
    """Settings from a file and from the line; wrong ones end with code 2 and one line that says why."""
    path = tmp_path / "run.toml"
    keys = ("data", "output", "init_filters", "width", "roi", "views", "objects", "warmup_steps", "workers")
    text = [f"{key} = {getattr(config, key)!r}" for key in keys]
    path.write_text("\n".join([*text, "blocks_down = [1, 1, 2]", "mixer = [8, 16]", "bf16 = false"]))
    assert main([str(path), "--steps", "1"]) == 0
    assert steps_in_log(config) == [1]
    capsys.readouterr()
    for wrong, message in (
        (["--steps", "many"], "steps should be of type int"),
        (["--data", str(tmp_path / "nowhere")], "expected a folder with train/ inside as `data`"),
        (["--init", str(tmp_path / "gone.pt"), "--output", str(tmp_path / "b")], "gone.pt"),
        (["--width", "12", "--output", str(tmp_path / "c")], "multiple of 8, got 12"),
        (["--roi", "18", "--output", str(tmp_path / "d"), "--steps", "1"], "divisible"),
    ):
        assert main([str(path), *wrong]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("Training.finetune: error: ")
        assert message in error


def test_a_network_without_mixer_is_refused(config):
    """Training needs the mixer's coarse logits: settings or weights without one are named as the reason."""
    with pytest.raises(ValueError, match="mixer"):
        train(replace(config, mixer=()))
