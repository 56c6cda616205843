"""Train the network: `python -m Training.finetune CONFIG.toml [--key value …]`, or with torchrun.

The story: cases and invented scenes are drawn, views of them are learnt from, the challenge's protocol says
how good the weights have become, the best are kept. Stopped at any time, the same command goes on from the
last checkpoint, step for step as if it had never stopped.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_source import SMALLEST_OBJECT
from GSMedSegLib.engine import find_device, find_precision
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.sharding import Ranks, join_ranks, own_device
from Training import checkpoints, optimiser
from Training.cases import Data, find_data, look_at, window_of, without_broken
from Training.checkpoints import AVERAGE, BEST, LAST, WEIGHTS, State
from Training.config import Config, as_table, read_config
from Training.examples import Draws, Example, Share, make_pools, stream
from Training.learning import learn, plan_step
from Training.model_card import write_model_card
from Training.progress import Progress, check_tools
from Training.seen import patient_of, seen_among, trace_of
from Training.start import start_network
from Training.validation import draw_curves, table, validate
from Training.volumes import MIN_VOXELS

ONE_WISH_S = 1.0
"""Signals within so many seconds are one wish to stop: torchrun passes on what the terminal sent already."""

LEAST_SCALE = 2.0**-10
"""In fp16 a smaller scale of the loss says that every step overflows; it begins at 2^16."""


def main(arguments: list[str] | None = None) -> int:
    """Run a training from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="Training.finetune",
        description="Train on labelled cases; run again after a break, it goes on.",
        epilog="Any setting can be given as --key value; Training/config.py describes them.",
    )
    parser.add_argument("config", type=Path, help="TOML file; see Training/configs")
    parser.add_argument(
        "--check", action="store_true", help="look at every case, list the broken ones, and end"
    )
    known, overrides = parser.parse_known_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        config = read_config(known.config, overrides)
        if known.check:
            return check(config)
        with join_ranks(config.device) as ranks:
            train(config, ranks)
    except torch.cuda.OutOfMemoryError as error:
        less = "lower views_at_once or objects_at_once, or set checkpoint_gradients"
        print(f"Training.finetune: error: the GPU's memory is full; {less} ({error})", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"Training.finetune: error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"Training.finetune: error: not enough memory ({error}); lower cache_gb", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        what_next = "the same command goes on from the last checkpoint"
        print(f"Training.finetune: broken off; {what_next}", file=sys.stderr)
        return 130
    return 0


def check(config: Config) -> int:
    """Look at every case; returns 1 when some are broken."""
    data = find_data(config)
    findings = look_at(data, Path(config.output))
    broken = [finding for finding in findings if finding.problem]
    empty = [finding.name for finding in findings if not finding.problem and not finding.labels]
    for finding in broken:
        print(f"{finding.name}: {finding.problem}")
    if empty:
        least = f"{MIN_VOXELS} voxels in one piece"
        if config.validation.limit_objects:
            least += f", or {SMALLEST_OBJECT} in all to validate with (limit_objects 0 takes smaller ones)"
        print(f"no label has {least}, in {', '.join(empty)}; they will not be used")
    print(f"{len(findings)} cases, {len(broken)} broken, {len(empty)} without labels")
    return 1 if broken else 0


def train(config: Config, ranks: Ranks | None = None) -> None:
    """Train until the last step, from the last checkpoint in `config.output` if there is one.

    Args:
        config: of the run.
        ranks: the processes that train together; this one alone by default.

    Raises:
        ValueError: data or weights that cannot be trained on.
        OSError: the last checkpoint or the weights cannot be written.
        RuntimeError: a loss that is not finite, naming the case; or another process was lost.
    """
    ranks = ranks or Ranks()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        checkpoints.clear(output)
    device = find_device(own_device(config.device))
    find_precision(config.optimisation.precision, device)  # before the cases are read
    check_tools()

    data = without_broken(find_data(config, ranks), config, ranks)
    network, metadata, config = start_network(config)
    settings = config.optimisation
    network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser.freeze(network, settings.freeze)
    state = State(
        network,
        copy.deepcopy(network).requires_grad_(False),
        optimiser.make_optimiser(network, settings),
        torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16"),
    )
    changed = resume(state, config, ranks)
    steps_per_epoch = settings.steps_per_epoch or max(1, math.ceil(data.count / config.sampling.cases))
    steps = settings.epochs * steps_per_epoch
    check_run(state, data, steps, changed, config)
    state.before = data.before
    if ranks.first:  # who writes the checkpoints
        trained = (trace_of(case, _pattern(config)) for _, cases in data.training for case in cases)
        state.seen = state.seen.union(trained, data.before)
    if settings.checkpoint_gradients:
        optimiser.checkpoint_encoder(network)
    if settings.compile:
        optimiser.compile_encoder(network, config.sampling.roi, device)
    by_view = config.sampling.intensity == "view"
    pools = make_pools(data.training, Path(config.root), _worker_bytes(config), clip=not by_view)
    share = Share(state.step, steps, config.sampling.cases, ranks.rank, ranks.size)
    draws = stream(Draws(pools, config.sampling, by_view, config.seed), share, config.workers)
    metadata = describe(config, metadata)
    if ranks.first:
        print(introduce(config, state, data, steps, ranks), file=sys.stderr)

    saved_at = time.monotonic()
    with Stop(ranks.first) as stop, Progress(output, steps, state.step, ranks.first) as progress:
        if data.validation and validation_is_due(state, steps, steps_per_epoch, config):
            first = not state.curves
            measure(state, data, config, metadata, device, ranks, progress)
            if not first:  # it was broken off after the last checkpoint
                keep_best(state, output, metadata, ranks, progress)
                if ranks.first:
                    save(state, output, config, metadata, progress, must=False)
        stopped = False
        while state.step < steps and not stopped:
            try:
                views = [view for _ in share.slots for view in next(draws)]
            except (RuntimeError, MemoryError):
                if ranks.first and state.step:
                    save(state, output, config, metadata, progress, must=False)
                raise
            figures, images, shown, stopped = take_step(
                state, views, config, steps, steps_per_epoch, device, ranks, stop
            )
            progress.step(state.step, figures, images, shown)
            last = state.step == steps
            due = last or stopped or time.monotonic() - saved_at > config.save_every_s
            if data.validation and validation_is_due(state, steps, steps_per_epoch, config):
                if ranks.first:  # who is asked to stop meanwhile may not have the time for it later
                    save(state, output, config, metadata, progress, must=False)
                measure(state, data, config, metadata, device, ranks, progress)
                keep_best(state, output, metadata, ranks, progress)
                due = True
            if ranks.first and due:
                save(state, output, config, metadata, progress, must=last or stopped)
                saved_at = time.monotonic()
    if state.step == steps:
        conclude(state, data, config, metadata, device, ranks)
    elif ranks.first:
        print(f"stopped after step {state.step} of {steps}; the same command goes on", file=sys.stderr)


def check_run(state: State, data: Data, steps: int, changed: Sequence[str], config: Config) -> None:
    """Raises when a run cannot go on to these steps with these cases.

    Args:
        state: as the last checkpoint has it.
        data: the cases now.
        steps: the last one.
        changed: the settings that differ from the checkpoint's, as `changed_settings` has them.
        config: of the run.

    Raises:
        ValueError: it is at its end with other data, beyond it, started from other weights, was validated
            in another way, or was trained on patients that are to validate it.
    """
    origin = [line for line in changed if line.startswith("init: ")]
    if state.step and origin:
        raise ValueError(
            f"the run in {config.output} started from other weights ({origin[0][:200]}); leave init as it "
            "was, or give another output"
        )
    other = [line for line in changed if line.startswith("data: ")]
    if state.step > steps or (state.step == steps and other):
        why = (
            f" with other data ({other[0][:200]})"
            if other
            else f", beyond the {steps} steps of these settings"
        )
        raise ValueError(
            f"the run in {config.output} is after step {state.step}{why}; give more epochs, or another output"
        )
    validated = {name for curve in state.curves.values() for name in curve["cases"]}
    played = [
        line for line in changed if line.startswith(("validation.strategy: ", "validation.limit_objects: "))
    ]
    if validated and data.validation and (played or validated != {case.name for case in data.validation}):
        raise ValueError(
            f"the run in {config.output} was validated "
            + (f"in another way ({played[0]})" if played else f"with other cases ({len(validated)} of them)")
            + "; scores could not be compared: leave validation as it was, or give another output"
        )
    pattern = _pattern(config)
    leaked = {patient_of(case, pattern) for case in seen_among(data.validation, pattern, state.seen)}
    if leaked:
        raise ValueError(
            f"the run in {config.output} was trained on patients that are to validate it now: "
            f"{', '.join(sorted(leaked)[:5])}; leave data, seed and share as they were, or give another "
            "output"
        )


def _pattern(config: Config) -> str:
    """That finds patients in the names of cases; cases to validate with that are given apart have no need."""
    return "" if config.validation.path else config.validation.patient


def validation_is_due(state: State, steps: int, steps_per_epoch: int, config: Config) -> bool:
    """Whether a validation of the weights as they are is wanted, and was not made yet."""
    epoch, rest = divmod(state.step, steps_per_epoch)
    wanted = state.step == steps or (rest == 0 and epoch % config.validation.every == 0)
    return not state.curves or (wanted and state.step not in state.curves)


def take_step(
    state: State,
    views: list[Example],
    config: Config,
    steps: int,
    steps_per_epoch: int,
    device: torch.device,
    ranks: Ranks,
    stop: Stop,
) -> tuple[dict[str, float], int, Any, bool]:
    """Learn from this process's views, together with the others.

    Returns:
        the figures to show, how many views had objects, one object to show, and whether any process was asked
        to stop.

    Raises:
        RuntimeError: a loss or a gradient that is not finite.
    """
    settings, network = config.optimisation, state.network
    rate = optimiser.set_rate(state.optimiser, settings, state.step, steps)
    plan = plan_step(config, state.step, state.step // steps_per_epoch)
    state.scaler.scale(torch.ones((), device=device))  # it says its scale only after a first use
    tally = learn(network, views, plan, config, device, state.scaler.get_scale())
    sums = optimiser.reduce_sums(
        [tally.objects, tally.loss, tally.dice, tally.rating, tally.views, len(tally.broken), stop.asked],
        ranks,
    )
    objects, loss, dice, rating, images, broken, stops = sums
    if broken:
        names = ", ".join(dict.fromkeys(tally.broken)) or "a case of another process"
        raise RuntimeError(
            f"the loss of {names} is not finite at step {state.step + 1}; look at the case, or lower the "
            "learning rate, then start again: the last checkpoint is still sound"
        )
    norm = 0.0
    if objects:
        optimiser.reduce_gradients(network, ranks, objects)
        state.scaler.unscale_(state.optimiser)
        norm = optimiser.clipped_norm(network, settings.clip_norm)
        if not (math.isfinite(norm) or state.scaler.is_enabled()):
            names = ", ".join(dict.fromkeys(view.name for view in views))
            raise RuntimeError(
                f"the gradient at step {state.step + 1} is not finite (views of {names}); lower the learning "
                "rate, then start again: the last checkpoint is still sound"
            )
        state.scaler.step(state.optimiser)  # not after an overflow in fp16
        state.scaler.update()
        if state.scaler.is_enabled() and state.scaler.get_scale() < LEAST_SCALE:
            raise RuntimeError(
                f"the gradients overflow in fp16 in one step after the other, up to step {state.step + 1}; "
                "use bf16 or fp32, or lower the learning rate, then start again: the last checkpoint is sound"
            )
        state.optimiser.zero_grad(set_to_none=True)
        optimiser.update_average(state.average, network, optimiser.average_decay(settings.ema, state.step))
    state.step += 1
    count = max(1.0, objects)
    figures = {"loss": loss / count, "dice": dice / count, "norm": norm, "rate": rate}
    if network.point_head.rater is not None:
        figures["rating"] = rating / count
    return figures, int(images), tally.shown, bool(stops)


def introduce(config: Config, state: State, data: Data, steps: int, ranks: Ranks) -> str:
    """What the run is, in a few lines."""
    trained = sum(p.numel() for p in state.network.parameters() if p.requires_grad)
    count = sum(p.numel() for p in state.network.parameters())
    sampling = config.sampling
    idle = max(0, ranks.size - sampling.cases)
    parts = [
        f"{count / 1e6:.2f} M weights, {trained / 1e6:.2f} M of them trained",
        f"{data.count} training and {len(data.validation)} validation cases",
        f"{steps} steps of {sampling.cases} × {sampling.views} views of {sampling.roi}³ with up to "
        f"{sampling.objects} objects",
    ]
    cases = [*(case for _, several in data.training for case in several), *data.validation]
    split = data.validation and not config.validation.path
    if split and len({patient_of(case, _pattern(config)) for case in cases}) == len(cases):
        parts[1] += ", each taken for a patient of its own (--patient finds whose they are)"
    if data.left_out:
        parts.append(f"{data.left_out} patients do not validate, for the weights of {config.init} know them")
    if idle:
        parts.append(f"{idle} of {ranks.size} processes have nothing to do: set cases to {ranks.size}")
    if state.step:
        parts.append(f"going on after step {state.step}")
    return "; ".join(parts)


def resume(state: State, config: Config, ranks: Ranks) -> list[str]:
    """Load the last checkpoint, and say which settings differ from those that it was made with.

    Returns:
        what was said.

    Raises:
        ValueError: it is damaged, of another network or optimiser, or not the same for all processes.
    """
    path = Path(config.output) / LAST
    before = checkpoints.resume(path, state)
    if ranks.agree(state.step) != state.step:
        raise ValueError(
            f"{path} is not the same for all processes; let `output` be a folder that all machines share"
        )
    changed = [] if before is None else checkpoints.changed_settings(before, as_table(config))
    if ranks.first:
        for line in changed:
            print(f"changed since the last checkpoint: {line}", file=sys.stderr)
    return changed


def describe(config: Config, metadata: dict[str, str]) -> dict[str, str]:
    """What the exported weights say about themselves."""
    described = {**metadata, "roi": str(config.sampling.roi), "intensity": config.sampling.intensity}
    if any(stage.get("box") for stage in config.sampling.stages):
        described["box"] = "map"
    described.pop("window", None)
    if window := window_of(config):
        described["window"] = f"{window[0]:g} {window[1]:g}"
    origin = metadata.get("origin") or metadata.get("init") or Path(config.init).name  # runs before this one
    return {
        **described,
        "init": Path(config.init).name,
        "origin": origin,
        "source": "GSMedSeg Training.finetune",
    }


def measure(
    state: State,
    data: Data,
    config: Config,
    metadata: dict[str, str],
    device: torch.device,
    ranks: Ranks,
    progress: Progress,
) -> None:
    """Validate the averaged weights; the first time with surfaces, for the table at the end."""
    state.curves[state.step] = validate(
        state.average, data.validation, config, metadata, str(device), ranks, surfaces=not state.curves
    )
    progress.curve(state.step, state.curves[state.step])


def keep_best(state: State, output: Path, metadata: dict[str, str], ranks: Ranks, progress: Progress) -> None:
    """Export the averaged weights if no earlier ones of this run were better; a failure is told."""
    now = state.curves[state.step]["dsc_auc"]
    if state.best_step is not None and now <= state.curves[state.best_step]["dsc_auc"]:
        return
    written = False
    if ranks.first:
        try:
            checkpoints.export(output / BEST, state.average, {**metadata, "steps": str(state.step)})
            written = True
        except OSError as error:
            progress.say(f"the best weights so far are not kept: {error}")
    if ranks.agree(written):
        state.best_step = state.step


def save(
    state: State, output: Path, config: Config, metadata: dict[str, str], progress: Progress, must: bool
) -> None:
    """Write checkpoint and averaged weights; a failure on the way is told, and tried again later.

    Raises:
        OSError: they cannot be written, and `must` be.
    """
    try:
        checkpoints.save(output / LAST, state, as_table(config))
        checkpoints.export(output / AVERAGE, state.average, {**metadata, "steps": str(state.step)})
    except OSError as error:
        if must:
            raise
        progress.say(f"not saved, the run goes on and tries again: {error}")


def conclude(
    state: State, data: Data, config: Config, metadata: dict[str, str], device: torch.device, ranks: Ranks
) -> None:
    """Write the weights to use with their model card, and what the training brought."""
    output = Path(config.output)
    if ranks.agree(_newer(output / WEIGHTS, output / LAST)):
        if ranks.first:
            print(f"at its end already, weights: {output / WEIGHTS}; more epochs would go on from there")
        return
    network, step = state.average, state.step
    if state.best_step is not None and state.best_step != state.step:
        step = state.best_step
        best, _, _ = start_network(dataclasses.replace(config, init=str(output / BEST)))
        network = best.to(device)
    measured = None
    if data.validation:
        after = validate(network, data.validation, config, metadata, str(device), ranks, surfaces=True)
        measured = (state.curves[min(state.curves)], after)
    if not ranks.first:
        return
    write_model_card(
        output / "MODEL_CARD.md", config, metadata["origin"], step, data.training, data.validation, measured
    )
    summary: dict[str, Any] = {"steps": state.step, "best_step": step}
    if measured:
        before, after = measured
        draw_curves(output / "clicks.png", before, after)
        summary |= {
            "before": before["dsc_auc"],
            "after": after["dsc_auc"],
            "curves": {"before": before, "after": after},
        }
        print(table(before, after))
        if after["dsc_auc"] <= before["dsc_auc"]:
            print("these cases did not become better: the weights that it started from are as good or better")
    with atomic_path(output / "summary.json") as temporary:
        Path(temporary).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    checkpoints.export(
        output / WEIGHTS, network, {**metadata, "steps": str(step)}
    )  # last: the sign of the end
    print(f"weights: {output / WEIGHTS}")


def _newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _worker_bytes(config: Config) -> int:
    return int(config.cache_gb * 2**30) // max(1, config.workers)


class Stop:
    """Turns SIGTERM and Ctrl-C into a wish to stop after the current step; afterwards they are as before.

    A second Ctrl-C breaks off at once what takes long, such as a validation.

    Args:
        tells: say so.
    """

    def __init__(self, tells: bool = False) -> None:
        self.asked = False
        self._tells = tells
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for name in (signal.SIGTERM, signal.SIGINT):
            self._before[name] = signal.signal(name, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self._asked_at > ONE_WISH_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._asked_at = True, now
            if self._tells:  # not by print: the signal may have come in the middle of one
                os.write(2, b"\nstopping after this step; Ctrl-C again breaks off at once\n")


if __name__ == "__main__":
    raise SystemExit(main())
