"""The settings of a training run: a TOML file, single values overridden on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Config:
    """What a run is made of; the defaults are those of the bundled compact weights.

    Attributes:
        data: folder with `train/` and `train/labelmaps/`.
        output: folder for checkpoints, log and exported weights.
        init: a checkpoint to start from; empty for random weights.
        init_filters, blocks_down, width, mixer: the network's shape (`GSMedSegLib.network.Shape`).
        roi: voxels per side of a view.
        views: views per step.
        objects: at most this many objects per view.
        real, maps, invented: shares of the three sources of examples.
        steps: optimiser steps of the whole run.
        learning_rate, weight_decay, warmup_steps, clip_norm: AdamW with warm-up and cosine decay.
        ema: decay of the running average of the weights, which is what gets exported.
        head_share: share of the steps that train the full-resolution head; the others stop at the mixer's
            coarse logits.
        more_clicks: probabilities of 0, 1, 2… further clicks on the current error.
        bf16: autocast to bfloat16; wanted on processors that have it.
        device: cpu or cuda.
        workers: processes that make examples.
        threads: of torch on the CPU; 0 for torch's own choice.
        save_every_s: seconds between checkpoints.
        seed: of weights, examples and clicks.
    """

    data: str = "../shared/data"
    output: str = "build/training"
    init: str = ""
    init_filters: int = 16
    blocks_down: tuple[int, ...] = (1, 1, 2, 2)
    width: int = 32
    mixer: tuple[int, ...] = (32, 64, 96, 128)
    roi: int = 48
    views: int = 2
    objects: int = 3
    real: float = 0.4
    maps: float = 0.3
    invented: float = 0.3
    steps: int = 5000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema: float = 0.998
    head_share: float = 0.35
    more_clicks: tuple[float, ...] = (0.4, 0.2, 0.2, 0.1, 0.1)
    bf16: bool = True
    device: str = "cpu"
    workers: int = 1
    threads: int = 0
    save_every_s: float = 120.0
    seed: int = 0


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `--key value` pairs.

    Raises:
        ValueError: naming an unknown key, a value of the wrong type or a missing file.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"expected a configuration file; {path} does not exist; see Training/configs"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if len(overrides) % 2:
        raise ValueError(
            f"expected pairs of `--key value` after the configuration; got {' '.join(overrides)}"
        )
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            values[key.removeprefix("--").replace("-", "_")] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            values[key.removeprefix("--").replace("-", "_")] = text
    known = {f.name: type(f.default) for f in fields(Config)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path}: unknown setting {key!r}; known are {', '.join(known)}")
        wanted = known[key]
        if wanted is tuple and isinstance(value, list):
            values[key] = tuple(value)
        elif wanted is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not wanted:
            raise ValueError(f"{path}: {key} should be of type {wanted.__name__}, got {value!r}")
    return replace(Config(), **values)
