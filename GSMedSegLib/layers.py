"""Faster forms of the network's layers, computing the same."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from GSMedSegLib.network import Network

NORM_CHUNK = {"cpu": 8192, "cuda": 2**22}
"""Voxels that a norm sums at once: on a CPU so many that they stay in cache."""

SMALL_CONVOLUTION = 20480
"""PyTorch runs a float32 convolution of one ROI with no more numbers than this (width left out) by a slow
path, which leaves the channels where the next layer does not want them.
Source: `use_mkldnn` in ATen's Convolution.cpp."""


class ChannelNorm(nn.Module):
    """Instance norm that keeps the channels last.

    PyTorch's own instance norm copies to another layout first. Its group norm of one channel per group does
    not, but sums in float32 and loses three digits where a channel's mean is far from zero: good enough for
    bfloat16, not for float32.

    Args:
        norm: the layer to compute.
        in_place: whether its input may be overwritten: nothing else reads it.
    """

    def __init__(self, norm: nn.InstanceNorm3d, in_place: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.in_place = norm.weight, norm.bias, norm.eps, in_place

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W) over D, H and W."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        if x.shape[0] != 1:
            return torch.cat([self(sample) for sample in x.split(1)])
        scale, shift = (v.view(1, -1, 1, 1, 1) for v in self.scale_and_shift(x))
        return torch.addcmul(shift, x, scale, out=x if self.in_place else None)

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The (C,) factors and terms that normalise one channels-last (1, C, D, H, W) volume, float32.

        The sums run over chunks that stay in cache, and are carried on in float64: two passes cost less than
        one through memory.
        """
        voxels = x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])
        chunks = voxels.split(NORM_CHUNK[x.device.type])
        mean = sum(chunk.float().sum(0).double() for chunk in chunks) / voxels.shape[0]
        center = mean.float()
        variance = sum((chunk - center).square_().sum(0).double() for chunk in chunks) / voxels.shape[0]
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.double()
        shift = -mean * scale if self.bias is None else self.bias.double() - mean * scale
        return scale.float(), shift.float()


class OneDnnConv3d(nn.Module):
    """A 3D convolution that goes to oneDNN even when it is small, or 1×1×1 and on one thread."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        assert not isinstance(conv.padding, str), "VISTA3D pads by numbers"
        self.settings = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        padding, stride, dilation, groups = self.settings
        if x.dtype == torch.float32:
            y: Tensor = torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, groups)
            return y
        return F.conv3d(x, self.weight, self.bias, stride, padding, dilation, groups)


class DoublingConv3d(nn.Module):
    """A transposed 3D convolution that doubles the resolution, as a plain one where PyTorch's is slow.

    Eight voxels take the place of one. Each is a sum over the voxel and its next neighbours, so all are one
    convolution to eight times the channels, which are then put beside each other.

    Source: the sub-pixel convolution of Shi et al., CVPR 2016, arXiv:1609.05158.
    """

    def __init__(self, conv: nn.ConvTranspose3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._eightfold: tuple[Tensor, Tensor | None] | None = None

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a layer is one that this can stand for."""
        return isinstance(conv, nn.ConvTranspose3d) and (
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.output_padding,
            conv.dilation,
            conv.groups,
        ) == ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C', 2D, 2H, 2W)."""
        if x.dtype != torch.float32 or x.shape[:-1].numel() > SMALL_CONVOLUTION:
            return F.conv_transpose3d(x, self.weight, self.bias, stride=2, padding=1, output_padding=1)
        if self._eightfold is None:
            self._eightfold = self._as_plain()
        weight, bias = self._eightfold
        y = torch.mkldnn_convolution(F.pad(x, (0, 1) * 3), weight, bias, (0,) * 3, (1,) * 3, (1,) * 3, 1)
        eight = y.permute(0, 2, 3, 4, 1).unflatten(-1, (2, 2, 2, -1))
        beside = eight.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 2).flatten(2, 3).flatten(3, 4)
        doubled: Tensor = beside.permute(0, 4, 1, 2, 3)
        return doubled

    def _as_plain(self) -> tuple[Tensor, Tensor | None]:
        """(8 C', C, 2, 2, 2) weight and bias of the plain convolution.

        Along an axis the first of two new voxels sees the old one through the kernel's middle, the second the
        old one through its last tap and the next one through its first.
        """
        taps = torch.zeros(2, 2, 3)  # new voxel, old voxel, tap
        taps[0, 0, 1] = taps[1, 0, 2] = taps[1, 1, 0] = 1
        weight = torch.einsum("nmxyz,aox,bpy,cqz->abcmnopq", self.weight, taps, taps, taps)
        bias = None if self.bias is None else self.bias.repeat(8)
        return weight.flatten(0, 3).contiguous(memory_format=torch.channels_last_3d), bias


def for_inference(network: Network, precision: torch.dtype) -> Network:
    """Replace a network's layers, in place, by their fast forms in the wanted precision.

    The transformer and the small networks on tokens stay in float32: they are not where the time goes.
    """
    network.eval().requires_grad_(False)
    head = network.point_head
    parts: list[nn.Module] = [network.image_encoder, head.feat_downsample, head.output_upscaling]
    parts += [part for part in (head.mixer, head.rater) if part is not None]
    for part in parts:
        part.to(precision)
        part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        _replace(
            part, on_cpu=next(part.parameters()).device.type == "cpu" and torch.backends.mkldnn.is_available()
        )
    return network


def _replace(module: nn.Module, on_cpu: bool) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm3d):
            # A residual block's second norm alone reads its input; the first shares it with the sum.
            setattr(module, name, ChannelNorm(child, in_place=name == "norm2"))
        elif on_cpu and isinstance(child, nn.Conv3d):
            setattr(module, name, OneDnnConv3d(child))
        elif on_cpu and DoublingConv3d.fits(child):
            setattr(module, name, DoublingConv3d(cast(nn.ConvTranspose3d, child)))
        else:
            _replace(child, on_cpu)
