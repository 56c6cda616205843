"""The card that goes with trained weights: what they were made from, how, and how good they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from GSMedSegLib import __version__
from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.model_store import list_weights
from Training.config import Config, Source, as_table
from Training.validation import table


def write_model_card(
    path: Path,
    config: Config,
    origin: str,
    steps: int,
    training: Sequence[tuple[Source, Sequence[CaseSource]]],
    validation: Sequence[CaseSource],
    measured: tuple[Mapping[str, Any], Mapping[str, Any]] | None,
) -> None:
    """Write the card as Markdown, to be passed on with the weights.

    Cases are counted, not named, and of paths only the last part is given: names may say who patients are.

    Args:
        path: of the card.
        config: of the run.
        origin: name of the weights that the first run of all started from; empty for random ones.
        steps: after which the weights were taken.
        training: the sources, with their cases.
        validation: the cases measured on.
        measured: validations before and after, see `validation.validate`.

    Raises:
        OSError: it cannot be written.
    """
    lines = [
        "# Model card",
        "",
        f"Trained with GSMedSeg {__version__} (`python -m Training.finetune`), {steps} steps. Use them with",
        "`gsmedseg segment IMAGE -o MASK --fg I,J,K --weights weights.safetensors`.",
        "For research; not a medical device.",
        "",
        "## Where they come from",
        "",
        _origin(config.init, origin),
        "",
        "## Data",
        "",
        *(f"- {_told(source, cases)}" for source, cases in training),
        f"- {len(validation)} cases for validation, of other patients or given apart; not trained on",
        "",
        "Add the licences of your data here: weights made from data may be bound by them.",
        "",
        "## Scores",
        "",
        _scores(measured, steps),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(_settings(config), indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    with atomic_path(path) as temporary:
        Path(temporary).write_text("\n".join(lines), encoding="utf-8")


def _origin(init: str, origin: str) -> str:
    if not init:
        return "Started from random weights."
    started = f"Started from `{Path(init).name}`"
    known = {entry.name: entry for entry in list_weights()}
    if init not in known and origin not in known:
        return f"{started}; what its terms ask for holds for these weights too."
    if init not in known:
        started += f", which was made from `{origin}`"
    licence = known[init if init in known else origin].licence
    terms = f"{licence.name}. {licence.summary} {licence.url}" if licence else "not known here."
    return f"{started}, whose terms hold for these weights too: {terms}"


def _settings(config: Config) -> dict[str, Any]:
    """The settings without folders of this machine."""
    settings = as_table(config)
    for entry in (*settings["data"], settings["validation"]):
        entry["path"] = Path(entry["path"]).name
    settings["init"] = Path(config.init).name
    return {key: value for key, value in settings.items() if key not in ("output", "root")}


def _told(source: Source, cases: Sequence[CaseSource]) -> str:
    if source.kind == "scenes":
        return f"invented scenes, weight {source.weight:g}"
    if source.kind == "maps":
        return f"label maps of `{Path(source.path).name}`, painted, weight {source.weight:g}"
    modalities = ", ".join(sorted({case.modality for case in cases}))
    return f"{len(cases)} cases of `{Path(source.path).name}` ({modalities}), weight {source.weight:g}"


def _scores(measured: tuple[Mapping[str, Any], Mapping[str, Any]] | None, steps: int) -> str:
    if measured is None:
        return "Not measured: there were no validation cases."
    before, after = measured
    failed = len(before["failed"].keys() | after["failed"].keys())
    note = f"\nOf them {failed} failed, before or after, and count as 0: the scores say little.\n"
    return (
        f"The challenge's simulated clicks, mean over {len(after['cases'])} validation cases. The weights "
        f"are those of step {steps}, the best of the run by these same cases, which flatters a little.\n\n"
        + table(before, after)
        + (note if failed else "")
    )
