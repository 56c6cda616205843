"""Our training step beside the seed's, written with MONAI alone: `python -m Testing.benchmarks.training`.

The same compact network (VISTA3D's own parts, none of ours), one patch of 96³ with four objects, the same
clicks, DiceCE, AdamW. The two take turns in one process, and the ratio is of the faster of each one's turns.
The losses are compared in fp32. Writes `build/bench/training.json`. `--memory` measures a `vista3d132` step
at 128³ instead, with and without gradient checkpointing, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROI = 96
OBJECTS = 4
WIDTH, FILTERS, BLOCKS = 32, 16, (1, 1, 2, 2)


def patch(roi: int = ROI, objects: int = OBJECTS) -> Any:
    """A fixed random patch with balls to click."""
    from Training.examples import Example

    rng = np.random.default_rng(0)
    grid = np.indices((roi,) * 3)
    balls = []
    for _ in range(objects):
        center, radius = rng.uniform(0.25, 0.75, 3) * roi, rng.uniform(0.08, 0.2) * roi
        balls.append(((grid - center[:, None, None, None]) ** 2).sum(0) < radius**2)
    image = rng.random((roi,) * 3, dtype=np.float32) + 0.5 * np.any(balls, axis=0)
    labels = tuple(range(1, objects + 1))
    return Example(
        torch.from_numpy(image.astype(np.float32)), torch.from_numpy(np.stack(balls)), labels, "balls"
    )


def settings(precision: str, **optimisation: Any) -> Any:
    """One patch a step, uniform clicks, no further ones: what the seed does in one of its stages."""
    from Training.config import Config, Optimisation, Sampling

    return Config(
        additions=False,
        sampling=Sampling(stages=({"uniform": 1.0},), adaptive_hints=False, more_clicks=(1.0,), roi=ROI),
        optimisation=Optimisation(precision=precision, clip_norm=0.0, **optimisation),
    )


class Seed:
    """The seed's step: MONAI's VISTA3D, DiceCELoss over the prompts, AdamW with its rates."""

    def __init__(self) -> None:
        from monai.losses import DiceCELoss
        from monai.networks.nets.segresnet_ds import SegResNetDS2
        from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, PointMappingSAM

        torch.manual_seed(0)
        encoder = SegResNetDS2(
            in_channels=1,
            blocks_down=BLOCKS,
            norm="instance",
            out_channels=WIDTH,
            init_filters=FILTERS,
            dsdepth=1,
        )
        self.network = VISTA3D(
            image_encoder=encoder,
            class_head=ClassMappingClassify(n_classes=512, feature_size=WIDTH, use_mlp=True),
            point_head=PointMappingSAM(feature_size=WIDTH, n_classes=512, last_supported=132),
        ).train()
        self.loss = DiceCELoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=2e-5, weight_decay=1e-5)

    def step(self, example: Any, coords: torch.Tensor, labels: torch.Tensor) -> float:
        self.optimiser.zero_grad()
        logits = self.network(example.image[None, None], point_coords=coords, point_labels=labels)
        targets = example.targets[:, None].float()
        loss = sum(self.loss(logits[[n]], targets[[n]]) for n in range(len(targets))) / len(targets)
        loss.backward()
        self.optimiser.step()
        return float(loss)


class Ours:
    """Our step with the same weights."""

    def __init__(self, weights: dict[str, torch.Tensor], precision: str) -> None:
        from GSMedSegLib.network import build_network
        from Training.checkpoints import State
        from Training.optimiser import make_optimiser

        self.config = settings(precision, learning_rate=2e-5, weight_decay=1e-5, ema=0.0, warmup_steps=0)
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        network = build_network(weights).train().requires_grad_(True)
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimiser = make_optimiser(network, self.config.optimisation)
        self.state = State(network, network, optimiser, torch.amp.GradScaler("cpu", enabled=False))

    def step(self, example: Any) -> float:
        from GSMedSegLib.sharding import Ranks
        from Training.finetune import Stop, take_step

        figures, *_ = take_step(
            self.state, [example], self.config, 1000, 1000, torch.device("cpu"), Ranks(), Stop()
        )
        return figures["loss"]


def prompts(example: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The clicks that our step will draw, as MONAI takes them."""
    from Training.learning import first_prompts, to_prompts

    asked = first_prompts(example, {"uniform": 1.0}, settings("fp32").sampling)
    made = to_prompts(asked, None, torch.zeros(len(asked), dtype=torch.long))
    return made.coords.float(), made.labels.float()


def best_of(turns: int, *sides: Callable[[], Any]) -> list[float]:
    """The shortest time of each side, in seconds; they take turns."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(turns):
        for side, found in zip(sides, times, strict=True):
            began = time.perf_counter()
            side()
            found.append(time.perf_counter() - began)
    return [min(found) for found in times]


def compare(turns: int) -> dict[str, float]:
    """Both steps side by side."""
    example = patch()
    coords, labels = prompts(example)
    seed = Seed()
    weights = {name: tensor.clone() for name, tensor in seed.network.state_dict().items()}
    theirs = [seed.step(example, coords, labels) for _ in range(3)]
    exact = Ours(weights, "fp32")
    mine = [exact.step(example) for _ in range(3)]
    fast = Ours(weights, "auto")
    sides: tuple[Callable[[], float], ...] = (
        lambda: seed.step(example, coords, labels),
        lambda: exact.step(example),
        lambda: fast.step(example),
    )
    for side in sides:
        side()
    seed_s, fp32_s, ours_s = best_of(turns, *sides)
    return {
        "step": seed_s / ours_s,
        "step_fp32": seed_s / fp32_s,
        "loss_diff": abs(theirs[0] - mine[0]),
        "loss_diff_after_two_steps": abs(theirs[2] - mine[2]),
        "seed_s": seed_s,
        "ours_s": ours_s,
        "ours_fp32_s": fp32_s,
    }


def peak_of_step(checkpointed: bool, answers: Any) -> None:
    """The peak memory of a process that takes two `vista3d132` steps at 128³, in GiB."""
    from monai.networks.nets.vista3d import vista3d132

    from Training.optimiser import checkpoint_encoder
    from Training.progress import memory_gib

    torch.manual_seed(0)
    ours = Ours(vista3d132().state_dict(), "auto")
    if checkpointed:
        checkpoint_encoder(ours.state.network)
    example = patch(128, 1)
    began = time.perf_counter()
    for _ in range(2):
        ours.step(example)
    answers.put((memory_gib(), (time.perf_counter() - began) / 2))


def memory() -> dict[str, float]:
    """Peak memory of a step of the large network."""
    context = multiprocessing.get_context("spawn")
    figures = {}
    for name, checkpointed in (("checkpointed", True), ("plain", False)):
        answers = context.Queue()
        process = context.Process(target=peak_of_step, args=(checkpointed, answers))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{name}: the process ended with code {process.exitcode}; there may be too little memory")
            continue
        figures[f"{name}_gib"], figures[f"{name}_s"] = answers.get()
    return figures


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    figures = memory() if options.memory else compare(options.turns)
    target = Path("build/bench") / ("training-memory.json" if options.memory else "training.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
