"""The network: MONAI's VISTA3D for clicks, of any width, with two optional additions to its point head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.nets import SegResNetDS2
from monai.networks.nets.vista3d import PointMappingSAM
from torch import Tensor, nn

from GSMedSegLib.prompt_maps import PROMPT_MAPS, Prompts, features_at, prompt_maps

SUPPORTED_CLASSES = 132
"""Classes `vista3d132` was trained on; a point head treats larger indices as zero-shot."""


@dataclass(frozen=True)
class Shape:
    """The sizes that define a network, read from a checkpoint's own tensors or chosen for training.

    Attributes:
        init_filters: channels at full resolution; they double at every level.
        blocks_down: residual blocks per level on the way down. Every level but the last halves the
            resolution.
        width: channels of the embedding and of the point head; divisible by 8.
        click_features: whether the feature under a click is added to its token.
        mixer: channels of the prompt mixer per level, from half resolution down; empty for none.
        rater: whether it foresees how good its masks are.
        detail: channels of the mixer's step to full resolution; 0 for none.

    Raises:
        ValueError: no network has these sizes.
    """

    init_filters: int = 48
    blocks_down: tuple[int, ...] = (1, 2, 2, 4, 4)
    width: int = 48
    click_features: bool = False
    mixer: tuple[int, ...] = ()
    rater: bool = False
    detail: int = 0

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"the width of a VISTA3D network is a multiple of 8, got {self.width}")
        if min(self.init_filters, len(self.blocks_down), *self.mixer) < 1:
            raise ValueError(f"a VISTA3D network has at least one channel and one level, got {self}")
        if self.detail < 0 or (self.detail and not self.mixer):
            raise ValueError(f"the step to full resolution follows a mixer in a VISTA3D network, got {self}")

    @property
    def stride(self) -> int:
        """Every side of a ROI must be a multiple of this number of voxels."""
        return max(int(2 ** (len(self.blocks_down) - 1)), int(2 ** len(self.mixer)) if self.mixer else 2)


VISTA3D132 = Shape()


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Encoded:
    """B encoded ROIs: all that clicks are decoded from.

    Attributes:
        low: (B, C, D/2, H/2, W/2) embedding, `feat_downsample` of the encoder's output.
        image_low: (B, 1, D/2, H/2, W/2) the image averaged to half resolution.
        full: (B, C, D, H, W) the encoder's output.
    """

    low: Tensor
    image_low: Tensor
    full: Tensor


class ResidualBlock(nn.Module):
    """Two 3³ convolutions with instance norm, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same shape."""
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return x + y


class PromptMixer(nn.Module):
    """Spreads the prompts over the embedding: a small U-Net at half resolution.

    VISTA3D's encoder never sees the clicks and its head is point-wise but for one 3³ convolution, so nothing
    in it can follow a structure from a click to its border. The mixer can. It also takes what VISTA3D has no
    input for: the previous mask. Its output projections start at zero, so a network that gains a mixer
    answers as before.
    """

    def __init__(self, width: int, channels: Sequence[int], detail: int = 0) -> None:
        super().__init__()
        self.image_in = nn.Conv3d(width, channels[0], 3, padding=1)
        self.prompt_in = nn.Conv3d(PROMPT_MAPS, channels[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.blocks_down = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c) for _ in range(2 if 0 < i < len(channels) - 1 else 1)))
            for i, c in enumerate(channels)
        )
        self.up = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(channels))
        self.blocks_up = nn.ModuleList(ResidualBlock(c) for c in channels[:-1])
        self.norm_out = nn.InstanceNorm3d(channels[0], affine=True)
        self.to_features = nn.Conv3d(channels[0], width, 1)
        self.to_logits = nn.Conv3d(channels[0], 1, 1)
        self.detail = Detail(width, channels[0], detail) if detail else None
        _to_zero(self.to_features, self.to_logits)

    def forward(self, image_part: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix.

        Args:
            image_part: (R, M, d, h, w) `image_in` of the embedding; it holds no prompt and may be cached.
            maps: (R, PROMPT_MAPS, d, h, w) from `prompt_maps`.

        Returns:
            (R, width, d, h, w) to add to the embedding, (R, 1, d, h, w) coarse logits, and (R, M, d, h, w)
            features that both are made of.
        """
        x = image_part + self.prompt_in(maps)
        skips = []
        for i, blocks in enumerate(self.blocks_down):
            x = blocks(x if i == 0 else self.down[i - 1](x))
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = F.interpolate(self.up[i](x), size=skips[i].shape[-3:], mode="trilinear", align_corners=False)
            x = self.blocks_up[i](x + skips[i])
        x = F.relu(self.norm_out(x))
        return self.to_features(x), self.to_logits(x), x

    def answer(self, encoded: Encoded, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        """What the mixer alone knows of R objects.

        Args:
            encoded: the ROIs.
            prompts: `owner` must be given.

        Returns:
            (R, width, d, h, w) to add to the embedding, (R, 1, d, h, w) coarse logits, and (R, 1, D, H, W)
            logits to add to the head's.
        """
        low, owner = encoded.low, prompts.owner
        maps = prompt_maps(low, encoded.image_low, prompts)
        added, coarse, mixed = self(self.image_in(low)[owner], maps)
        fine = twice_as_fine(coarse)
        if self.detail is not None:
            fine = fine + self.detail(self.detail.image_in(encoded.full)[owner], mixed, prompts.prev_logits)
        return added, coarse, fine


class Detail(nn.Module):
    """The mixer's step from half to full resolution: where exactly a border runs.

    What VISTA3D's head and the mixer decide, they decide at half resolution; of the encoder's full
    resolution nothing reaches them but what its last, strided convolution lets through. Here the encoder's
    output at full resolution and the previous mask come in. The output projection starts at zero.

    Args:
        width: channels of the encoder's output.
        mixed: channels of the mixer's features.
        channels: its own.
    """

    def __init__(self, width: int, mixed: int, channels: int) -> None:
        super().__init__()
        self.image_in = nn.Conv3d(width, channels, 1)
        self.mixed_in = nn.Conv3d(mixed, channels, 1, bias=False)
        self.previous_in = nn.Conv3d(1, channels, 3, padding=1, bias=False)
        self.block = ResidualBlock(channels)
        self.norm_out = nn.InstanceNorm3d(channels, affine=True)
        self.to_logits = nn.Conv3d(channels, 1, 1)
        _to_zero(self.to_logits)

    def forward(self, image_part: Tensor, mixed: Tensor, prev_logits: Tensor | None) -> Tensor:
        """Refine.

        Args:
            image_part: (R, M, D, H, W) `image_in` of the encoder's output; it holds no prompt and may be
                cached.
            mixed: (R, C, d, h, w) features of the mixer.
            prev_logits: (R, 1, D, H, W) what was predicted before, or None.

        Returns:
            (R, 1, D, H, W) logits to add.
        """
        x = image_part + twice_as_fine(self.mixed_in(mixed))
        if prev_logits is not None:
            x = x + self.previous_in((torch.sigmoid(prev_logits.float()) * 2 - 1).to(x.dtype))
        logits: Tensor = self.to_logits(F.relu(self.norm_out(self.block(x))))
        return logits


def twice_as_fine(volume: Tensor) -> Tensor:
    """(R, C, d, h, w) to (R, C, 2d, 2h, 2w), linearly."""
    return F.interpolate(volume, scale_factor=2, mode="trilinear", align_corners=False)


def _to_zero(*layers: nn.Conv3d) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


class Rater(nn.Module):
    """Foresees the Dice of a mask from the view's embedding: which of several zooms to believe.

    Its layers start by He's rule: by PyTorch's own the signal fades, and the rater learns nothing.

    Source: the idea of a predicted overlap per mask is SAM's (Kirillov et al., ICCV 2023).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv3d(width + 2, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(48, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.to_rating = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        for layer in (*self.convolutions, self.to_rating[0]):
            if not isinstance(layer, nn.ReLU):
                nn.init.kaiming_normal_(cast(Tensor, layer.weight), nonlinearity="relu")

    def forward(self, low: Tensor, probability: Tensor) -> Tensor:
        """Rate masks.

        Args:
            low: (R, width, d, h, w) the embedding of each mask's view.
            probability: (R, 1, d, h, w) of the mask, at half resolution.

        Returns:
            (R,) logits of the expected Dice.
        """
        doubt = 4 * probability * (1 - probability)
        x = self.convolutions(torch.cat((low, probability, doubt), dim=1))
        rating: Tensor = self.to_rating(torch.cat((x.mean((2, 3, 4)), x.amax((2, 3, 4))), dim=1))
        return rating[:, 0]


class PointHead(PointMappingSAM):
    """MONAI's point head, with click features, a prompt mixer and a rater where the checkpoint has them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(feature_size=shape.width, n_classes=512, last_supported=SUPPORTED_CLASSES)
        self.click_features: nn.Linear | None = None
        self.mixer: PromptMixer | None = None
        self.rater: Rater | None = None
        if shape.click_features:
            self.click_features = nn.Linear(shape.width, shape.width, bias=False)
            nn.init.zeros_(self.click_features.weight)
        if shape.mixer:
            self.mixer = PromptMixer(shape.width, shape.mixer, shape.detail)
        if shape.rater:
            self.rater = Rater(shape.width)

    @property
    def output_convolution(self) -> nn.Conv3d:
        """The last layer of the up-scaling."""
        return cast(nn.Conv3d, self.output_upscaling[3])

    def tokens(self, prompts: Prompts, low: Tensor) -> Tensor:
        """The prompt tokens of every object: mask token, one per click, supported-class token.

        Args:
            prompts: R objects with N clicks each.
            low: (B, C, d, h, w) embedding at half resolution.

        Returns:
            (R, N + 2, C) float32.
        """
        coords, labels = prompts.coords, prompts.labels
        d, h, w = low.shape[-3:]
        clicks = self.pe_layer.forward_with_coords(coords.float() + 0.5, (2 * d, 2 * h, 2 * w))
        padding = labels == -1
        kinds = torch.cat([cast(nn.Embedding, embedding).weight for embedding in self.point_embeddings])
        clicks = clicks + kinds[labels.clamp(min=0) % 2]
        clicks = clicks + (labels >= 2).unsqueeze(-1) * self.special_class_embed.weight
        if self.click_features is not None:
            clicks = clicks + self.click_features(features_at(low, prompts).to(clicks.dtype))
        clicks = torch.where(padding.unsqueeze(-1), self.not_a_point_embed.weight, clicks)
        rows = coords.shape[0]
        first, last = self.mask_tokens.weight, self.supported_embed.weight
        return torch.cat((first.expand(rows, 1, -1), clicks, last.expand(rows, 1, -1)), dim=1)

    def decode(self, encoded: Encoded, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
        """Logits of every object, written plainly; the engine has the fast form of the same sums.

        Args:
            encoded: the ROIs.
            prompts: R objects.

        Returns:
            (R, 1, 2d, 2h, 2w) logits, and the mixer's (R, 1, d, h, w) coarse logits where there is a mixer.
        """
        low, rows = encoded.low, prompts.coords.shape[0]
        if prompts.owner is None:
            prompts = replace(prompts, owner=low.new_zeros(rows, dtype=torch.long))
        src, coarse, fine = low[prompts.owner], None, None
        if self.mixer is not None:
            added, coarse, fine = self.mixer.answer(encoded, prompts)
            src = src + added
        position = self.pe_layer(low.shape[-3:]).unsqueeze(0).expand(rows, -1, -1, -1, -1)
        queries, keys = self.transformer(src, position, self.tokens(prompts, low))
        upscaled = self.output_upscaling[:3](keys.transpose(1, 2).reshape(src.shape))
        vectors = self.output_hypernetworks_mlps(queries[:, 0])
        logits = self.folded_output(upscaled, vectors)
        return (logits if fine is None else logits + fine), coarse

    def folded_output(self, upscaled: Tensor, vectors: Tensor) -> Tensor:
        """The last convolution and the dot product with each object's vector, as one convolution.

        Args:
            upscaled: (R, C, D, H, W).
            vectors: (R, C).

        Returns:
            (R, 1, D, H, W) logits.
        """
        last = self.output_convolution
        kernels = torch.einsum("rc,cdxyz->rdxyz", vectors, last.weight.to(vectors.dtype))
        assert last.bias is not None
        biases = vectors @ last.bias.to(vectors.dtype)
        layout = torch.channels_last_3d
        rows = [
            F.conv3d(
                upscaled[r : r + 1].contiguous(memory_format=layout),
                kernels[r : r + 1],
                biases[r : r + 1],
                padding=1,
            )
            for r in range(upscaled.shape[0])
        ]
        return torch.cat(rows)


class Network(nn.Module):
    """VISTA3D without its automatic branch: an image encoder that never sees a prompt, and a point head.

    Its parameters carry MONAI's names, so a VISTA3D state dict loads as it is.

    Source: He et al., VISTA3D, CVPR 2025, arXiv:2406.05285; MONAI `monai.networks.nets.vista3d`.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.image_encoder = SegResNetDS2(
            in_channels=1,
            blocks_down=shape.blocks_down,
            norm="instance",
            out_channels=shape.width,
            init_filters=shape.init_filters,
            dsdepth=1,
        )
        del self.image_encoder.up_layers_auto
        self.point_head = PointHead(shape)

    def encode(self, image: Tensor) -> Encoded:
        """What the clicks are decoded from.

        Args:
            image: (B, 1, D, H, W) float32; every side a multiple of `shape.stride`.
        """
        shown = image.to(next(self.image_encoder.parameters()).dtype)
        full = self.image_encoder(shown, with_point=True, with_label=False)[0]
        return Encoded(self.point_head.feat_downsample(full), F.avg_pool3d(image, 2), full)

    def forward(self, image: Tensor, prompts: Prompts) -> Tensor:
        """(R, 1, D, H, W) logits of R objects in (B, 1, D, H, W) images."""
        return self.point_head.decode(self.encode(image), prompts)[0]


AUTOMATIC_BRANCH = ("class_head.", "image_encoder.up_layers_auto.")


def shape_of(tensors: Mapping[str, Tensor]) -> Shape:
    """Read the network's sizes from a state dict.

    Raises:
        ValueError: when the tensors are not those of a VISTA3D network.
    """

    def count(pattern: str) -> int:
        return len({m.group(1) for name in tensors if (m := re.match(pattern, name))})

    first, head = "image_encoder.encoder.conv_init.weight", "point_head.mask_tokens.weight"
    missing = [name for name in (first, head) if name not in tensors]
    if missing:
        raise ValueError(
            f"expected the weights of a VISTA3D network (with {first}); the file has {len(tensors)} tensors, "
            f"none named {missing[0]}; give a VISTA3D checkpoint"
        )
    levels = count(r"image_encoder\.encoder\.layers\.(\d+)\.")
    blocks = tuple(count(rf"image_encoder\.encoder\.layers\.{n}\.blocks\.(\d+)\.") for n in range(levels))
    mixer_levels = count(r"point_head\.mixer\.blocks_down\.(\d+)\.")
    norms = [f"point_head.mixer.blocks_down.{n}.0.norm1.weight" for n in range(mixer_levels)]
    detail = "point_head.mixer.detail.norm_out.weight"
    if detail in tensors:
        norms.append(detail)
    for name, dimensions in ((first, 5), (head, 2), *((norm, 1) for norm in norms)):
        found = tensors[name].ndim if name in tensors else "no such tensor"
        if found != dimensions:
            raise ValueError(
                f"the sizes of a VISTA3D network cannot be read: expected {dimensions} dimensions of {name}, "
                f"found {found}"
            )
    return Shape(
        init_filters=int(tensors[first].shape[0]),
        blocks_down=blocks,
        width=int(tensors[head].shape[1]),
        click_features="point_head.click_features.weight" in tensors,
        mixer=tuple(int(tensors[norm].shape[0]) for norm in norms[:mixer_levels]),
        rater="point_head.rater.to_rating.0.weight" in tensors,
        detail=int(tensors[detail].shape[0]) if detail in tensors else 0,
    )


def build_network(tensors: Mapping[str, Tensor]) -> Network:
    """The network a state dict belongs to, holding its float32 weights, in evaluation mode.

    Args:
        tensors: a VISTA3D state dict of any width, with or without the automatic branch and our additions.

    Raises:
        ValueError: naming the first tensors that are missing, unknown or of the wrong shape.
    """
    shape = shape_of(tensors)
    with torch.device("meta"):
        network = Network(shape)
    wanted = network.state_dict()
    given = {k: v for k, v in tensors.items() if not k.startswith(AUTOMATIC_BRANCH)}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"the checkpoint does not fit a VISTA3D network of {shape}: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(unknown)} unknown ({', '.join(unknown[:3])})"
        )
    wrong = [k for k in wanted if wanted[k].shape != given[k].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"the checkpoint has {len(wrong)} tensors of the wrong shape: {name} should be "
            f"{tuple(wanted[name].shape)} and is {tuple(given[name].shape)}"
        )
    network.load_state_dict({k: given[k].float() for k in wanted}, assign=True)
    return network.eval().requires_grad_(False)
