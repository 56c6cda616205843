"""The fast layers compute what PyTorch's plain ones compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from GSMedSegLib import layers
from GSMedSegLib.engine import Engine
from GSMedSegLib.layers import ChannelNorm, DoublingConv3d, OneDnnConv3d, for_inference


def volume(*shape, mean=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    return x.contiguous(memory_format=torch.channels_last_3d)


def exact_norm(x, weight=None, bias=None, eps=1e-5):
    """Instance norm in float64."""
    double = [None if t is None else t.double() for t in (weight, bias)]
    return F.instance_norm(x.double(), weight=double[0], bias=double[1], eps=eps)


def channel_norm(x, weight, bias, eps, in_place=False):
    """What `ChannelNorm` makes of these weights, both or none."""
    norm = torch.nn.InstanceNorm3d(x.shape[1], eps=eps, affine=weight is not None).requires_grad_(False)
    if weight is not None:
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    return ChannelNorm(norm, in_place)(x)


def test_norm_of_two_voxels_by_hand():
    """Values 1 and 3: mean 2, variance 1."""
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
    assert channel_norm(x, None, None, eps=0.0).flatten().tolist() == [-1, 1]
    scaled = channel_norm(x, torch.tensor([5.0]), torch.tensor([10.0]), eps=3.0)
    assert scaled.flatten().tolist() == pytest.approx([10 - 2.5, 10 + 2.5])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_norm_equals_instance_norm(batch, affine):
    """Each sample and channel by itself, with and without weights."""
    x = volume(batch, 5, 6, 7, 8)
    x[0, 2] *= 100
    weight, bias = (torch.randn(5), torch.randn(5)) if affine else (None, None)
    ours = channel_norm(x, weight, bias, 1e-5)
    assert ours.shape == x.shape
    assert torch.allclose(ours.double(), exact_norm(x, weight, bias), atol=1e-5)


def test_norm_in_place_overwrites_its_input():
    """The same values, in the memory that the input had."""
    x = volume(1, 4, 5, 6, 7)
    expected = channel_norm(x.clone(), None, None, 1e-5)
    got = channel_norm(x, None, None, 1e-5, in_place=True)
    assert got.data_ptr() == x.data_ptr()
    assert torch.equal(got, expected)


def test_norm_is_exact_far_from_zero():
    """A mean a thousand times the deviation costs no more than float32's own rounding of the input."""
    x = volume(1, 4, 16, 24, 32, mean=1000.0)
    assert (channel_norm(x, None, None, 1e-5) - exact_norm(x)).abs().max() < 1e-3


def test_norm_does_not_depend_on_its_chunks(monkeypatch):
    """Chunks that do not divide the voxels give the same sums."""
    x = volume(1, 3, 5, 7, 11)
    whole = channel_norm(x, None, None, 1e-5)
    monkeypatch.setattr(layers, "NORM_CHUNK", {"cpu": 13})
    assert torch.allclose(channel_norm(x, None, None, 1e-5), whole, atol=1e-6)


def test_norm_keeps_the_channels_last():
    """The next convolution gets the layout it wants."""
    x = volume(1, 4, 6, 6, 6)
    assert ChannelNorm(nn.InstanceNorm3d(4))(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_norm_in_bf16_is_close():
    """Half precision rounds to 8 bits, no worse."""
    x = volume(1, 4, 6, 6, 6)
    ours = ChannelNorm(nn.InstanceNorm3d(4))(x.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact_norm(x)).abs().max() < 0.05


@pytest.mark.parametrize("side", [4, 80], ids=["small", "large"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_equals_the_plain_one(side, kernel, stride, bias):
    """On both sides of the size below which PyTorch would take its slow path, and in the wanted layout."""
    x = volume(1, 4, side, side, 6)
    assert (x.shape[:-1].numel() <= layers.SMALL_CONVOLUTION) == (side == 4)
    convolution = nn.Conv3d(4, 8, kernel, stride=stride, padding=kernel // 2, bias=bias).requires_grad_(False)
    ours, plain = OneDnnConv3d(convolution)(x), convolution(x)
    assert ours.shape == plain.shape
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_doubling_by_hand():
    """One voxel of value 1: each of the eight in its place sees another tap of the kernel."""
    convolution = nn.ConvTranspose3d(1, 1, 3, stride=2, padding=1, output_padding=1, bias=False)
    convolution.requires_grad_(False).weight.copy_(torch.arange(27.0).view(1, 1, 3, 3, 3))
    ours = DoublingConv3d(convolution)(torch.ones(1, 1, 1, 1, 1))
    assert ours.flatten().tolist() == [13, 14, 16, 17, 22, 23, 25, 26]


@pytest.mark.parametrize("size", [(2, 3, 5), (80, 80, 6)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_doubling_equals_the_transposed_convolution(size, dtype, bias):
    """Small ones take another way, in float32."""
    x = volume(1, 4, *size)
    assert (x.shape[:-1].numel() <= layers.SMALL_CONVOLUTION) == (size[0] == 2)
    convolution = nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=bias)
    plain = convolution.requires_grad_(False)(x)
    ours = DoublingConv3d(convolution.to(dtype))(x.to(dtype))
    assert (ours.dtype, ours.shape) == (dtype, plain.shape)
    error = 1e-5 if dtype == torch.float32 else 0.02
    assert (ours - plain).abs().max() <= error * plain.abs().max()


@pytest.mark.parametrize(
    "changed", [{"stride": 1, "output_padding": 0}, {"padding": 0}, {"kernel_size": 5}, {"groups": 2}]
)
def test_other_transposed_convolutions_stay(changed):
    settings = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
    assert DoublingConv3d.fits(nn.ConvTranspose3d(4, 4, **settings))
    assert not DoublingConv3d.fits(nn.ConvTranspose3d(4, 4, **{**settings, **changed}))
    assert not DoublingConv3d.fits(nn.Conv3d(4, 4, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_every_layer_keeps_the_channels_last(make_network, threads):
    """One that does not makes all that follow slow."""
    engine, left = Engine(make_network(additions=True)), []

    def look(name):
        def check(module, given, answer):
            one = torch.is_tensor(answer) and answer.ndim == 5 and answer.shape[1] > 1
            if one and not answer.is_contiguous(memory_format=torch.channels_last_3d):
                left.append(name)

        return check

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, module in engine.network.named_modules():
            module.register_forward_hook(look(name))
        embedding = engine.encode(torch.rand(16, 16, 16))
        engine.decode(embedding, [[[8, 8, 8]]], [[1]], torch.zeros(1, 16, 16, 16))
    finally:
        torch.set_num_threads(before)
    assert left == []


@pytest.mark.parametrize("additions", [False, True])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24, 32)])
def test_the_encoder_answers_as_before(make_network, additions, size):
    """Replacing the layers changes an embedding by no more than rounding."""
    image = volume(2, 1, *size)
    plain = make_network(additions=additions).encode(image)
    fast = for_inference(make_network(additions=additions), torch.float32).encode(image)
    for ours, theirs in ((fast.low, plain.low), (fast.full, plain.full)):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("additions", [False, True])
def test_no_slow_layer_is_left(make_network, additions):
    """Every instance norm and every convolution in use is a fast one; the weights keep their names."""
    network = make_network(additions=additions)
    before = [name for name, _ in network.named_parameters()]
    for_inference(network, torch.float32)
    left = [name for name, m in network.named_modules() if isinstance(m, nn.InstanceNorm3d)]
    assert left == []
    convolutions = [name for name, m in network.named_modules() if type(m) is nn.Conv3d]
    assert convolutions == ["point_head.mask_downsample"], "the one that VISTA3D carries but never uses"
    assert not any(isinstance(m, nn.ConvTranspose3d) for m in network.modules())
    assert [name for name, _ in network.named_parameters()] == before


def test_precision_reaches_the_heavy_parts_alone(make_network):
    """The transformer and the prompt tokens stay in float32."""
    network = for_inference(make_network(additions=True), torch.bfloat16)
    head = network.point_head
    assert {p.dtype for p in network.image_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in head.mixer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in head.transformer.parameters()} == {torch.float32}
    assert head.mask_tokens.weight.dtype == torch.float32
