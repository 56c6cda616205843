"""The settings of a training run: a TOML file, single values overridden on the command line."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from GSMedSegLib.text_files import read_text

CLICK_KINDS = ("centre", "edge_centre", "uniform", "scribble", "box")
SOURCE_KINDS = ("cases", "maps", "scenes")
CROPS = ("views", "voxels")
AUGMENTATIONS = ("none", "seed", "usual")
INTENSITIES = ("auto", "view", "volume")
OPTIMISERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Source:
    """Something that examples are drawn from.

    Attributes:
        kind: "cases" with image and labels, "maps" of labels to paint an image from, or invented "scenes".
        path: of cases: what `case_source.find_sources` reads, a folder or a list; of maps: a folder with a
            folder of label maps for each set. Relative to `Config.root`.
        weight: how often it is drawn from, compared with the others.
        lesions: of maps: the sets that are shapes to paste into the others.
        membranes: of maps: their labels are cells, to be painted alike with membranes between them, and no
            lesions in them; else each gets a contrast of its own.
        window: of cases that are images: the grey values that become 0 and 255; empty for the usual ones.
            Weights whose sources of cases all share it look at every image of more than 8 bits in it.
        regions: of cases: how often regions that the image itself shows are asked for, in place of labels, in
            steps with clicks enough to say which is meant (`clicks.TELLING_CLICKS`).
    """

    kind: str = "cases"
    path: str = ""
    weight: float = 1.0
    lesions: tuple[str, ...] = ()
    membranes: bool = False
    window: tuple[float, ...] = ()
    regions: float = 0.0


@dataclass(frozen=True)
class Validation:
    """The challenge's protocol on cases that are not trained on.

    Attributes:
        path: of the cases; empty for a share of the training cases.
        share: of the patients of all sources of cases that are kept for it, where there is no path.
        patient: a regular expression that finds the patient in a case's name; by default what its
            `labels.json` calls `group`, else every case is a patient of its own.
        every: epochs from one to the next.
        limit_cases: so many at most, evenly spaced by name; 0 for all.
        limit_objects: so many of a case at most; 0 for all.
        strategy: of the predictor.
    """

    path: str = ""
    share: float = 0.0
    patient: str = ""
    every: int = 5
    limit_cases: int = 0
    limit_objects: int = 4
    strategy: str = "adaptive"


@dataclass(frozen=True)
class Sampling:
    """What a step sees.

    Attributes:
        cases: drawn for a step, by all processes together.
        views: cut out of each of them.
        objects: learned from in a view, at most.
        candidates: objects of a view that are looked at, to take `objects` of them: the worse one's first
            answer is, the more likely it is taken. 0 for no choice.
        roi: voxels per side of a view.
        crop: "views" of any zoom, fitted to an object and pushed inside its volume; or "voxels", the seed's
            crops at the volume's own resolution.
        pieces: how often one connected piece of a label is asked for, rather than all of it.
        cuts: how often an object is cut in two by a plane, and one part asked for, in steps with clicks
            enough to say where it ends.
        bent: how often a view of a case or a label map is turned, stretched and bent.
        stages: how often each way to place the first clicks is taken, by name: "centre" (what the challenge
            does), "edge_centre" and "uniform" (the seed's two), "scribble", "box". Epochs take turns.
        adaptive_hints: ask for fewer clicks in small objects; else up to five, as the seed.
        more_clicks: probabilities of 0, 1, 2… further clicks on the current error.
        quick_rounds: place them by the mixer's coarse answer, for networks whose mixer is trained.
        special_labels: labels whose clicks are marked 2 and 3, as those of the seed's special classes.
        augmentation: "seed" as the seed's, "usual" with more, or "none".
        intensity: "volume" (1st to 99th percentile of the volume to 0..1), "view" (each view's contrast
            evened out), or "auto": as the weights say.
    """

    cases: int = 1
    views: int = 4
    objects: int = 4
    candidates: int = 0
    roi: int = 48
    crop: str = "views"
    pieces: float = 0.75
    cuts: float = 0.0
    bent: float = 0.0
    stages: tuple[dict[str, float], ...] = ({"centre": 0.7, "edge_centre": 0.2, "uniform": 0.1},)
    adaptive_hints: bool = True
    more_clicks: tuple[float, ...] = (0.3, 0.2, 0.2, 0.15, 0.15)
    quick_rounds: bool = True
    special_labels: tuple[int, ...] = ()
    augmentation: str = "usual"
    intensity: str = "auto"


@dataclass(frozen=True)
class NewNetwork:
    """The shape of a network that starts from nothing; see `GSMedSegLib.network.Shape`."""

    init_filters: int = 16
    blocks_down: tuple[int, ...] = (1, 1, 2, 2)
    width: int = 32
    mixer: tuple[int, ...] = (32, 64, 96, 128)
    detail: int = 16


@dataclass(frozen=True)
class Optimisation:
    """How the weights are moved.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: 0 for as many as show every training case once.
        optimiser: "adamw", or "muon", which learned more per step here; see `Training.muon`.
        learning_rate, weight_decay, warmup_steps: with linear warm-up and half a cosine down to 1 %.
        clip_norm: of the gradient; 0 for none.
        ema: decay of the running average of the weights, which is what gets validated and exported; 0 for the
            weights themselves.
        freeze: beginnings of the names of weights that stay as they are, such as "image_encoder".
        rate_factors: the learning rate of weights by the beginning of their names, as a share of it; the
            longest beginning counts.
        precision: "fp32", "bf16", "fp16" (on CUDA only), or "auto": bf16 where the processor has it.
        head_share: share of the steps that train VISTA3D's head; the others stop at the mixer's logits. 1 for
            networks without mixer.
        near_clicks: what the cross-entropy around the clicks counts in the loss, beside the whole view's.
        views_at_once, objects_at_once: how much goes through the network together; less takes less memory and
            gives the same gradients.
        checkpoint_gradients: compute the encoder's activations twice rather than keep them.
        compile: let torch compile the encoder, where that works.
    """

    epochs: int = 30
    steps_per_epoch: int = 0
    optimiser: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    clip_norm: float = 1.0
    ema: float = 0.99
    freeze: tuple[str, ...] = ()
    rate_factors: dict[str, float] = field(default_factory=dict)
    precision: str = "auto"
    head_share: float = 1.0
    near_clicks: float = 0.0
    views_at_once: int = 4
    objects_at_once: int = 16
    checkpoint_gradients: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Config:
    """What a run is made of.

    Attributes:
        data: the sources. On the command line `--data PATH` stands for one source of cases.
        root: what their paths are relative to.
        init: weights to start from, by name or path; empty for a new network.
        additions: give weights without them the click features, the mixer and its step to full resolution,
            which start at zero.
        output: folder for checkpoints, events and exported weights.
        device: "auto", "cpu" or "cuda".
        workers: processes that make examples, for each process that trains.
        threads: of torch on the CPU; 0 for torch's own choice.
        cache_gb: memory for cases read, over the workers of a process.
        save_every_s: seconds between checkpoints.
        seed: of weights, examples and clicks.
        skip_broken: leave out cases that cannot be read, rather than stop.
    """

    data: tuple[Source, ...] = ()
    root: str = "."
    init: str = "compact"
    additions: bool = True
    output: str = "build/training"
    device: str = "auto"
    workers: int = 1
    threads: int = 0
    cache_gb: float = 4.0
    save_every_s: float = 300.0
    seed: int = 0
    skip_broken: bool = False
    validation: Validation = field(default_factory=Validation)
    sampling: Sampling = field(default_factory=Sampling)
    network: NewNetwork = field(default_factory=NewNetwork)
    optimisation: Optimisation = field(default_factory=Optimisation)

    def __post_init__(self) -> None:
        sampling, optimisation = self.sampling, self.optimisation
        _one_of("crop", sampling.crop, CROPS)
        _one_of("augmentation", sampling.augmentation, AUGMENTATIONS)
        _one_of("intensity", sampling.intensity, INTENSITIES)
        _one_of("optimiser", optimisation.optimiser, OPTIMISERS)
        _one_of("precision", optimisation.precision, PRECISIONS)
        for source in self.data:
            _one_of("kind", source.kind, SOURCE_KINDS)
            if source.weight <= 0:
                raise ValueError(f"the weight of a source is positive, got {source.weight}")
            if not 0 <= source.regions < 1 or (source.regions and source.kind != "cases"):
                raise ValueError(
                    "regions is a share of a source of cases, at least 0 and less than 1; "
                    f'got {source.regions} for kind "{source.kind}"'
                )
            if source.membranes and source.kind != "maps":
                raise ValueError(
                    f'membranes are painted into a source of maps; this one is of kind "{source.kind}"'
                )
            if (source.kind == "scenes") != (source.path == ""):
                raise ValueError(
                    f'a source of kind "{source.kind}" has {"no" if source.path else "a"} path; '
                    f"got {source.path!r}"
                )
        for stage in sampling.stages:
            for kind in stage:
                _one_of("stages", kind, CLICK_KINDS)
        if not sampling.stages or any(
            min(s.values(), default=0) < 0 or sum(s.values()) <= 0 for s in sampling.stages
        ):
            raise ValueError("stages needs at least one table, with shares that are not all 0")
        if min((0.0, *sampling.more_clicks)) < 0 or sum(sampling.more_clicks) <= 0:
            raise ValueError(f"more_clicks are probabilities, not all 0, got {sampling.more_clicks}")
        positive = {
            "cases": sampling.cases,
            "views": sampling.views,
            "objects": sampling.objects,
            "epochs": optimisation.epochs,
            "learning_rate": optimisation.learning_rate,
            "views_at_once": optimisation.views_at_once,
            "objects_at_once": optimisation.objects_at_once,
            "every": self.validation.every,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"{name} is greater than 0, got {value}")
        if sampling.candidates and sampling.candidates < sampling.objects:
            raise ValueError(
                f"candidates is 0 or at least objects, which is {sampling.objects}; got {sampling.candidates}"
            )
        not_negative = {
            "weight_decay": optimisation.weight_decay,
            "clip_norm": optimisation.clip_norm,
            "near_clicks": optimisation.near_clicks,
            "warmup_steps": optimisation.warmup_steps,
            "steps_per_epoch": optimisation.steps_per_epoch,
            "limit_cases": self.validation.limit_cases,
            "limit_objects": self.validation.limit_objects,
            "workers": self.workers,
            "threads": self.threads,
            "cache_gb": self.cache_gb,
        }
        for name, value in not_negative.items():
            if value < 0:
                raise ValueError(f"{name} is at least 0, got {value}")
        shares = {
            "share": self.validation.share,
            "ema": optimisation.ema,
            "cuts": sampling.cuts,
            "bent": sampling.bent,
        }
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} is at least 0 and less than 1, got {share}")


GROUPS = ("validation", "sampling", "network", "optimisation")


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `--key value` pairs; a key needs no group, for each has one meaning.

    Raises:
        ValueError: naming an unknown key, a value of the wrong type or range, or a missing file.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(
            f"expected a configuration file; {path} does not exist; see Training/configs"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if len(overrides) % 2 or any(not key.startswith("--") for key in overrides[::2]):
        raise ValueError(
            f"expected pairs of `--key value` after the configuration; got {' '.join(overrides)}"
        )
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        name = key.removeprefix("--").replace("-", "_").rpartition(".")[2]
        group = _group_of(name)
        table = values.setdefault(group, {}) if group else values
        if name == "data":
            values["data"] = [{**_only_cases(values.get("data", [])), "path": text}]
        else:
            hints = typing.get_type_hints(type(getattr(Config(), group)) if group else Config)
            table[name] = _parsed(text, hints.get(name))
    config: Config = _filled(Config, values, str(path))
    return config


def _only_cases(sources: Any) -> dict[str, Any]:
    """What a file says of its one source of cases, if it has one: it holds for another path too."""
    tables = [one for one in sources if isinstance(one, dict)] if isinstance(sources, list) else []
    cases = [one for one in tables if one.get("kind", "cases") == "cases"]
    return cases[0] if len(cases) == 1 else {}


def as_table(config: Config) -> dict[str, Any]:
    """The settings as nested tables of plain values."""
    return dataclasses.asdict(config)


def _group_of(name: str) -> str:
    for group in GROUPS:
        default = next(f for f in fields(Config) if f.name == group).default_factory
        assert default is not dataclasses.MISSING
        if name in {f.name for f in fields(typing.cast(Any, default))}:
            return group
    return ""


def _parsed(text: str, wanted: Any) -> Any:
    """A value as in a file, or the text as it is: quotes are not needed, nor for a folder called 2024."""
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    return text if wanted is str and not isinstance(value, str) else value


def _filled(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a table."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} should be a table, got {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise ValueError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(hints)}")
    return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _value(wanted: Any, value: Any, where: str) -> Any:
    if is_dataclass(wanted):
        return _filled(wanted, value, where)
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(parts[0], v, f"{where}[{n}]") for n, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(parts[1], v, f"{where}.{key}") for key, v in value.items()}
    if wanted is float and type(value) is int:
        return float(value)
    if origin is not None or type(value) is not wanted:
        name = {tuple: "list", dict: "table"}.get(origin or wanted, getattr(wanted, "__name__", str(wanted)))
        raise ValueError(f"{where} should be of type {name}, got {value!r}")
    return value


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
