"""The report of an evaluation: the challenge's CSV, means as JSON, and a page to read, print and pass on."""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.challenge import CLICK_ROUNDS, SECONDS_PER_CLASS, CaseResult, Round
from GSMedSegLib.metrics import dice
from GSMedSegLib.npz import Case
from GSMedSegLib.picture import draw, stacked
from GSMedSegLib.simulation import next_click

ROUNDS = CLICK_ROUNDS + 1
"""The box round and the click rounds."""

WORST_CASES = 12
"""Shown with their pictures."""

ROW_PIXELS = 240
"""Height of a row of slices in a case's picture."""

SCORE_COLORS = {"dsc": "#2f7fd6", "nsd": "#d97a1f"}
"""Of the curves: read on white and on black."""

_REASON_CHARACTERS = 300
_UNKNOWN = "?"
_TOOLS = {"matplotlib": "curves", "jinja2": "tables"}
_CURVE_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#808080",
    "xtick.color": "#808080",
    "ytick.color": "#808080",
}


def check_report_tools() -> None:
    """Find out whether `write_report` has what it needs, before hours of evaluation.

    Raises:
        RuntimeError: a package is missing; says which, and how to get it.
    """
    for package, part in _TOOLS.items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RuntimeError(
                f"the report's {part} need {package}; pip install 'gsmedseg[evaluate]'"
            ) from error


def write_report(
    folder: Path,
    results: Sequence[CaseResult],
    facts: Mapping[str, str],
    pictures: Mapping[str, Path],
    *,
    started_anew: bool = False,
) -> None:
    """Write `metrics.csv`, `classes.csv`, `summary.json` and `report.html`, each whole or not at all.

    The same arguments give the same bytes.

    - `metrics.csv` has the challenge's columns: a row per case; number 1 is the box round, 0 without boxes.
    - `classes.csv` has a row per class of every case; its box columns are empty without boxes.
    - `summary.json` has means over cases (each case being the mean of its classes) for all of them, for each
      modality, and for each class name; also the mean of the modalities' means. Times leave out cases that
      could not be evaluated at all, which score 0. What there is nothing of is null.
    - `report.html` is one file that needs no network and no script.

    Args:
        folder: made where it does not exist yet.
        results: one or more.
        facts: what was evaluated, where and when, in the order to be shown; "engine" is also in the title.
        pictures: PNG files by case name, for as many cases as there are (see `case_picture`).
        started_anew: whether every round started the engine, as in the challenge, whose limit counts that.

    Raises:
        ValueError: no results.
        RuntimeError: as `check_report_tools`.
        OSError: the folder cannot be written to, or a picture not be read.
    """
    if not results:
        raise ValueError("a report needs the result of one case or more, got none")
    check_report_tools()
    folder.mkdir(parents=True, exist_ok=True)
    classes = [single for result in results for single in _singles(result)]
    summary = _summary(results, classes, facts)
    _write(folder / "metrics.csv", _table([_metrics_row(result) for result in results]))
    _write(folder / "classes.csv", _table([_class_row(single) for single in classes]))
    _write(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    _write(folder / "report.html", _page(results, classes, summary, pictures, started_anew))


def case_picture(case: Case, limit_classes: int = 4, classes: Sequence[str] = ()) -> Image.Image:
    """Slices through the classes that came out worst, a row for each, cut in the middle of the largest error.

    What was found of the class is outlined in colour, its truth in black and white dashes; its clicks within
    two voxels of a slice are + and −. The caption has its Dice and the number of its clicks.

    Args:
        case: as `challenge.play` leaves it: with truth, labels in `prev_pred`, and clicks.
        limit_classes: rows at most.
        classes: a name for each class; numbers by default.

    Raises:
        ValueError: the case was not played, the limit is below 1, or there are names for another number of
            classes.
    """
    if case.truth is None or case.prev_pred is None or case.clicks is None:
        raise ValueError(f"case {case.name} has no truth, labels or clicks to draw; play it first")
    names = classes or [f"class {number}" for number in range(1, len(case.clicks) + 1)]
    if len(names) != len(case.clicks) or limit_classes < 1:
        raise ValueError(
            f"expected a name for each of {len(case.clicks)} classes, and a limit of 1 or more; "
            f"got {len(names)} names and a limit of {limit_classes}"
        )
    labels, found = case.truth, case.prev_pred
    overlap = {n: dice(labels == n, found == n) for n in range(1, len(names) + 1)}
    rows = []
    for n in sorted(overlap, key=overlap.__getitem__)[:limit_classes]:
        truth, mask = labels == n, found == n
        clicks = [click for click in case.clicks[n - 1] if click]
        positive = sum(click.positive for click in clicks)
        caption = f"{names[n - 1]}: DSC {overlap[n]:.2f}, {positive} fg {len(clicks) - positive} bg"
        at = [_middle_of_error(truth, mask)]
        rows.append(
            draw(
                case.image,
                mask,
                [caption],
                [clicks],
                case.spacing_kji_mm,
                ROW_PIXELS,
                truth=truth,
                cuts_kji=at,
            )
        )
    return stacked(rows)


def _middle_of_error(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The voxel to look at: the middle of the largest error, or of the object where there is no error."""
    click = next_click(truth, mask) or next_click(truth, np.zeros_like(truth))
    assert click is not None, "every class of a played case is in its truth"
    return click.kji


# Tables


def _metrics_row(result: CaseResult) -> dict[str, Any]:
    rounds = _rounds(result)
    last = result.click_rounds[-1]
    return {
        "CaseName": f"{result.name}.npz",
        "TotalRunningTime": result.seconds,
        **_numbered("RunningTime_", [r.seconds if r else 0.0 for r in rounds]),
        "DSC_AUC": result.dice_auc,
        "NSD_AUC": result.surface_dice_auc,
        "DSC_Final": last.mean_dice,
        "NSD_Final": last.mean_surface_dice,
        **_numbered("DSC_", [r.mean_dice if r else 0.0 for r in rounds]),
        **_numbered("NSD_", [r.mean_surface_dice if r else 0.0 for r in rounds]),
        "num_class": len(result.classes),
        "runtime_upperbound": result.limit_s,
    }


def _class_row(single: CaseResult) -> dict[str, Any]:
    box = single.box_round
    return {
        "case": single.name,
        "modality": single.modality,
        "class": single.classes[0],
        "DSC_box": box.mean_dice if box else None,
        **_numbered("DSC_click", [r.mean_dice for r in single.click_rounds]),
        "NSD_box": box.mean_surface_dice if box else None,
        **_numbered("NSD_click", [r.mean_surface_dice for r in single.click_rounds]),
        "DSC_AUC": single.dice_auc,
        "NSD_AUC": single.surface_dice_auc,
    }


def _numbered(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}{number}": value for number, value in enumerate(values, start=1)}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """In UTF-8; names of files that are not text for this system are written with backslashes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


# Means


def _rounds(result: CaseResult) -> tuple[Round | None, ...]:
    """All six, the box round first."""
    return (result.box_round, *result.click_rounds)


def _singles(result: CaseResult) -> list[CaseResult]:
    """A result for each class, as if it had been the only one; the seconds remain those of all together."""

    def only(number: int, several: Round) -> Round:
        return replace(several, dice=(several.dice[number],), surface_dice=(several.surface_dice[number],))

    return [
        replace(
            result,
            classes=(name,),
            box_round=result.box_round and only(number, result.box_round),
            click_rounds=tuple(only(number, several) for several in result.click_rounds),
        )
        for number, name in enumerate(result.classes)
    ]


def _summary(
    results: Sequence[CaseResult], classes: Sequence[CaseResult], facts: Mapping[str, str]
) -> dict[str, Any]:
    by_modality = dict(sorted(_grouped(results, _modality).items()))
    modalities = {name: {**_scores(group), **_times(group)} for name, group in by_modality.items()}
    scores = _scores(results)
    cases, failed = scores.pop("cases"), scores.pop("failed")
    by_class = _grouped(classes, lambda single: single.classes[0])
    return {
        "facts": dict(facts),
        "cases": cases,
        "failed": failed,
        "mean": {**scores, **_times(results)},
        "mean_of_modalities": _mean_of(list(modalities.values())),
        "modalities": modalities,
        "classes": {name: _scores(group) for name, group in by_class.items()},
    }


def _modality(result: CaseResult) -> str:
    return result.modality or _UNKNOWN


def _grouped(results: Iterable[CaseResult], key: Callable[[CaseResult], Any]) -> dict[Any, list[CaseResult]]:
    groups: dict[Any, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def _scores(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Means over cases, or over the classes of cases: five values of each score, and its area."""
    boxes = [result.box_round for result in results if result.box_round]
    columns = list(zip(*(result.click_rounds for result in results), strict=True))
    return {
        "cases": len(results),
        "failed": sum(bool(result.errors) for result in results),
        "dice": [_mean([r.mean_dice for r in column]) for column in columns],
        "nsd": [_mean([r.mean_surface_dice for r in column]) for column in columns],
        "dsc_auc": _mean([result.dice_auc for result in results]),
        "nsd_auc": _mean([result.surface_dice_auc for result in results]),
        "box_dice": _mean([r.mean_dice for r in boxes]),
        "box_nsd": _mean([r.mean_surface_dice for r in boxes]),
    }


def _times(results: Sequence[CaseResult]) -> dict[str, Any]:
    played = [result for result in results if not result.error]
    columns = zip(*(_rounds(result) for result in played), strict=True) if played else [()] * ROUNDS
    return {
        "seconds_per_round": [_mean([r.seconds for r in column if r]) for column in columns],
        "seconds_per_case": _mean([result.seconds for result in played]),
    }


def _mean_of(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every group counts the same, however many cases it has."""
    means: dict[str, Any] = {
        key: [_mean([group[key][n] for group in groups]) for n in range(CLICK_ROUNDS)]
        for key in ("dice", "nsd")
    }
    for key in ("dsc_auc", "nsd_auc", "box_dice", "box_nsd"):
        means[key] = _mean([group[key] for group in groups if group[key] is not None])
    return means


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


# The page


def _page(
    results: Sequence[CaseResult],
    classes: Sequence[CaseResult],
    summary: Mapping[str, Any],
    pictures: Mapping[str, Path],
    started_anew: bool,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("GSMedSegLib"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, seconds=_seconds, one_line=_one_line)
    played = [result for result in results if not result.error]
    by_modality = _grouped(results, _modality)
    by_class = _grouped(classes, lambda single: (_modality(single), single.classes[0]))
    worst = sorted(played, key=lambda result: (result.dice_auc, result.name))[:WORST_CASES]
    return environment.get_template("report.html").render(
        summary=summary,
        results=results,
        rounds=_rounds,
        curves={name: _curves(by_modality[name]) for name in summary["modalities"]},
        classes=[(*key, _scores(by_class[key])) for key in sorted(by_class, key=lambda key: key[0])],
        unknown=_UNKNOWN,
        failed=[result for result in results if result.errors],
        over_limit=[result for result in results if result.seconds > result.limit_s],
        started_anew=started_anew,
        slowest=max(results, key=lambda result: result.seconds / result.limit_s),
        seconds_per_class=SECONDS_PER_CLASS,
        worst=[(result, _weakest(result), _data_uri(pictures.get(result.name))) for result in worst],
        colors=SCORE_COLORS,
    )


def _weakest(result: CaseResult) -> tuple[str, float]:
    """The class with the lowest Dice in the end, and that Dice."""
    last = result.click_rounds[-1].dice
    number = min(range(len(last)), key=last.__getitem__)
    return result.classes[number], last[number]


def _data_uri(picture: Path | None) -> str:
    if picture is None:
        return ""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def _curves(results: Sequence[CaseResult]) -> str:
    """Both scores by number of clicks, as SVG to stand in a page, which gives the text its font and colour.

    Lines are means, bands the middle half of the cases, diamonds the box round where there is one.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    scores = {
        "dsc": np.array([[r.mean_dice for r in result.click_rounds] for result in results]),
        "nsd": np.array([[r.mean_surface_dice for r in result.click_rounds] for result in results]),
    }
    boxes = [result.box_round for result in results if result.box_round]
    box_scores = {"dsc": [r.mean_dice for r in boxes], "nsd": [r.mean_surface_dice for r in boxes]}
    numbers = np.arange(1, ROUNDS)
    with style.context(["default", _CURVE_STYLE]):
        figure = Figure(figsize=(3.6, 2.5))
        axes = figure.add_axes((0.1, 0.18, 0.88, 0.77))
        for name, values in scores.items():
            color, dash = SCORE_COLORS[name], "-" if name == "dsc" else "--"
            low, high = np.percentile(values, (25, 75), axis=0)
            axes.fill_between(numbers, low, high, color=color, alpha=0.18, linewidth=0, clip_on=False)
            axes.plot(numbers, values.mean(0), dash, color=color, marker="o", markersize=3.5, clip_on=False)
            if boxes:
                axes.plot([0], [np.mean(box_scores[name])], "D", color=color, markersize=4.5, clip_on=False)
        axes.set_xlim(-0.3 if boxes else 0.7, ROUNDS - 0.7)
        axes.set_ylim(0, 1)
        axes.set_xticks(
            [*([0] if boxes else []), *numbers], [*(["box"] if boxes else []), *map(str, numbers)]
        )
        axes.set_xlabel("clicks per class")
        axes.grid(axis="y", color="#808080", alpha=0.25, linewidth=0.6)
        svg = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
    text = svg.getvalue()
    # A page has one document type, knows these name spaces, and has each id once.
    return re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[\w.]+"', "", text[text.index("<svg") :])


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _one_line(error: str) -> str:
    line = " ".join(error.split())
    return line if len(line) <= _REASON_CHARACTERS else f"{line[: _REASON_CHARACTERS - 1]}…"
