"""One step: what is asked, how it is answered, which gradients come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from GSMedSegLib.network import PointHead, Shape
from GSMedSegLib.prompt_maps import BOX_INSIDE, BOX_OUTSIDE, Prompts
from Training import learning
from Training.clicks import Spread
from Training.config import Config, NewNetwork, Optimisation, Sampling
from Training.examples import Example
from Training.learning import (
    Asked,
    Plan,
    by_weight,
    first_prompts,
    hard_dice,
    learn,
    near_clicks,
    per_object,
    place_on_errors,
    plan_step,
    rate,
    to_prompts,
)
from Training.start import new_network

CPU = torch.device("cpu")
SAMPLING = Sampling(roi=16, more_clicks=(1.0,), adaptive_hints=False)
CONFIG = Config(sampling=SAMPLING, optimisation=Optimisation(precision="fp32", head_share=0.5))
CENTRE = {"centre": 1.0}


def tiny(seed=0):
    """A network of a few thousand weights, with all additions."""
    torch.manual_seed(seed)
    return new_network(NewNetwork(8, (1, 1, 2), 16, (8, 16))).train()


def bright_block(name="block", start=4, seed=0):
    """A block that is brighter than what is around it."""
    target = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    target[0, start : start + 7, 5:12, 3:10] = True
    noise = 0.05 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Example(target[0].float() + noise, target, (7,), name, (0, 3, seed, 0))


def asked_of(target, ledger=(), special=False, seed=0):
    return Asked(torch.zeros(target.shape), target, list(ledger), None, special, np.random.default_rng(seed))


def gradients(network):
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_dice_by_hand():
    """Two of three voxels found with one too many: 2 · 2 / (3 + 3); two empty masks give 0."""
    truth, mask = torch.zeros(2, 1, 1, 1, 4, dtype=torch.bool), torch.zeros(2, 1, 1, 1, 4, dtype=torch.bool)
    truth[0, ..., :3], mask[0, ..., 1:] = True, True
    assert hard_dice(mask, truth).tolist() == pytest.approx([2 / 3, 0])


def test_the_loss_is_the_seeds():
    """One value an object, each what MONAI's DiceCELoss says of it with the seed's settings."""
    logits, targets = torch.randn(3, 1, 6, 6, 6), (torch.rand(3, 1, 6, 6, 6) > 0.7).float()
    official = DiceCELoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)
    wanted = [official(logits[[n]], targets[[n]]).item() for n in range(3)]
    assert per_object(logits, targets).tolist() == pytest.approx(wanted, rel=1e-6)


def test_what_is_around_the_clicks_counts_for_itself():
    """Right there alone, wrong there alone; ln 2 where nothing is known; 0 without a click."""
    targets = torch.ones(2, 1, 24, 24, 24)
    clicks = Prompts(torch.tensor([[[6, 6, 6], [0, 0, 0]]] * 2), torch.tensor([[1, -1], [-1, -1]]))
    near = torch.zeros(24, 24, 24, dtype=torch.bool)
    near[:19, :19, :19] = True  # three standard deviations
    right_there = torch.where(near, 9.0, -9.0).expand(targets.shape)
    assert near_clicks(torch.zeros_like(targets), targets, clicks).tolist() == pytest.approx([np.log(2), 0])
    assert near_clicks(right_there, targets, clicks)[0] < 0.1
    assert near_clicks(-right_there, targets, clicks)[0] > 8.9
    halfway = torch.zeros_like(targets)
    halfway[:, :, :6] = 50.0  # of 24 planes those before the click's, right without doubt
    planes = np.exp(-0.5 * ((np.arange(24) - 6) / 4) ** 2)
    wanted = np.log(2) * planes[6:].sum() / planes.sum()
    assert near_clicks(halfway, targets, clicks)[0].item() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_around_the_clicks_is_added_as_often_as_wanted():
    """By its weight; none by default, as in the seed."""
    assert CONFIG.optimisation.near_clicks == 0
    losses = [
        learn(
            tiny(),
            [bright_block()],
            Plan(0, True, CENTRE),
            replace(CONFIG, optimisation=replace(CONFIG.optimisation, near_clicks=weight)),
            CPU,
        ).loss
        for weight in (0.0, 0.5, 1.0)
    ]
    assert losses[1] > losses[0] + 0.01
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)


def test_plans_follow_their_shares_and_stages_take_turns():
    """The same number, the same plan; stages by epoch."""
    stages = ({"uniform": 1.0}, {"edge_centre": 1.0})
    config = replace(CONFIG, sampling=replace(SAMPLING, more_clicks=(1.0, 3.0), stages=stages))
    plans = [plan_step(config, step, step // 1000) for step in range(2000)]
    assert plans == [plan_step(config, step, step // 1000) for step in range(2000)]
    assert np.mean([plan.rounds == 1 for plan in plans]) == pytest.approx(0.75, abs=0.04)
    assert np.mean([plan.head for plan in plans]) == pytest.approx(0.5, abs=0.05)
    assert all(plan.stage == stages[n // 1000] for n, plan in enumerate(plans))


def test_prompts_are_padded_to_the_longest():
    """Missing clicks have label -1; clicks of special classes are marked 2 and 3."""
    owner, target = torch.tensor([0, 0, 1]), torch.zeros(4, 4, 4, dtype=torch.bool)
    ledgers = [[((1, 2, 3), 1)], [((3, 0, 1), 0), ((2, 2, 2), 1)], [((0, 0, 1), 1)]]
    asked = [asked_of(target, ledger, special=n == 1) for n, ledger in enumerate(ledgers)]
    prompts = to_prompts(asked, None, owner)
    assert prompts.labels.tolist() == [[1, -1], [2, 3], [1, -1]]
    assert prompts.coords[1].tolist() == [[3, 0, 1], [2, 2, 2]]
    assert prompts.owner is owner
    assert to_prompts([asked_of(target)], None, owner[:1]).labels.tolist() == [[-1]]


def test_objects_start_as_the_stage_says():
    """Shares are kept; the seed's samplers place as many clicks on every object of a view."""
    example = bright_block()
    many = replace(example, targets=example.targets.repeat(4, 1, 1, 1), labels=(7,) * 4)
    kinds = Counter()
    for number in range(300):
        view = replace(many, seed=(0, 3, number, 0))
        stage = {"centre": 0.5, "box": 0.25, "scribble": 0.25}
        for one in first_prompts(view, stage, SAMPLING):
            assert all(one.target[at] == bool(label) for at, label in one.ledger)
            kinds["box" if one.box is not None else "centre" if len(one.ledger) == 1 else "other"] += 1
        spread = Spread.draw(np.random.default_rng(view.seed)).counts(5)
        for one in first_prompts(view, {"uniform": 1.0}, SAMPLING):
            labels = [label for _, label in one.ledger]
            assert (labels.count(1), labels.count(0)) == spread
    assert kinds["box"] / 1200 == pytest.approx(0.25, abs=0.05)


def test_a_box_is_a_hint_of_its_own():
    """Its map says where the object may be; half of the boxes come with a click."""
    stage = {"box": 1.0}
    found = [first_prompts(replace(bright_block(), seed=(0, n)), stage, SAMPLING)[0] for n in range(100)]
    for one in found:
        assert one.box.unique().tolist() == pytest.approx([BOX_OUTSIDE, BOX_INSIDE])
        assert (one.box[0] > 0)[one.target].all()
        assert (one.box[0] > 0).sum() < 2.5 * one.target.sum()
    assert 30 < sum(len(one.ledger) == 1 for one in found) < 70


def test_special_labels_are_marked():
    """By the object's label in its case."""
    sampling = replace(SAMPLING, special_labels=(7,))
    assert first_prompts(bright_block(), CENTRE, sampling)[0].special
    assert not first_prompts(bright_block(), CENTRE, SAMPLING)[0].special


def test_further_clicks_lie_on_the_error():
    """In the middle of it; a perfect object gets none."""
    truth = torch.zeros(16, 16, 16, dtype=torch.bool)
    truth[2:8, 2:8, 2:8] = True
    answer = torch.full((3, 1, 16, 16, 16), -5.0)
    right, wrong = slice(2, 8), slice(10, 16)
    answer[1:, :, right, right, right] = 5
    answer[1, :, wrong, wrong, wrong] = 5
    asked = [asked_of(truth, seed=seed) for seed in range(3)]
    for _ in range(40):
        place_on_errors(asked, answer)
    missed, surplus, perfect = (one.ledger for one in asked)
    assert {at for at, _ in missed} == {(k, j, i) for k in (4, 5) for j in (4, 5) for i in (4, 5)}
    assert {label for _, label in missed} == {1}
    assert all(12 <= x <= 13 for at, _ in surplus for x in at)
    assert {label for _, label in surplus} == {0}
    assert perfect == []
    assert 28 <= len(missed) < 40, "now and then the mask is only looked at again"


@pytest.mark.parametrize("head", [False, True], ids=["mixer", "head"])
def test_one_example_is_learnt(head):
    """Fifty steps on one block: the loss falls by half at least, and most of the block is found."""
    network = tiny()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    tallies = []
    for step in range(50):
        tallies.append(learn(network, [bright_block(seed=step)], Plan(step % 2, head, CENTRE), CONFIG, CPU))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    first, last = (np.mean([t.loss for t in part]) for part in (tallies[:5], tallies[-5:]))
    assert last < 0.5 * first
    assert np.mean([t.dice for t in tallies[-5:]]) > 0.7


def test_weights_say_who_comes_first(rng):
    """Weights 1 and 3: the second is first three times out of four. What is not a number is always first."""
    first = [by_weight(rng, np.array([1.0, 3.0]))[0] for _ in range(2000)]
    assert np.mean(first) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 2000))
    assert by_weight(rng, np.array([1e9, np.nan, 1.0]))[0] == 1
    assert sorted(by_weight(rng, np.zeros(5)).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("additions", [True, False], ids=["mixer", "plain"])
def test_hard_objects_are_learnt_from_more_often(make_network, monkeypatch, additions):
    """A block that is found at once beside one that is not: one of the two is to be learned from."""
    network = make_network(additions).train().requires_grad_()
    easy, hard = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    easy[2:8], hard[10:14] = True, True
    logits = torch.where(easy, 9.0, -9.0)[None, None]
    monkeypatch.setattr(
        learning, "_answer", lambda head, encoded, prompts, quick: logits.expand(2, -1, -1, -1, -1)
    )
    sampling = replace(SAMPLING, objects=1, candidates=2)
    config = replace(CONFIG, sampling=sampling)
    picked = Counter()
    monkeypatch.setattr(
        learning,
        "_learn_objects",
        lambda network, encoded, owner, asked, *rest: (
            picked.update(["easy" if torch.equal(one.target, easy) else "hard" for one in asked]),
            encoded.low.sum() * 0 + torch.zeros(len(asked)),
        )[1],
    )
    for seed in range(8):
        view = Example(torch.rand(16, 16, 16), torch.stack((easy, hard)), (1, 2), "both", (0, seed))
        tally = learn(network, [view], Plan(0, False, CENTRE), config, CPU)
        assert tally.objects == 1
    assert picked["hard"] >= 7


def test_there_is_no_choice_without_candidates(monkeypatch):
    """Two objects where two may be asked for: both are learned from, whatever their losses."""
    monkeypatch.setattr(learning, "by_weight", lambda *_: pytest.fail("nothing is to be chosen"))
    view = replace(bright_block(), targets=bright_block().targets.repeat(2, 1, 1, 1), labels=(1, 2))
    for candidates in (0, 3):
        sampling = replace(SAMPLING, objects=2, candidates=candidates)
        tally = learn(tiny(), [view], Plan(0, False, CENTRE), replace(CONFIG, sampling=sampling), CPU)
        assert tally.objects == 2


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("additions", [True, False], ids=["mixer", "plain"])
def test_gradients_do_not_depend_on_what_goes_through_together(make_network, rounds, additions):
    """Four views at once or one, four objects or one: the same sums. Views without objects count nothing."""
    views = [bright_block(start=start, seed=start) for start in (2, 4, 6)]
    two = replace(views[0], targets=torch.cat([views[0].targets, ~views[0].targets]), labels=(7, 8))
    empty = Example(torch.zeros(16, 16, 16), torch.zeros(0, 16, 16, 16, dtype=torch.bool))
    found, sums = [], []
    for views_at_once, objects_at_once in ((4, 16), (1, 1)):
        network = (tiny() if additions else make_network(seed=3)).train().requires_grad_(True)
        optimisation = replace(
            CONFIG.optimisation, views_at_once=views_at_once, objects_at_once=objects_at_once
        )
        sampling = replace(SAMPLING, quick_rounds=False)
        config = replace(CONFIG, optimisation=optimisation, sampling=sampling)
        with torch.backends.mkldnn.flags(enabled=False):  # without AVX-512 its convolutions are less exact
            tally = learn(network, [two, empty, *views[1:]], Plan(rounds, True, CENTRE), config, CPU)
        found.append(gradients(network))
        sums.append((tally.objects, tally.views, tally.loss, tally.dice))
    assert sums[0][:2] == sums[1][:2] == (4, 3)
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=2e-3, atol=2e-5), name


def test_the_raters_gradient_ends_at_the_rater(monkeypatch):
    """With and without its loss the rest is pulled the same way, the rater only with it."""
    pulls, losses = [], []
    for weight in (0.0, 0.3):
        monkeypatch.setattr(learning, "RATING_WEIGHT", weight)
        network = tiny()
        losses.append(learn(network, [bright_block()], Plan(0, True, CENTRE), CONFIG, CPU).loss)
        pulls.append(gradients(network))
    without, with_it = pulls
    assert losses[0] == pytest.approx(losses[1])
    for name, pull in with_it.items():
        if ".rater." in name:
            assert not without[name].any()
            assert pull.any() or name.endswith("bias")
        else:
            assert torch.allclose(pull, without[name], rtol=1e-4, atol=1e-7), name
    assert any(".rater." in name for name in with_it)


def test_the_raters_loss_by_hand():
    """A rater that always says one half: ln 2 whatever the Dice."""
    low, owner = torch.randn(1, 16, 4, 4, 4), torch.zeros(2, dtype=torch.long)
    coarse, targets = torch.randn(2, 1, 4, 4, 4), torch.rand(2, 1, 4, 4, 4)
    head = PointHead(Shape(8, (1, 1, 1), 16, rater=True))
    torch.nn.init.zeros_(head.rater.to_rating[2].weight)
    torch.nn.init.zeros_(head.rater.to_rating[2].bias)
    assert rate(head, low, owner, coarse, targets).tolist() == pytest.approx([np.log(2)] * 2)
    torch.nn.init.constant_(head.rater.to_rating[2].bias, 3.0)
    right = torch.where(targets > 0.5, 5.0, -5.0)
    assert rate(head, low, owner, right, targets)[0].item() == pytest.approx(
        -np.log(1 / (1 + np.exp(-3))), rel=1e-5
    )


@pytest.mark.parametrize("head", [False, True], ids=["mixer", "head"])
def test_gradients_reach_what_is_trained(head):
    """Encoder and mixer learn in every step, up to full resolution; the head in its share of them."""
    network = tiny()
    learn(network, [bright_block()], Plan(0, head, CENTRE), CONFIG, CPU)
    pulled = {name for name, gradient in gradients(network).items() if gradient.any()}
    assert "image_encoder.encoder.conv_init.weight" in pulled
    assert {"point_head.mixer.to_logits.weight", "point_head.mixer.detail.to_logits.weight"} <= pulled
    assert any(name.startswith("point_head.transformer") for name in pulled) == head


def test_what_is_answered_on_the_way_costs_no_gradient(monkeypatch):
    """In bf16, too, where torch keeps a weight's cast from one answer to the next.

    Before 2.11 it kept one that was made without gradients, too: steps with further clicks, or with a choice
    among objects, then taught mixer and head nothing.
    """
    view = replace(bright_block(), targets=bright_block().targets.repeat(2, 1, 1, 1), labels=(1, 2))
    monkeypatch.setattr(learning, "find_precision", lambda *_: torch.bfloat16)  # also on old processors
    pulled = []
    for rounds, candidates in ((0, 0), (1, 0), (0, 2)):
        network = tiny()
        sampling = replace(SAMPLING, objects=1, candidates=candidates, quick_rounds=False)
        config = replace(CONFIG, sampling=sampling)
        learn(network, [view], Plan(rounds, True, CENTRE), config, CPU)
        pulled.append({name for name, gradient in gradients(network).items() if gradient.any()})
    assert "point_head.mixer.to_logits.weight" in pulled[0]
    assert pulled[0] <= pulled[1]
    assert pulled[0] <= pulled[2]


def test_a_frozen_encoder_gets_no_gradient():
    """And costs no graph."""
    network = tiny()
    for part in (network.image_encoder, network.point_head.feat_downsample):
        part.requires_grad_(False)
    learn(network, [bright_block()], Plan(1, True, CENTRE), CONFIG, CPU)
    assert all(not name.startswith("image_encoder") for name in gradients(network))
    assert "point_head.mixer.to_logits.weight" in gradients(network)


def test_a_loss_that_is_not_finite_names_its_case():
    """And leaves no gradient of it."""
    network = tiny()
    bad = replace(bright_block("case_b"), image=torch.full((16, 16, 16), torch.nan))
    config = replace(CONFIG, optimisation=replace(CONFIG.optimisation, views_at_once=1))
    tally = learn(network, [bad], Plan(0, True, CENTRE), config, CPU)
    assert tally.broken == ["case_b"]
    assert not gradients(network)


def test_what_is_shown_is_an_object_of_the_step():
    """Its image, truth, answer and first click."""
    example = bright_block()
    shown = learn(tiny(), [example], Plan(0, True, CENTRE), CONFIG, CPU).shown
    assert np.array_equal(shown.image, example.image.numpy())
    assert np.array_equal(shown.target > 0, example.targets[0].numpy())
    assert example.targets[0][shown.click_kji]
    assert 0 <= shown.probability.min() <= shown.probability.max() <= 1
