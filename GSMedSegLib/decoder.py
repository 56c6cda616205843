"""The point head, fast: the sums of `PointHead.decode` in an order that keeps the work small and in cache.

Three rearrangements, each exact but for rounding:

- the few prompt tokens take over the projections of the many image tokens: `(K Wk) · q = K · (Wk q)`, so
  the transformer becomes thin matrix products over chunks of image tokens, with a running softmax;
- the last convolution and the dot product with an object's vector are one convolution to one channel, done
  as a product with 27 columns followed by shifted sums, slab by slab;
- nothing that the prompts do not change is computed here: see `engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.nets.vista3d import Attention, TwoWayAttentionBlock
from torch import Tensor

from GSMedSegLib.layers import ChannelNorm
from GSMedSegLib.network import PointHead

CHUNK_TOKENS = {"cpu": 8192, "cuda": 2**18}
"""Image tokens worked on at once: on a CPU so many that their features stay in the second-level cache."""

SLAB_VOXELS = {"cpu": 2**16, "cuda": 2**22}
"""Full-resolution voxels per step of the output convolution, chosen likewise."""


class RunningSoftmax:
    """Weighted mean of rows under a softmax over all of them, fed chunk by chunk.

    Args:
        rows: (Q, C) what the keys are multiplied with to give Q attention logits.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._highest = rows.new_full((rows.shape[0], 1), -torch.inf)
        self._total = rows.new_zeros(rows.shape[0], 1)
        self._sum = torch.zeros_like(rows)

    def feed(self, keys: Tensor, values: Tensor) -> None:
        """Take (t, C) keys and the (t, C) values they weigh."""
        logits = self._rows @ keys.T
        highest = torch.maximum(self._highest, logits.amax(1, keepdim=True))
        weights = (logits - highest).exp_()
        shrink = (self._highest - highest).exp_()
        self._total = self._total * shrink + weights.sum(1, keepdim=True)
        self._sum = self._sum * shrink + weights @ values
        self._highest = highest

    def mean(self) -> Tensor:
        """(Q, C)."""
        return self._sum / self._total


def _heads(weight: Tensor, heads: int) -> Tensor:
    """(H, c, C) view of a projection's (H·c, C) weight."""
    return weight.view(heads, -1, weight.shape[1])


def _ask(attention: Attention, queries: Tensor) -> RunningSoftmax:
    """Tokens attending to the image: queries (n, C) with the key projection folded in."""
    heads = attention.num_heads
    q = attention.q_proj(queries).unflatten(-1, (heads, -1))
    scale = q.shape[-1] ** -0.5
    rows = torch.einsum("nhc,hcd->nhd", q * scale, _heads(attention.k_proj.weight, heads))
    return RunningSoftmax(rows.flatten(0, 1))


def _answer(attention: Attention, asked: RunningSoftmax) -> Tensor:
    """(n, C) what the tokens learnt from the image."""
    heads = attention.num_heads
    mean = asked.mean().unflatten(0, (-1, heads))
    values = torch.einsum("nhd,hcd->nhc", mean, _heads(attention.v_proj.weight, heads)).flatten(1)
    out: Tensor = attention.out_proj(values + attention.v_proj.bias)
    return out


def _tell(
    block: TwoWayAttentionBlock, queries: Tensor, token_position: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The image attending to tokens: a function from (t, C) keys, without and with positions, to new keys."""
    attention = block.cross_attn_image_to_token
    heads = attention.num_heads
    k = attention.k_proj(queries + token_position).unflatten(-1, (heads, -1))
    v = attention.v_proj(queries).unflatten(-1, (heads, -1))
    scale = k.shape[-1] ** -0.5
    rows = torch.einsum("nhc,hcd->hnd", k * scale, _heads(attention.q_proj.weight, heads)).flatten(0, 1)
    offsets = torch.einsum("nhc,hc->hn", k * scale, attention.q_proj.bias.view(heads, -1)).flatten()[:, None]
    outputs = torch.einsum("nhc,dhc->hnd", v, attention.out_proj.weight.unflatten(1, (heads, -1))).flatten(
        0, 1
    )

    def keys_after(keys: Tensor, with_position: Tensor) -> Tensor:
        logits = torch.addmm(offsets, rows, with_position.T)
        weights = logits.unflatten(0, (heads, -1)).softmax(1).flatten(0, 1)
        told = torch.addmm(attention.out_proj.bias, weights.T, outputs).add_(keys)
        normed: Tensor = block.norm4(told)
        return normed

    return keys_after


def transform(head: PointHead, low: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The two-way transformer of one object.

    Args:
        head: the point head.
        low: (T, C) image tokens, any floating dtype; the sums are taken in float32.
        position: (T, C) float32 positional encoding of the image tokens.
        tokens: (n, C) float32 prompt tokens.

    Returns:
        (T, C) image tokens in the dtype of `low`, and the (C,) vector of the mask token.
    """
    transformer = head.transformer
    keys = low
    step = CHUNK_TOKENS[low.device.type]
    chunks = [slice(at, at + step) for at in range(0, low.shape[0], step)]
    queries = tokens
    out: Tensor | None = None
    update: Callable[[Tensor, Tensor], Tensor] | None = None

    def sweep(asked: RunningSoftmax) -> None:
        """Bring every image token up to date and show it to the waiting tokens."""
        nonlocal keys, out
        if update is not None and out is None:
            out = torch.empty_like(low)
        for chunk in chunks:
            values, where = keys[chunk].float(), position[chunk]
            if update is not None:
                assert out is not None
                values = update(values, values + where)
                out[chunk] = values
            asked.feed(values + where, values)
        if out is not None:
            keys = out

    for layer in transformer.layers:
        block = cast(TwoWayAttentionBlock, layer)
        if block.skip_first_layer_pe:
            queries = block.self_attn(*[queries[None]] * 3)[0]
        else:
            with_position = (queries + tokens)[None]
            queries = queries + block.self_attn(with_position, with_position, queries[None])[0]
        queries = block.norm1(queries)
        asked = _ask(block.cross_attn_token_to_image, queries + tokens)
        sweep(asked)
        queries = block.norm2(queries + _answer(block.cross_attn_token_to_image, asked))
        queries = block.norm3(queries + block.mlp(queries))
        update = _tell(block, queries, tokens)
    asked = _ask(transformer.final_attn_token_to_image, queries + tokens)
    sweep(asked)
    queries = transformer.norm_final_attn(queries + _answer(transformer.final_attn_token_to_image, asked))
    return keys, head.output_hypernetworks_mlps(queries[:1])[0]


def upscale(head: PointHead, low: Tensor, vector: Tensor) -> Tensor:
    """Up-scale one object's image tokens and take their product with its vector.

    Args:
        head: the point head.
        low: (1, C, d, h, w) channels-last.
        vector: (C,) float32.

    Returns:
        (2d, 2h, 2w) float32 logits.
    """
    grow, norm, last = head.output_upscaling[0], head.output_upscaling[1], head.output_convolution
    grown, affine = grow(low), None
    if grown.dtype == torch.float32:
        affine = cast(ChannelNorm, norm).scale_and_shift(grown)
    else:
        grown = norm(grown)
    features = grown.permute(0, 2, 3, 4, 1)[0]
    depth, height, width, channels = features.shape
    kernel = (
        torch.einsum("c,cdxyz->xyzd", vector, last.weight.float()).reshape(27, channels).to(features.dtype)
    )
    padded = torch.zeros(depth + 2, height + 2, width + 2, device=low.device)
    planes = max(1, SLAB_VOXELS[low.device.type] // (height * width))
    for at in range(0, depth, planes):
        slab = features[at : at + planes].reshape(-1, channels)
        if affine is not None:
            scale, shift = affine
            slab = torch.addcmul(shift, slab, scale)
        slab = F.gelu(slab)
        n = slab.shape[0] // (height * width)
        taps = (kernel @ slab.T).view(3, 3, 3, n, height, width)
        for x in range(3):
            target = padded[at + 2 - x : at + 2 - x + n]
            for y in range(3):
                for z in range(3):
                    target[:, 2 - y : 2 - y + height, 2 - z : 2 - z + width] += taps[x, y, z]
    assert last.bias is not None
    bias: Tensor = vector @ last.bias.float()
    return padded[1:-1, 1:-1, 1:-1] + bias
