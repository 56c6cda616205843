"""What a run shows while it goes: a bar, and TensorBoard's events."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from Training.learning import Shown

FIGURE_EVERY = 50
"""Steps from one picture to the next. Source: GS_MedSegFM's trainer."""

SMOOTHING = 0.98
"""Of the figures in the bar."""


def check_tools() -> None:
    """Find out whether what shows a run is installed, before hours of training.

    Raises:
        ValueError: something is missing.
    """
    for package in ("tensorboard", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"training needs {package} to show its curves; pip install 'gsmedseg[train]'")


class Progress:
    """The bar and the events of a run; only the first process shows anything.

    Args:
        output: the events go to `events` in it.
        steps, done: of the run, and those done before.
        shows: whether this process does.
    """

    def __init__(self, output: Path, steps: int, done: int, shows: bool) -> None:
        self._bar = tqdm(
            total=steps, initial=done, unit="step", smoothing=0.05, disable=not shows, file=sys.stderr
        )
        self._writer: Any = None
        if shows:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "events"), purge_step=done + 1)
        self._smooth: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with self._writing():
                self._writer.close()
        self._bar.close()

    def step(self, step: int, figures: Mapping[str, float], images: int, shown: Shown | None) -> None:
        """Tell of a step.

        Args:
            step: its number, from 1.
            figures: loss, dice, …
            images: views that it saw, in all processes.
            shown: one of its objects.
        """
        for name, value in figures.items():
            old = self._smooth.get(name, value)
            self._smooth[name] = SMOOTHING * old + (1 - SMOOTHING) * value
        rate = self._bar.format_dict["rate"] or 0.0
        told = {name: f"{value:.3g}" for name, value in self._smooth.items()}
        self._bar.set_postfix(
            {**told, "images/s": f"{rate * images:.1f}", "GiB": f"{memory_gib():.1f}"}, refresh=False
        )
        self._bar.update()
        if self._writer is None:
            return
        with self._writing():
            for name, value in figures.items():
                self._writer.add_scalar(f"train/{name}", value, step)
            if shown is not None and (step == 1 or step % FIGURE_EVERY == 0):
                self._writer.add_image("train/first point", figure(shown), step, dataformats="HWC")

    def curve(self, step: int, curve: Mapping[str, Any]) -> None:
        """Tell of a validation."""
        self.say(
            f"step {step}: DSC_AUC {curve['dsc_auc']:.3f}, Dice "
            + " ".join(f"{value:.3f}" for value in curve["dice"])
        )
        for name, reason in curve["failed"].items():
            self.say(f"validation case {name} failed: {reason}")
        if self._writer is None:
            return
        with self._writing():
            self._writer.add_scalar("validation/DSC_AUC", curve["dsc_auc"], step)
            for click, value in enumerate(curve["dice"], start=1):
                self._writer.add_scalar(f"validation/Dice after click {click}", value, step)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Where events cannot be written, as on a full disk, the run does without them."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self.say(f"TensorBoard's events end here, the run goes on: {error}")


def figure(shown: Shown) -> NDArray[np.uint8]:
    """The slice through an object's first click: image, truth and answer, side by side, (S, 3 S, 3) uint8."""
    k = shown.click_kji[0]
    low, high = np.percentile(shown.image, (1, 99))
    image = np.clip((shown.image[k] - low) / max(high - low, 1e-6), 0, 1)
    panels = np.concatenate([image, shown.target[k], shown.probability[k]], axis=1)
    rgb = np.repeat((255 * panels).astype(np.uint8)[..., None], 3, axis=2)
    rgb[shown.click_kji[1], shown.click_kji[2]] = (255, 60, 60)
    return rgb


def memory_gib() -> float:
    """The most memory used so far, of the GPU where there is one, else of the process; 0 where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
