"""Muon against torch's own, against AdamW, and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from Training.config import Optimisation
from Training.muon import Muon, is_matrix, orthogonal
from Training.optimiser import make_optimiser, set_rate

RATE, DECAY = 0.01, 0.1


def with_gradients(layer: nn.Module, seed: int) -> nn.Module:
    """The layer with random gradients, the same for the same seed."""
    torch.manual_seed(seed)
    for weight in layer.parameters():
        weight.grad = torch.randn(weight.shape)
    return layer


def muon(layer: nn.Module) -> Muon:
    """Muon for the layer's matrices, AdamW for the rest."""
    return Muon(
        [{"params": [weight], "matrices": is_matrix(weight)} for weight in layer.parameters()],
        lr=RATE,
        weight_decay=DECAY,
    )


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (16, 16)])
def test_singular_values_become_about_one(shape):
    """And its directions stay: against the orthogonal factor by singular value decomposition."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_no_gradient_is_no_change():
    """Zeros have no direction: they stay zeros, and are not divided by."""
    assert not orthogonal(torch.zeros(16, 20)).any()


def test_a_first_step_by_hand():
    """Orthogonal rows, however long: 0.2 · √32 · rate along each, after the weight has decayed."""
    layer = nn.Linear(32, 16, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = 7 * torch.eye(16, 32)
    muon(layer).step()
    moved = (before * (1 - RATE * DECAY) - layer.weight.detach()) / (RATE * 0.2 * 32**0.5)
    assert (moved.diagonal() > 0.7).all()
    assert (moved.diagonal() < 1.2).all()
    assert moved.fill_diagonal_(0).abs().max() < 1e-4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
@pytest.mark.parametrize("convolution", [False, True])
def test_it_is_the_official_one(convolution):
    """Three steps of torch.optim.Muon, which computes in bfloat16; a convolution is rows, one an output."""
    ours: nn.Module = nn.Conv3d(16, 24, 3, bias=False) if convolution else nn.Linear(40, 24, bias=False)
    theirs = nn.Linear(ours.weight[0].numel(), 24, bias=False)
    theirs.weight.data = ours.weight.detach().flatten(1).clone()
    before = theirs.weight.detach().clone()
    if convolution:
        ours = ours.to(memory_format=torch.channels_last_3d)  # as the trainer has them
    a = muon(ours)
    b = torch.optim.Muon(theirs.parameters(), lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        with_gradients(ours, seed)
        theirs.weight.grad = ours.weight.grad.flatten(1).clone()
        a.step()
        b.step()
    change = (theirs.weight - before).norm()
    assert (ours.weight.flatten(1) - theirs.weight).norm() < 0.02 * change


def test_what_is_no_matrix_moves_as_by_adamw():
    """Biases, norms and narrow layers; and nothing moves without a gradient."""
    ours = nn.Sequential(nn.Linear(3, 40), nn.LayerNorm(40), nn.Linear(40, 2))
    assert not any(is_matrix(weight) for weight in ours.parameters())
    theirs = copy.deepcopy(ours)
    still = nn.Linear(32, 32)
    kept = still.weight.detach().clone()
    a = muon(nn.ModuleList([ours, still]))
    b = torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=DECAY)
    for seed in range(3):
        with_gradients(ours, seed)
        with_gradients(theirs, seed)
        a.step()
        b.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(still.weight, kept)


def test_what_it_remembers_is_kept():
    """Two steps, saved and loaded, and two more are four steps."""
    straight = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 1))
    broken_off = copy.deepcopy(straight)
    a, b = muon(straight), muon(broken_off)
    for seed in range(4):
        if seed == 2:
            kept, b = copy.deepcopy(b.state_dict()), muon(broken_off)
            b.load_state_dict(kept)
        for layer, optimiser in ((straight, a), (broken_off, b)):
            with_gradients(layer, seed)
            optimiser.step()
    for one, other in zip(straight.parameters(), broken_off.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_network_is_split(make_network):
    """Convolutions and wide layers by Muon, in groups that keep their share of the learning rate."""
    network = make_network(additions=True).requires_grad_(True)
    settings = Optimisation(
        optimiser="muon", learning_rate=2.0, warmup_steps=0, rate_factors={"image_encoder": 0.1}
    )
    optimiser = make_optimiser(network, settings)
    set_rate(optimiser, settings, 0, 100)
    found = {
        id(weight): (group["matrices"], group["lr"])
        for group in optimiser.param_groups
        for weight in group["params"]
    }
    for name, weight in network.named_parameters():
        matrices, rate = found[id(weight)]
        assert matrices == is_matrix(weight)
        assert rate == pytest.approx(0.2 if name.startswith("image_encoder") else 2.0)
    kinds = {name: found[id(weight)][0] for name, weight in network.named_parameters()}
    assert kinds["point_head.mixer.blocks_down.1.0.conv1.weight"]
    assert not kinds["point_head.mixer.norm_out.weight"]
