"""One step: views in, gradients out.

A view is encoded once for all its objects. Every object gets its first prompts, then further clicks on what
is still wrong, with the mask so far fed back; the loss is taken after the last one, and the rater learns to
foresee that mask's Dice. Gradients are those of the sum over objects: whoever divides by their number, over
all views and processes, gets the mean, however the objects were spread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from GSMedSegLib.engine import find_precision
from GSMedSegLib.network import Encoded, Network, PointHead
from GSMedSegLib.prompt_maps import Prompts, box_logits
from Training import clicks
from Training.clicks import FIRST_CLICKS, Clicks, Spread
from Training.config import Config, Sampling
from Training.examples import Example

SECOND_LOOKS = 0.15
"""How often a mask is fed back without a new click, as when a view is moved to fit the mask."""

RATING_WEIGHT = 0.3
"""What the rater's loss counts; its gradient ends at the rater."""

COARSE_WEIGHT = 0.5
"""What the loss of the mixer's coarse logits counts beside that of the full ones."""

NEAR_SIGMA = 4.0
"""How far around the clicks counts for itself, in voxels of the view."""

BOX_CLICK_SHARE = 0.5
"""How often a box comes with a click in its object."""

_soft_dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5, reduction="none")


@dataclass(frozen=True)
class Plan:
    """What all processes do alike in a step.

    Attributes:
        rounds: further clicks on the error.
        head: whether the full-resolution head is trained.
        stage: share of each way to place the first clicks.
    """

    rounds: int
    head: bool
    stage: dict[str, float]


def plan_step(config: Config, step: int, epoch: int) -> Plan:
    """The plan of a step, drawn from its number."""
    sampling = config.sampling
    rng = clicks.chance_of_step(config.seed, step)
    return Plan(
        clicks.further_clicks(rng, sampling.more_clicks),
        bool(rng.random() < config.optimisation.head_share),
        sampling.stages[epoch % len(sampling.stages)],
    )


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Shown:
    """One object of a step, for the figure of the seed's trainer.

    Attributes:
        image, target, probability: (S, S, S) float32 arrays.
        click_kji: its first click, or the view's middle where it has none.
    """

    image: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    click_kji: tuple[int, int, int]


@dataclass
class Tally:
    """Sums over the objects of a step, in this process.

    Attributes:
        objects: how many there were.
        views: how many views had some.
        loss, dice, rating: sums.
        broken: the names of cases whose loss is not finite.
        shown: one of the objects.
    """

    objects: int = 0
    views: int = 0
    loss: float = 0.0
    dice: float = 0.0
    rating: float = 0.0
    broken: list[str] = field(default_factory=list)
    shown: Shown | None = None


@dataclass
class Asked:
    """An object and what was said of it so far.

    Attributes:
        image: (S, S, S) float32, the view it lies in.
        target: (S, S, S) bool.
        ledger: its clicks.
        box: (1, S, S, S) logits that stand for a box, or None.
        special: whether its clicks are marked as those of a special class.
        rng: where its next clicks come from.
    """

    image: Tensor
    target: Tensor
    ledger: Clicks
    box: Tensor | None
    special: bool
    rng: np.random.Generator


def learn(
    network: Network,
    examples: Sequence[Example],
    plan: Plan,
    config: Config,
    device: torch.device,
    scale: float = 1.0,
) -> Tally:
    """Add the gradients of the sum of the objects' losses to the network's.

    Args:
        network: in training mode.
        examples: views; those without objects are passed over.
        plan: of the step.
        config: of the run.
        device: of the network.
        scale: a factor for the gradients, against underflow in fp16.
    """
    tally = Tally()
    useful = [example for example in examples if len(example.targets)]
    at_once = config.optimisation.views_at_once
    for start in range(0, len(useful), at_once):
        _learn_views(network, useful[start : start + at_once], plan, config, device, scale, tally)
    return tally


def _learn_views(
    network: Network,
    views: Sequence[Example],
    plan: Plan,
    config: Config,
    device: torch.device,
    scale: float,
    tally: Tally,
) -> None:
    images = torch.stack([view.image for view in views]).unsqueeze(1).to(device)
    images = images.contiguous(memory_format=torch.channels_last_3d)
    asked = [
        (n, one) for n, view in enumerate(views) for one in first_prompts(view, plan.stage, config.sampling)
    ]
    dtype = find_precision(config.optimisation.precision, device)
    trains_encoder = any(
        p.requires_grad
        for part in (network.image_encoder, network.point_head.feat_downsample)
        for p in part.parameters()
    )
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        with torch.set_grad_enabled(trains_encoder):
            encoded = network.encode(images)
        # The graph is cut here: the objects' gradients meet, and go through the encoder once.
        leaf = replace(
            encoded,
            low=encoded.low.detach().requires_grad_(trains_encoder),
            full=encoded.full.detach().requires_grad_(trains_encoder),
        )
        if config.sampling.candidates:
            asked = _hard_ones(network.point_head, _detached(leaf), asked, views, config.sampling)
        at_once = config.optimisation.objects_at_once
        for start in range(0, len(asked), at_once):
            some = asked[start : start + at_once]
            owner = torch.tensor([n for n, _ in some], device=device)
            objects = [one for _, one in some]
            losses = _learn_objects(network, leaf, owner, objects, plan, config, tally)
            bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
            if bad:
                tally.broken += [views[int(owner[n])].name for n in bad]
                return
            (losses.sum() * scale).backward()
            tally.loss += float(losses.detach().sum())
    if trains_encoder:
        ends = [(encoded.low, leaf.low.grad), (encoded.full, leaf.full.grad)]
        reached = [(end, gradient) for end, gradient in ends if gradient is not None]
        torch.autograd.backward([end for end, _ in reached], [gradient for _, gradient in reached])
    tally.views += len(views)
    tally.objects += len(asked)


@contextmanager
def _without_gradients() -> Iterator[None]:
    """For answers on the way; autocast forgets the weights that it cast for them.

    Before torch 2.11 it would go on with those, and the weights would get no gradient.
    Source: https://github.com/pytorch/pytorch/pull/165068.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


def _detached(encoded: Encoded) -> Encoded:
    return replace(encoded, low=encoded.low.detach(), full=encoded.full.detach())


def _hard_ones(
    head: PointHead,
    encoded: Encoded,
    asked: list[tuple[int, Asked]],
    views: Sequence[Example],
    sampling: Sampling,
) -> list[tuple[int, Asked]]:
    """Of every view's objects so many as are to be learned from, by the losses of their first answers."""
    if max(Counter(n for n, _ in asked).values()) <= sampling.objects:
        return asked
    device = encoded.low.device
    owner = torch.tensor([n for n, _ in asked], device=device)
    objects = [one for _, one in asked]
    with _without_gradients():
        prompts = to_prompts(objects, _boxes(objects, device) if head.mixer is not None else None, owner)
        answer = _answer(head, encoded, prompts, sampling.quick_rounds and head.mixer is not None)
        targets = torch.stack([one.target for one in objects]).unsqueeze(1).float().to(device)
        losses = per_object(answer, targets).cpu().numpy()
    kept = []
    for n, view in enumerate(views):
        own = np.array([index for index, (where, _) in enumerate(asked) if where == n])
        order = by_weight(np.random.default_rng([*view.seed, len(own)]), losses[own])
        kept += [asked[index] for index in sorted(own[order[: sampling.objects]])]
    return kept


def by_weight(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """Indices in a random order, drawn without replacement by their weights; NaN counts as infinite.

    Each waits a time that is exponentially distributed, with its weight as the rate.

    Source: Efraimidis and Spirakis, Information Processing Letters 2006.
    """
    rates = np.where(np.isnan(weights), np.inf, np.maximum(weights, 1e-6))
    return np.argsort(rng.exponential(size=len(rates)) / rates)


def _learn_objects(
    network: Network,
    encoded: Encoded,
    owner: Tensor,
    asked: list[Asked],
    plan: Plan,
    config: Config,
    tally: Tally,
) -> Tensor:
    """(R,) losses of some objects after the last of their clicks."""
    head = network.point_head
    device = encoded.low.device
    targets = torch.stack([one.target for one in asked]).unsqueeze(1).to(device)
    previous = _boxes(asked, device) if head.mixer is not None else None
    quick = config.sampling.quick_rounds and head.mixer is not None
    for _ in range(plan.rounds):
        with _without_gradients():
            prompts = to_prompts(asked, previous, owner)
            answer = _answer(head, _detached(encoded), prompts, quick)
        place_on_errors(asked, answer)
        if head.mixer is not None:
            previous = answer.float()
    prompts = to_prompts(asked, previous, owner)
    coarse_targets = F.avg_pool3d(targets.float(), 2)
    if plan.head or head.mixer is None:
        logits, coarse = _decode(head, encoded, prompts)
    else:
        _, coarse, logits = head.mixer.answer(encoded, prompts)
    losses = per_object(logits, targets.float())
    if config.optimisation.near_clicks:
        losses = losses + config.optimisation.near_clicks * near_clicks(logits, targets.float(), prompts)
    if coarse is not None:
        losses = losses + COARSE_WEIGHT * per_object(coarse, coarse_targets)
    tally.dice += float(hard_dice(logits.detach() > 0, targets).sum())
    tally.shown = tally.shown or _shown(asked[0], logits[0, 0])
    if head.rater is not None and coarse is not None:
        rated = rate(head, encoded.low, owner, coarse, coarse_targets)
        tally.rating += float(rated.detach().sum())
        losses = losses + RATING_WEIGHT * (rated - rated.detach())  # its gradient, but not its value
    return losses


def _answer(head: PointHead, encoded: Encoded, prompts: Prompts, quick: bool) -> Tensor:
    """(R, 1, S, S, S) logits to place the next clicks by, without the head where that will do."""
    if quick:
        assert head.mixer is not None
        return head.mixer.answer(encoded, prompts)[2]
    return _decode(head, encoded, prompts)[0]


def _decode(head: PointHead, encoded: Encoded, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """`PointHead.decode` of objects with equally many clicks at a time, as when each is segmented by itself.

    The head pays attention to padding too: an object's answer would depend on how many clicks others have.
    """
    counts = (prompts.labels >= 0).sum(1).clamp(min=1)
    groups = [(counts == n).nonzero().flatten() for n in counts.unique().tolist()]
    if len(groups) == 1:
        return head.decode(encoded, prompts)
    assert prompts.owner is not None
    answers = []
    for rows in groups:
        longest = int(counts[rows[0]])
        some = Prompts(
            prompts.coords[rows, :longest],
            prompts.labels[rows, :longest],
            None if prompts.prev_logits is None else prompts.prev_logits[rows],
            prompts.owner[rows],
        )
        answers.append(head.decode(encoded, some))
    back = torch.cat(groups).argsort()
    logits = torch.cat([answer for answer, _ in answers])[back]
    coarse = [part for _, part in answers if part is not None]
    return logits, torch.cat(coarse)[back] if coarse else None


def per_object(logits: Tensor, targets: Tensor) -> Tensor:
    """(R,) Dice plus cross-entropy of (R, 1, D, H, W) logits, as the seed's loss has them, in float32."""
    overlap: Tensor = _soft_dice(logits.float(), targets).flatten(1).mean(1)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").flatten(1).mean(1)
    return overlap + entropy


def near_clicks(logits: Tensor, targets: Tensor, prompts: Prompts) -> Tensor:
    """(R,) cross-entropy of (R, 1, D, H, W) logits around the clicks; 0 for an object without any.

    What a further click mends is a small part of a view, and would count little in the mean over all of it.
    """
    along = [
        torch.exp(-0.5 * ((torch.arange(size, device=logits.device) - at[..., None]) / NEAR_SIGMA) ** 2)
        for size, at in zip(logits.shape[-3:], prompts.coords.float().unbind(-1), strict=True)
    ]
    around = torch.einsum("rnk,rnj,rni->rnkji", *along) * (prompts.labels >= 0)[..., None, None, None]
    weight = around.amax(1, keepdim=True)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), targets, weight, reduction="none")
    return entropy.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)


def rate(head: PointHead, low: Tensor, owner: Tensor, coarse: Tensor, coarse_targets: Tensor) -> Tensor:
    """(R,) the rater's losses: cross-entropy between the Dice that it expects of the masks and the true one.

    Args:
        head: a point head with a rater.
        low: (B, C, d, h, w) embeddings.
        owner: (R,) the embedding of each mask.
        coarse: (R, 1, d, h, w) logits.
        coarse_targets: (R, 1, d, h, w) share of each voxel that is the object.
    """
    assert head.rater is not None
    probability = torch.sigmoid(coarse.detach().float())
    rating = head.rater(low.detach()[owner], probability.to(low.dtype))
    truth = hard_dice(probability > 0.5, coarse_targets > 0.5)
    return F.binary_cross_entropy_with_logits(rating.float(), truth, reduction="none")


def first_prompts(view: Example, stage: dict[str, float], sampling: Sampling) -> list[Asked]:
    """The objects of a view, each with what it starts with."""
    kinds, shares = list(stage), np.array(list(stage.values()))
    spread = Spread.draw(np.random.default_rng(view.seed))
    asked = []
    for n, target in enumerate(view.targets):
        rng = np.random.default_rng([*view.seed, n])
        mask = target.numpy()
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        most = (
            clicks.most_clicks(int(mask.sum()), len(mask)) if sampling.adaptive_hints else clicks.MOST_CLICKS
        )
        ledger, box = Clicks(), None
        if kind == "box":
            box = box_logits(clicks.bounding_box(rng, mask), mask.shape)
            if rng.random() < BOX_CLICK_SHARE:
                ledger = clicks.centre(rng, mask, spread)
        else:
            ledger = FIRST_CLICKS[kind](rng, mask, spread, most)
        special = bool(view.labels) and view.labels[n] in sampling.special_labels
        asked.append(Asked(view.image, target, ledger, box, special, rng))
    return asked


def _boxes(asked: Sequence[Asked], device: torch.device) -> Tensor | None:
    """The boxes as previous masks; 0 says nothing."""
    if all(one.box is None for one in asked):
        return None
    return torch.stack(
        [torch.zeros(1, *one.target.shape) if one.box is None else one.box for one in asked]
    ).to(device)


def place_on_errors(asked: Sequence[Asked], answer: Tensor) -> None:
    """Add to most objects a click on their largest error.

    Args:
        asked: R objects.
        answer: (R, 1, S, S, S) logits.
    """
    masks = (answer[:, 0] > 0).cpu().numpy()
    for one, mask in zip(asked, masks, strict=True):
        if one.rng.random() >= SECOND_LOOKS:
            one.ledger += clicks.on_error(one.rng, one.target.numpy(), mask)


def to_prompts(asked: Sequence[Asked], previous: Tensor | None, owner: Tensor) -> Prompts:
    """The clicks of all objects as tensors, padded to the longest list, and to one at least."""
    longest = max(1, *(len(one.ledger) for one in asked))
    coords = torch.zeros(len(asked), longest, 3, dtype=torch.long)
    labels = torch.full((len(asked), longest), -1, dtype=torch.long)
    for r, one in enumerate(asked):
        for n, (at, label) in enumerate(one.ledger):
            coords[r, n], labels[r, n] = torch.tensor(at), label + 2 * one.special
    return Prompts(coords.to(owner.device), labels.to(owner.device), previous, owner)


def hard_dice(mask: Tensor, truth: Tensor) -> Tensor:
    """(R,) Dice of (R, 1, d, h, w) masks."""
    both, either = (mask & truth).flatten(1).sum(1), mask.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return 2 * both / either.clamp(min=1)


def _shown(one: Asked, logits: Tensor) -> Shown:
    """An object with its (S, S, S) answer."""
    click = one.ledger[0][0] if one.ledger else (len(one.target) // 2,) * 3
    probability = torch.sigmoid(logits.detach().float()).cpu().numpy()
    return Shown(one.image.numpy(), one.target.float().numpy(), probability, click)
