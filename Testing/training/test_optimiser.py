"""What is trained, how fast, and what several processes agree on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from GSMedSegLib.prompt_maps import Prompts
from GSMedSegLib.sharding import Ranks
from Training.config import Optimisation
from Training.optimiser import (
    average_decay,
    checkpoint_encoder,
    clipped_norm,
    compile_encoder,
    freeze,
    make_optimiser,
    reduce_gradients,
    reduce_sums,
    schedule,
    set_rate,
    update_average,
)


def test_the_schedule_by_hand():
    """Warm-up in equal steps to 1, then half a cosine to 0.01: 0.505 half way."""
    assert [schedule(step, 300, 100) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1])
    assert [schedule(step, 300, 100) for step in (100, 200, 300)] == pytest.approx([1, 0.505, 0.01])
    assert schedule(1000, 300, 100) == pytest.approx(0.01)
    assert schedule(0, 10, 0) == pytest.approx(1)
    falling = [schedule(step, 300, 100) for step in range(100, 301)]
    assert falling == sorted(falling, reverse=True)


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


def test_the_average_follows_closely_at_first():
    """(1 + n) / (10 + n) until that is more than the decay; none at all without an average."""
    assert [average_decay(0.9, step) for step in (0, 8, 1000)] == pytest.approx([0.1, 0.5, 0.9])
    assert average_decay(0.0, 1000) == 0


def test_parts_are_frozen_by_name(make_network):
    """Those and no others; a name that is none, or all of them, is refused."""
    network = make_network(additions=True).requires_grad_(True)
    freeze(network, ("image_encoder", "point_head.mixer"))
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(("image_encoder", "point_head.mixer"))
    freeze(network, ())
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(
        ValueError, match="no weight's name begins with 'encoder'; they begin with image_encoder"
    ):
        freeze(network, ("encoder",))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(network, ("image_encoder", "point_head"))


def test_the_longest_name_gives_the_rate(make_network):
    """A tenth for the encoder, a hundredth for its first convolution, all of it for what is not frozen."""
    network = make_network(additions=True).requires_grad_(True)
    freeze(network, ("point_head.transformer",))
    factors = {"image_encoder": 0.1, "image_encoder.encoder.conv_init": 0.01}
    settings = Optimisation(learning_rate=2.0, warmup_steps=0, rate_factors=factors)
    optimiser = make_optimiser(network, settings)
    assert set_rate(optimiser, settings, 0, 100) == 2.0
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        wanted = 0.02 if "conv_init" in name else 0.2 if name.startswith("image_encoder") else 2.0
        if name.startswith("point_head.transformer"):
            assert id(parameter) not in rates
        else:
            assert rates[id(parameter)] == pytest.approx(wanted), name
    with pytest.raises(ValueError, match="rate_factors: no weight's name begins with 'head'"):
        make_optimiser(network, Optimisation(rate_factors={"head": 0.1}))


def test_one_process_just_divides():
    """The mean over the objects; a weight without gradient keeps none."""
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    network[0].weight.grad = torch.tensor([[6.0]])
    reduce_gradients(network, Ranks(), 3)
    assert network[0].weight.grad.item() == 2
    assert network[1].weight.grad is None
    assert reduce_sums([1.0, 2.5], Ranks()) == [1.0, 2.5]


def test_a_lost_process_is_told_in_plain_words(monkeypatch):
    """Whatever the transport says of it."""

    def closed(*arguments, **options):
        raise RuntimeError("[pair.cc:553] Connection closed by peer\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", closed)
    layer = nn.Linear(1, 1)
    for call in (lambda: reduce_sums([1.0], Ranks(0, 2)), lambda: reduce_gradients(layer, Ranks(0, 2), 1)):
        with pytest.raises(RuntimeError, match=r"another process of this run was lost: .*closed by peer\)$"):
            call()


def test_clipping_by_hand():
    """A gradient of norm 5 becomes one of norm 1, or stays where 0 says so."""
    layer = nn.Linear(2, 1, bias=False)
    for clip, left in ((1.0, 1.0), (0.0, 5.0)):
        layer.weight.grad = torch.tensor([[3.0, 4.0]])
        assert clipped_norm(layer, clip) == pytest.approx(5)
        assert layer.weight.grad.norm().item() == pytest.approx(left, rel=1e-4)


def test_a_checkpointed_encoder_has_the_same_gradients(make_network):
    """It keeps less and computes twice; its state dict stays as it was."""
    plain = make_network(additions=True).train().requires_grad_(True)
    frugal = copy.deepcopy(plain)
    checkpoint_encoder(frugal)
    image = torch.rand(1, 1, 16, 16, 16)
    prompts = Prompts(torch.tensor([[[8, 8, 8]]]), torch.tensor([[1]]))
    kept = []
    for network in (plain, frugal):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t
        ):
            loss = network(image, prompts).square().mean()
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < 0.9 * kept[0]
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name
    assert plain.state_dict().keys() == frugal.state_dict().keys()


def test_what_cannot_be_compiled_is_left_as_it_was(make_network, monkeypatch):
    """With a warning that says why."""
    network = make_network()

    def broken(*arguments, **options):
        raise RuntimeError("no compiler found\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="not compiled: no compiler found$"):
        assert not compile_encoder(network, 16, torch.device("cpu"))
    assert torch.isfinite(network.encode(torch.rand(1, 1, 16, 16, 16)).low).all()
