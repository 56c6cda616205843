"""Muon: weights that are matrices are moved along the nearest orthogonal matrix to their gradient.

All directions of a layer then learn alike, whichever the gradient favours. Per step it does more than AdamW,
whose size of step and weight decay it keeps, so that the same learning rate serves.

Source: Jordan et al., Muon, 2024, https://kellerjordan.github.io/posts/muon; the size of the step: Liu et
al., Muon is scalable for LLM training, arXiv:2502.16982. torch.optim.Muon (torch 2.9 and newer) is the same
for two-dimensional weights; a convolution's have five.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95

ADAM_LIKE = 0.2
"""The root mean square of AdamW's usual change of a weight, in learning rates."""

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ROUNDS = 5
"""Of a Newton-Schulz iteration that brings all singular values to about 1 (0.7 to 1.2)."""

FEWEST = 16
"""Matrices with a shorter side are left to AdamW, as are biases and norms."""


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight (outputs, inputs, …) is worth seeing as a matrix: one row for each output."""
    return weight.ndim >= 2 and min(len(weight), weight[0].numel()) >= FEWEST


class Muon(torch.optim.AdamW):
    """Muon for the groups of weights with `matrices`, AdamW for the others; a step uses up the gradients."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move all weights that have a gradient."""
        for group in self.param_groups:
            if not group["matrices"]:
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
                state["step"] += 1  # AdamW wants to find it when it is loaded
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
                change = ADAM_LIKE * max(ahead.shape) ** 0.5 * orthogonal(ahead)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(group["lr"] * change.view(weight.shape))
                weight.grad = None  # AdamW passes over it
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """The (M, N) matrix with all singular values brought to about 1; zeros stay."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrix else x.T
