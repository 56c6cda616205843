"""The fast point head computes what the plain one computes."""

from __future__ import annotations

import math

import pytest
import torch

from GSMedSegLib import decoder
from GSMedSegLib.decoder import RunningSoftmax
from GSMedSegLib.layers import ChannelNorm
from GSMedSegLib.prompt_maps import Prompts


def test_running_softmax_by_hand():
    """Logits ln 1 and ln 3 weigh the values 10 and 20 by a quarter and three quarters."""
    softmax = RunningSoftmax(torch.tensor([[1.0]]))
    softmax.feed(torch.tensor([[0.0]]), torch.tensor([[10.0]]))
    softmax.feed(torch.tensor([[math.log(3)]]), torch.tensor([[20.0]]))
    assert softmax.mean().item() == pytest.approx(17.5)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_running_softmax_survives_huge_logits(order):
    """exp(1000) overflows; the mean does not, whichever end comes first."""
    keys = torch.tensor([[1000.0], [999.0], [-1000.0]])[order]
    values = torch.tensor([[1.0], [2.0], [3.0]])[order]
    softmax = RunningSoftmax(torch.tensor([[1.0], [-1.0]]))
    for n in range(3):
        softmax.feed(keys[n : n + 1], values[n : n + 1])
    e = math.e
    assert softmax.mean().flatten().tolist() == pytest.approx([(e * 1 + 2) / (e + 1), 3])


def test_running_softmax_equals_softmax():
    """Any split into chunks gives PyTorch's softmax."""
    generator = torch.Generator().manual_seed(0)
    rows, keys = torch.randn(3, 4, generator=generator), torch.randn(50, 4, generator=generator)
    values = torch.randn(50, 4, generator=generator)
    softmax = RunningSoftmax(rows)
    for at in range(0, 50, 7):
        softmax.feed(keys[at : at + 7], values[at : at + 7])
    assert torch.allclose(softmax.mean(), (rows @ keys.T).softmax(1) @ values, atol=1e-6)


def both(network, size, coords, labels):
    """Logits of one object by the plain head and by the fast one."""
    head = network.point_head
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        encoded = network.encode(torch.rand(1, 1, *size, generator=generator))
        low = encoded.low
        prompts = Prompts(torch.tensor([coords]), torch.tensor([labels]))
        plain = head.decode(encoded, prompts)[0][0, 0]
        position = head.pe_layer(tuple(low.shape[-3:])).flatten(1).T.contiguous()
        tokens = low.permute(0, 2, 3, 4, 1).reshape(-1, low.shape[1])
        keys, vector = decoder.transform(head, tokens, position, head.tokens(prompts, low)[0])
        grid = keys.view(*low.shape[-3:], -1).permute(3, 0, 1, 2)[None]
        head.output_upscaling[1] = ChannelNorm(head.output_upscaling[1])
        fast = decoder.upscale(head, grid, vector)
    return plain, fast


@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24, 32), (8, 12, 4)])
@pytest.mark.parametrize(
    ("coords", "labels"),
    [([[3, 4, 2]], [1]), ([[0, 0, 0], [7, 11, 3], [4, 4, 1]], [1, 0, 3]), ([[1, 2, 3]], [-1])],
    ids=["one", "several", "padding"],
)
def test_the_fast_head_is_the_plain_head(make_network, size, coords, labels):
    """Folded projections and the folded output convolution change nothing but rounding."""
    plain, fast = both(make_network(), size, coords, labels)
    assert fast.shape == plain.shape == size
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("width", [8, 32, 48])
def test_every_width_decodes(make_network, width):
    """Also at the public network's width, and at one dimension per attention head."""
    plain, fast = both(make_network(width=width), (8, 8, 8), [[1, 2, 3], [4, 5, 6]], [1, 0])
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_chunks_and_slabs_change_nothing(make_network, monkeypatch):
    """Chunks that do not divide the tokens and slabs of one plane give the same logits."""
    plain, fast = both(make_network(), (8, 12, 16), [[3, 4, 5]], [1])
    monkeypatch.setattr(decoder, "CHUNK_TOKENS", {"cpu": 13})
    monkeypatch.setattr(decoder, "SLAB_VOXELS", {"cpu": 1})
    _, chunked = both(make_network(), (8, 12, 16), [[3, 4, 5]], [1])
    assert (chunked - fast).abs().max() <= 2e-6 * plain.abs().max()


def test_the_embedding_is_left_as_it_was(make_network):
    """A kept embedding is decoded again and again: no click may write into it."""
    network = make_network()
    head, low = network.point_head, torch.randn(4 * 4 * 4, 16)
    before = low.clone()
    position = head.pe_layer((4, 4, 4)).flatten(1).T.contiguous()
    keys, _ = decoder.transform(head, low, position, torch.randn(3, 16))
    assert torch.equal(low, before)
    assert not torch.equal(keys, before)
