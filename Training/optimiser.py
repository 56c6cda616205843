"""How the weights are moved: what is trained, how fast, over how many processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from monai.networks.nets.segresnet_ds import SegResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from GSMedSegLib.network import Network
from GSMedSegLib.sharding import Ranks
from Training.config import Optimisation
from Training.muon import Muon, is_matrix


def freeze(network: nn.Module, beginnings: Sequence[str]) -> None:
    """Keep weights as they are, by the beginning of their names.

    Raises:
        ValueError: a beginning that no weight has, or nothing left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(
                f"freeze: no weight's name begins with {beginning!r}; they begin with {_heads(names)}"
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(beginnings)))
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError("freeze leaves nothing to train")


def _heads(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def make_optimiser(network: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """The optimiser of what is trained; every group knows its `factor` of the learning rate.

    Raises:
        ValueError: a rate factor for a beginning that no weight has.
    """
    by_muon = settings.optimiser == "muon"
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    used = set[str]()
    for name, parameter in network.named_parameters():
        fitting = [b for b in settings.rate_factors if name.startswith(b)]
        used.update(fitting)
        if parameter.requires_grad:
            factor = settings.rate_factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault((factor, by_muon and is_matrix(parameter)), []).append(parameter)
    unused = settings.rate_factors.keys() - used
    if unused:
        names = [name for name, _ in network.named_parameters()]
        raise ValueError(
            f"rate_factors: no weight's name begins with {min(unused)!r}; they begin with {_heads(names)}"
        )
    parts = [
        {"params": several, "factor": factor, **({"matrices": matrices} if by_muon else {})}
        for (factor, matrices), several in groups.items()
    ]
    kind = Muon if by_muon else torch.optim.AdamW
    return kind(parts, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def set_rate(optimiser: torch.optim.Optimizer, settings: Optimisation, step: int, steps: int) -> float:
    """Give every group its learning rate for a step; returns that of groups without a factor."""
    rate = settings.learning_rate * schedule(step, steps, settings.warmup_steps)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@contextmanager
def _together() -> Iterator[None]:
    """Says in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "another process of this run was lost: look for its own message, then start all of them again; "
            f"the run goes on from the last checkpoint ({str(error).splitlines()[0][:200]})"
        ) from error


def reduce_sums(values: Sequence[float], ranks: Ranks) -> list[float]:
    """Each value summed over the processes."""
    if ranks.size == 1:
        return list(values)
    import torch.distributed as dist

    summed = torch.tensor(values, dtype=torch.float64)
    with _together():
        dist.all_reduce(summed)
    return [float(v) for v in summed]


def reduce_gradients(network: nn.Module, ranks: Ranks, divisor: float) -> None:
    """Sum the gradients over the processes and divide them.

    A process that had nothing to learn from takes part with zeros: nobody waits, nobody's step is lost, and
    the mean is over objects, not over processes. A weight that no process has a gradient for keeps none.

    Args:
        network: with the gradients of this process.
        ranks: the processes.
        divisor: the number of objects in all of them, times the loss scale.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    if ranks.size > 1:
        import torch.distributed as dist

        has = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8)
        with _together():
            dist.all_reduce(has, dist.ReduceOp.MAX)
            moved = [p for p, any_has in zip(trained, has.tolist(), strict=True) if any_has]
            for p in moved:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            works = [dist.all_reduce(p.grad, async_op=True) for p in moved]
            for work in works:
                work.wait()
    gradients = [p.grad for p in trained if p.grad is not None]
    torch._foreach_div_(gradients, divisor)


@torch.no_grad()
def update_average(average: Network, network: Network, decay: float) -> None:
    """Move the running average of the weights towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def average_decay(ema: float, step: int) -> float:
    """The decay of the average after a step: at first it follows the weights closely."""
    return min(ema, (1 + step) / (10 + step)) if ema else 0.0


def checkpoint_encoder(network: Network) -> None:
    """Have the encoder's residual blocks keep their inputs only, and compute the rest again when needed."""
    for block in network.image_encoder.modules():
        if isinstance(block, SegResBlock):
            inner: Callable[..., Tensor] = block.forward
            block.forward = partial(checkpoint, inner, use_reentrant=False)  # type: ignore[method-assign]


def compile_encoder(network: Network, roi: int, device: torch.device) -> bool:
    """Let torch compile the encoder, and try it; where that fails, warn and leave it as it was."""
    encoder = network.image_encoder
    try:
        encoder.compile()
        image = torch.zeros(1, 1, roi, roi, roi, device=device)
        encoder(image, with_point=True, with_label=False)[0].sum().backward()  # the way back is compiled too
        network.zero_grad(set_to_none=True)
    except Exception as error:  # noqa: BLE001 - whatever a missing compiler or an odd processor leads to
        encoder._compiled_call_impl = None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"the encoder is not compiled: {reason}", stacklevel=2)
        return False
    return True


def clipped_norm(network: nn.Module, clip_norm: float) -> float:
    """Clip the gradient, unless `clip_norm` is 0, and return its norm before."""
    return float(torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm or math.inf))
