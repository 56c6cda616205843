"""Train the network: `python -m Training.finetune CONFIG.toml [--key value …]`.

The story: views of volumes and scenes come in; a view is encoded once for all its objects; every object gets
a first click, then further clicks on what is still wrong, with the mask so far fed back; the loss is taken
after the last one, and the rater learns to foresee that mask's Dice. Stopped at any time, the same command
goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.checkpoint import read_checkpoint, write_safetensors
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.network import Network, PointHead, Prompts, Shape, build_network
from Training import clicks
from Training.config import Config, read_config
from Training.sampling import Example, Examples

FIRST_CLICKS = ((0.7, "centre"), (0.2, "edge_centre"), (0.1, "uniform"))
"""How the first clicks of an object are placed, and how often. The first is what the challenge's corrector
does."""

SECOND_LOOKS = 0.15
"""How often a mask is fed back without a new click, as when a view is moved to fit the mask."""

RATING_WEIGHT = 0.3
"""What the rater's loss counts; its gradient ends at the rater."""

FIRST_GUESS = -2.0
"""Logit that a new network gives to every voxel: most are background."""


def main(arguments: list[str] | None = None) -> int:
    """Run a training from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="Training.finetune", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file; see Training/configs")
    known, overrides = parser.parse_known_args(arguments)
    try:
        train(read_config(known.config, overrides))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"Training.finetune: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config) -> None:
    """Train until `config.steps`, from the last checkpoint in `config.output` if there is one."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device(config.device)

    network = start_network(config).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step = resume(output / "last.pt", network, average, optimiser)
    examples = stream(config, seed=config.seed + step)
    rng = np.random.default_rng([config.seed, step])
    count = sum(p.numel() for p in network.parameters())
    print(
        f"{count / 1e6:.2f} M parameters; {config.views} views of {config.roi}³ "
        f"with up to {config.objects} objects each"
    )

    stop = Stop()
    saved_at, smooth = time.monotonic(), dict[str, float]()
    with tqdm(total=config.steps, initial=step, unit="step", smoothing=0.05) as bar:
        while step < config.steps and not stop.asked:
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            batch = [next(examples) for _ in range(config.views)]
            figures = train_step(network, batch, rng, config, device)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            update_average(average, network, min(config.ema, (1 + step) / (10 + step)))
            step += 1
            bar.update()
            for name, value in figures.items():
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            bar.set_postfix({k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
            if time.monotonic() - saved_at > config.save_every_s or step == config.steps or stop.asked:
                save(output / "last.pt", network, average, optimiser, step)
                export(output / "average.safetensors", average, config, step)
                with (output / "log.csv").open("a", encoding="utf-8") as log:
                    log.write(f"{step}," + ",".join(f"{k}={v:.4f}" for k, v in smooth.items()) + "\n")
                saved_at = time.monotonic()


def start_network(config: Config) -> Network:
    """The network to train: from `config.init`, or new."""
    if config.init:
        network = build_network(read_checkpoint(Path(config.init)).tensors).train().requires_grad_(True)
        if network.point_head.mixer is None:
            raise ValueError(
                f"{config.init} has no prompt mixer, which this trainer needs; start from compact weights"
            )
        return network
    if not config.mixer:
        raise ValueError("the setting `mixer` is empty; this trainer needs one, see Training/config.py")
    network = Network(
        Shape(config.init_filters, config.blocks_down, config.width, True, config.mixer, rater=True)
    ).train()
    if network.point_head.mixer is not None:
        last = network.point_head.mixer.to_logits
        last.reset_parameters()
        assert last.bias is not None
        torch.nn.init.constant_(last.bias, FIRST_GUESS)
    return network


def stream(config: Config, seed: int) -> Iterator[Example]:
    """Examples without end, made by other processes."""
    data = Path(config.data)
    if not (data / "train").is_dir():
        raise ValueError(
            f"expected a folder with train/ inside as `data`; got {data}; see Training/config.py"
        )
    examples = Examples(data, config.roi, config.objects, (config.real, config.maps, config.invented), seed)
    context = "spawn" if config.workers else None
    return iter(
        DataLoader(examples, batch_size=None, num_workers=config.workers, multiprocessing_context=context)
    )


def schedule(step: int, config: Config) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train_step(
    network: Network, batch: list[Example], rng: np.random.Generator, config: Config, device: torch.device
) -> dict[str, float]:
    """Gradients of one batch, clipped, left in the network; returns the figures to show.

    Raises:
        RuntimeError: when the loss is not finite.
    """
    images = torch.stack([e.image for e in batch]).unsqueeze(1).to(device)
    targets = torch.cat([e.targets for e in batch]).unsqueeze(1).to(device)
    owner = torch.cat([torch.full((len(e.targets),), n) for n, e in enumerate(batch)]).to(device)
    coarse_targets = F.avg_pool3d(targets.float(), 2)
    ledger = [first_clicks(rng, target[0]) for target in targets.cpu().numpy()]
    head = network.point_head
    assert head.mixer is not None
    dice_ce = DiceCELoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)

    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        low, image_low = network.encode(images)
        previous: Tensor | None = None
        for _ in range(int(rng.choice(len(config.more_clicks), p=config.more_clicks))):
            with torch.no_grad():
                prompts = to_prompts(ledger, previous, owner)
                coarse = head.mixer.coarse(low.detach(), image_low, prompts)
            if rng.random() > SECOND_LOOKS:
                place_on_errors(rng, ledger, targets, coarse)
            previous = F.interpolate(coarse.float(), scale_factor=2, mode="trilinear", align_corners=False)
        prompts = to_prompts(ledger, previous, owner)
        if rng.random() < config.head_share:
            logits, mixed = head.decode(low, image_low, prompts)
            assert mixed is not None
            coarse = mixed
            loss = dice_ce(logits.float(), targets.float()) + 0.5 * dice_ce(coarse.float(), coarse_targets)
        else:
            coarse = head.mixer.coarse(low, image_low, prompts)
            loss = dice_ce(coarse.float(), coarse_targets)
        rated = rate(head, low, owner, coarse, coarse_targets)
    total = loss + RATING_WEIGHT * rated
    if not torch.isfinite(total):
        raise RuntimeError(
            "the loss is not finite; lower the learning rate or turn bf16 off, "
            "then start again: the last checkpoint is still sound"
        )
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    overlap = hard_dice(coarse.detach() > 0, coarse_targets > 0.5).mean()
    return {"loss": loss.item(), "dice": float(overlap), "rating": rated.item(), "norm": float(norm)}


def rate(head: PointHead, low: Tensor, owner: Tensor, coarse: Tensor, coarse_targets: Tensor) -> Tensor:
    """The rater's loss: cross-entropy between the Dice that it expects of the masks and the true one.

    Args:
        head: the point head; without a rater the loss is 0.
        low: (B, C, d, h, w) embeddings.
        owner: (R,) the embedding of each mask.
        coarse: (R, 1, d, h, w) logits.
        coarse_targets: (R, 1, d, h, w) share of each voxel that is the object.
    """
    if head.rater is None:
        return coarse.new_zeros(())
    probability = torch.sigmoid(coarse.detach().float())
    rating = head.rater(low.detach()[owner], probability.to(low.dtype))
    truth = hard_dice(probability > 0.5, coarse_targets > 0.5)
    return F.binary_cross_entropy_with_logits(rating.float(), truth)


def first_clicks(rng: np.random.Generator, target: np.ndarray) -> clicks.Clicks:
    """The clicks an object starts with."""
    kind = FIRST_CLICKS[int(rng.choice(len(FIRST_CLICKS), p=[share for share, _ in FIRST_CLICKS]))][1]
    if kind == "centre":
        return clicks.on_error(rng, target, np.zeros_like(target))
    return clicks.edge_centre(rng, target) if kind == "edge_centre" else clicks.uniform(rng, target)


def place_on_errors(
    rng: np.random.Generator, ledger: list[clicks.Clicks], targets: Tensor, coarse: Tensor
) -> None:
    """Add to every object a click on its largest error, found at half resolution."""
    truths = targets[:, 0].cpu().numpy()
    halves = (F.avg_pool3d(targets.float(), 2)[:, 0] > 0.5).cpu().numpy()
    masks = (coarse[:, 0] > 0).cpu().numpy()
    for row, truth, half, mask in zip(ledger, truths, halves, masks, strict=True):
        for at, _ in clicks.on_error(rng, half, mask):
            k, j, i = (2 * x + int(rng.integers(2)) for x in at)
            row.append(((k, j, i), int(truth[k, j, i])))


def to_prompts(ledger: list[clicks.Clicks], previous: Tensor | None, owner: Tensor) -> Prompts:
    """The clicks of all objects as tensors, padded to the longest list."""
    longest = max(len(row) for row in ledger)
    coords = torch.zeros(len(ledger), longest, 3, dtype=torch.long)
    labels = torch.full((len(ledger), longest), -1, dtype=torch.long)
    for r, row in enumerate(ledger):
        for n, (at, label) in enumerate(row):
            coords[r, n], labels[r, n] = torch.tensor(at), label
    return Prompts(coords.to(owner.device), labels.to(owner.device), previous, owner)


def hard_dice(mask: Tensor, truth: Tensor) -> Tensor:
    """(R,) Dice of (R, 1, d, h, w) masks."""
    both, either = (mask & truth).flatten(1).sum(1), mask.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return 2 * both / either.clamp(min=1)


@torch.no_grad()
def update_average(average: Network, network: Network, decay: float) -> None:
    """Move the running average of the weights towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def save(path: Path, network: Network, average: Network, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint that `resume` goes on from."""
    state = {
        "model": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def resume(path: Path, network: Network, average: Network, optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; returns the steps already done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged or of another network; move it away to start anew ({error})"
        ) from None


def export(path: Path, average: Network, config: Config, step: int) -> None:
    """Write the averaged weights as the library loads them."""
    metadata = {
        "roi": str(config.roi),
        "intensity": "view",
        "steps": str(step),
        "source": "GSMedSeg Training.finetune",
    }
    write_safetensors(path, average.state_dict(), metadata, dtype="fp16")


class Stop:
    """Turns SIGTERM and Ctrl-C into a wish to stop after the current step."""

    def __init__(self) -> None:
        self.asked = False
        for name in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


if __name__ == "__main__":
    raise SystemExit(main())
