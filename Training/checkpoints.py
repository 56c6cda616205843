"""What a run leaves behind: the state to go on from, and weights to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.checkpoint import write_safetensors
from GSMedSegLib.network import Network
from Training.seen import Trace

LAST = "last.pt"
BEST = "best.safetensors"
AVERAGE = "average.safetensors"
WEIGHTS = "weights.safetensors"

Curve = dict[str, Any]
"""A validation as plain values, see `validation.validate`."""


@dataclass
class State:
    """All that a run is, beside its settings. Examples and chance follow from the step.

    Attributes:
        network, average: the weights, and their running average.
        optimiser: with what it remembers of earlier steps.
        scaler: of the loss, in fp16.
        step: steps done.
        curves: validations so far, by the step after which they were made.
        best_step: after which the best of them was.
        seen: what it was trained on, and the weights that it started from were.
        before: what those were trained on.
    """

    network: Network
    average: Network
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    curves: dict[int, Curve] = field(default_factory=dict)
    best_step: int | None = None
    seen: frozenset[Trace] = frozenset()
    before: frozenset[Trace] = frozenset()


def save(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Write a checkpoint that `resume` goes on from, whole or not at all.

    Raises:
        OSError: it cannot be written; an older one is still there.
    """
    stored = {
        "model": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": {"kind": type(state.optimiser).__name__, "remembered": _remembered(state)},
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "curves": state.curves,
        "best_step": state.best_step,
        "trained_on": [tuple(trace) for trace in sorted(state.seen)],
        "before": [tuple(trace) for trace in sorted(state.before)],
        "settings": dict(settings),
    }
    try:
        with atomic_path(path) as temporary:
            torch.save(stored, temporary)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def clear(folder: Path) -> None:
    """Delete what a run that was killed had begun to write there."""
    for name in (LAST, AVERAGE, BEST, WEIGHTS):
        for begun in folder.glob(f".{'[0-9a-f]' * 8}-{name}"):
            begun.unlink()


def resume(path: Path, state: State) -> Mapping[str, Any] | None:
    """Load a checkpoint into a state if there is one.

    What is trained, and how fast, is as it is set now.

    Returns:
        the settings it was made with; None where there is no checkpoint.

    Raises:
        ValueError: it is damaged, or of another network or optimiser.
    """
    if not path.exists():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state.network.load_state_dict(stored["model"])
        state.average.load_state_dict(stored["average"])
        _remember(state, **stored["optimiser"])
        if stored["scaler"]:  # it was not empty: made in fp16
            state.scaler.load_state_dict(stored["scaler"])
        state.step = int(stored["step"])
        state.curves, state.best_step = dict(stored["curves"]), stored["best_step"]
        state.seen, state.before = _traces(stored, "trained_on"), _traces(stored, "before")
        settings: dict[str, Any] = stored["settings"]
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is damaged, or of another network or optimiser; move it away to start anew ({reason})"
        ) from None
    return settings


def seen_before(output: str, init: str) -> frozenset[Trace]:
    """What the weights that a run starts from were trained on.

    Args:
        output: of the run; once it has a checkpoint, that says it, whatever became of the earlier run.
        init: the weights. Of those with no checkpoint beside them nothing is known.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    own = Path(output) / LAST
    path, entry = (own, "before") if own.is_file() else (Path(init).parent / LAST, "trained_on")
    if not own.is_file() and not (Path(init).is_file() and path.is_file()):
        return frozenset()
    try:
        return _traces(torch.load(path, map_location="cpu", weights_only=True, mmap=True), entry)
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        what = "" if path == own else f", which should say what {init} were trained on,"
        raise ValueError(f"{path}{what} is damaged, or of another program; move it away ({reason})") from None


def _traces(stored: object, entry: str) -> frozenset[Trace]:
    """What an entry of a checkpoint remembers; nothing where it was made before there was such an entry.

    Raises:
        ValueError: it is no checkpoint of ours.
    """
    if not isinstance(stored, dict) or "model" not in stored:
        raise ValueError("no weights are in it")
    return frozenset(Trace(*trace) for trace in stored.get(entry, ()))


def _remembered(state: State) -> dict[str, Any]:
    """What the optimiser remembers, by the names of the weights: its groups may be others the next time."""
    return {
        n: state.optimiser.state[p] for n, p in state.network.named_parameters() if p in state.optimiser.state
    }


def _remember(state: State, kind: str, remembered: Mapping[str, Any]) -> None:
    if kind != (now := type(state.optimiser).__name__):
        raise ValueError(f"it was made by {kind}, not by {now}")
    names = {parameter: name for name, parameter in state.network.named_parameters()}
    order = [names[p] for group in state.optimiser.param_groups for p in group["params"]]
    known = {n: remembered[name] for n, name in enumerate(order) if name in remembered}
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": known})


def export(path: Path, network: Network, metadata: Mapping[str, str]) -> None:
    """Write weights as the library loads them, in fp16.

    Raises:
        OSError: they cannot be written; older ones are still there.
    """
    write_safetensors(path, network.state_dict(), metadata, dtype="fp16")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two tables of settings, as "name: before → now"."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changed_settings(old, new, f"{where}{key}.")
        elif old != new:
            found.append(f"{where}{key}: {old} → {new}")
    return found
