"""Scores as tables: for the terminal, and in Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from GSMedSegLib.atomic import atomic_path
from Testing.benchmarks.scores import Summary


def text_table(name: str, summary: Summary, counts: Mapping[str, int]) -> str:
    """All scores of a series, a line for each data set and modality.

    Args:
        name: of the series.
        summary: of the series.
        counts: objects of each data set.
    """
    rows = {
        **{data_set: (str(counts[data_set]), scores) for data_set, scores in summary.data_sets.items()},
        **{kind: ("", scores) for kind, scores in summary.modalities.items()},
        "mean over data sets": ("", summary.mean),
    }
    lines = [f"{name:<20} objects  Dice after clicks 1 to 5             DSC_AUC  NSD_AUC"]
    for row, (count, scores) in rows.items():
        surface = "" if scores.nsd_auc is None else f"{scores.nsd_auc:>9.3f}"
        curve = "  ".join(f"{dice:.3f}" for dice in scores.dice)
        lines.append(f"{row:<20} {count:>7}  {curve}  {scores.dsc_auc:>7.3f}{surface}")
    return "\n".join(lines)


def overview(summaries: Mapping[str, Summary]) -> str:
    """Markdown: means over data sets of all series, then the area under the Dice curve by modality."""
    kinds = list(next(iter(summaries.values())).modalities)
    head = ["", "Dice 1", "Dice 5", "DSC_AUC", "NSD 1", "NSD 5", "NSD_AUC", *kinds]
    rows = []
    for name, summary in summaries.items():
        mean, nsd = summary.mean, summary.mean.nsd or (None,) * len(summary.mean.dice)
        numbers = (mean.dice[0], mean.dice[-1], mean.dsc_auc, nsd[0], nsd[-1], mean.nsd_auc)
        areas = [summary.modalities[kind].dsc_auc for kind in kinds]
        rows.append([name, *map(_number, (*numbers, *areas))])
    return _markdown(head, rows)


def by_data_set(summary: Summary, counts: Mapping[str, int], others: Mapping[str, Summary]) -> str:
    """Markdown: Dice by click of one series, areas beside those of others.

    Args:
        summary: of the series.
        counts: objects of each data set.
        others: areas to put beside.
    """
    head = ["", "objects", "Dice 1", "2", "3", "4", "5", "DSC_AUC", "NSD_AUC", *others]
    named = {**summary.data_sets, **summary.modalities, "mean": summary.mean}
    rows = []
    for name, scores in named.items():
        theirs = [{**o.data_sets, **o.modalities, "mean": o.mean}[name].dsc_auc for o in others.values()]
        dice = [f"{value:.2f}" for value in scores.dice]
        areas = [_number(value) for value in (scores.dsc_auc, scores.nsd_auc, *theirs)]
        rows.append([name, str(counts.get(name, "")), *dice, *areas])
    return _markdown(head, rows)


def replace_blocks(file: Path, blocks: Mapping[str, str]) -> list[str]:
    """Puts text between the marks `<!-- accuracy: NAME -->` and `<!-- end: NAME -->` of a Markdown file.

    Args:
        file: is rewritten.
        blocks: by name; one without marks in the file is left out.

    Returns:
        the names that were found.

    Raises:
        ValueError: a mark without its end.
        OSError: no such file.
    """
    text, found = file.read_text(encoding="utf-8"), []
    for name, block in blocks.items():
        start, end = f"<!-- accuracy: {name} -->", f"<!-- end: {name} -->"
        if start not in text:
            continue
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ValueError(f"{file}: expected {start} once, and {end} once after it; correct the marks")
        head, tail = text[: text.index(start)], text[text.index(end) :]
        text = f"{head}{start}\n{block}\n{tail}"
        found.append(name)
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
