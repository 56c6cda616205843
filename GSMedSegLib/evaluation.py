"""Many cases evaluated, one after the other: what is done is kept, and one that fails stops no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.challenge import CLICK_ROUNDS, CaseResult, Played, Round, Segmenter, failed_case, play
from GSMedSegLib.npz import write_segs

SETTINGS = "settings.json"
"""In the evaluation's folder: what the results were made with."""


class ResultStore:
    """The results of an evaluation in its folder: `cases/NAME.json`, with `cases/NAME.png` beside it.

    Args:
        folder: of the evaluation; made where it does not exist yet.
        settings: what decides on the results, such as engine and weights.

    Raises:
        ValueError: the folder has results made with other settings.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._cases = folder / "cases"
        self._cases.mkdir(parents=True, exist_ok=True)
        file = folder / SETTINGS
        if not file.exists():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(
                f"{file} is not what an evaluation wrote; choose another folder, or remove the file"
            ) from None
        if different := differences(before, settings):
            raise ValueError(
                f"{folder} has results made with {different}; choose another folder, or empty it"
            )

    def read(self, source: CaseSource) -> CaseResult | None:
        """The result of a case, if it is there, went well, and the case is still the same."""
        try:
            entry = json.loads(self._file(source.name, ".json").read_text(encoding="utf-8"))
            result = _result(entry["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if entry["files"] != _state(source) or result.errors:
            return None
        return replace(result, modality=source.modality)

    def write(self, source: CaseSource, result: CaseResult, picture: bytes | None) -> None:
        """Keep a result and its picture (PNG), each whole or not at all."""
        if picture is not None:
            with atomic_path(self.picture(source.name)) as temporary:
                temporary.write_bytes(picture)
        entry = {"files": _state(source), "result": asdict(result)}
        with atomic_path(self._file(source.name, ".json")) as temporary:
            temporary.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")

    def write_masks(self, played: Played) -> None:
        """Keep the last labels of a case as `masks/NAME.npz` with `segs`, as the challenge has them."""
        labels = played.case.prev_pred
        assert labels is not None, "a case that was played has an answer"
        path = self.masks(played.result.name)
        path.parent.mkdir(exist_ok=True)
        write_segs(path, labels)

    def masks(self, name: str) -> Path:
        """Where the last labels of a case are, or would be."""
        return self.folder / "masks" / f"{name}.npz"

    def picture(self, name: str) -> Path:
        """Where the picture of a case is, or would be."""
        return self._file(name, ".png")

    def _file(self, name: str, suffix: str) -> Path:
        return self._cases / f"{name}{suffix}"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What two sets of settings differ in, in words; empty where they do not."""
    return ", ".join(
        f"{key} {before.get(key)!r}, now {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    )


def evaluate(
    segmenter: Segmenter,
    sources: Sequence[CaseSource],
    store: ResultStore,
    *,
    draw: Callable[[Played], bytes] | None = None,
    keep_masks: bool = False,
    surfaces: bool = True,
    round_done: Callable[[CaseSource, int], None] = lambda source, number: None,
) -> Iterator[CaseResult]:
    """Play every case that has no result yet, or lacks its masks, and keep its result.

    Args:
        segmenter: runs six times a case.
        sources: the cases.
        store: has the results of an evaluation that was broken off.
        draw: makes the picture of a played case, a PNG.
        keep_masks: keep the last labels of each case.
        surfaces: score surfaces too, which takes longer; zeros stand for them otherwise.
        round_done: called after every round, 0 being the box round.

    Yields:
        the result of every case, in order; of one that cannot be read too, with scores of 0.
    """
    for source in sources:
        result = store.read(source)
        if result is None or (keep_masks and not result.error and not store.masks(source.name).is_file()):
            result = _play(segmenter, source, store, draw, keep_masks, surfaces, round_done)
        yield result


def _play(
    segmenter: Segmenter,
    source: CaseSource,
    store: ResultStore,
    draw: Callable[[Played], bytes] | None,
    keep_masks: bool,
    surfaces: bool,
    round_done: Callable[[CaseSource, int], None],
) -> CaseResult:
    classes, has_boxes = tuple[str, ...](), False
    try:
        labelled = source.load()
        classes, has_boxes = labelled.classes, labelled.case.boxes is not None
        played = play(
            segmenter,
            labelled.case,
            modality=source.modality,
            classes=labelled.classes,
            surfaces=surfaces,
            finished=lambda number: round_done(source, number),
        )
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        result = failed_case(source.name, source.modality, classes, has_boxes, reason)
        store.write(source, result, None)
        return result
    if keep_masks:
        store.write_masks(played)
    store.write(source, played.result, None)  # before the picture: hours of work do not hang on it
    if draw:
        try:
            picture = draw(played)
        except (ValueError, MemoryError):
            return played.result  # the report does without
        store.write(source, played.result, picture)
    return played.result


def _state(source: CaseSource) -> list[list[Any]]:
    """What would change if the files of a case did, or the names of its classes."""
    found: list[list[Any]] = [[source.reading]]
    for file in source.files:
        try:
            status = file.stat()
        except OSError:  # gone, or on a share that is away: the case fails, the others go on
            found.append([file.name, None, None])
        else:
            found.append([file.name, status.st_size, status.st_mtime_ns])
    return found


def _result(entry: dict[str, Any]) -> CaseResult:
    rounds = [_round(r) for r in entry["click_rounds"]]
    if len(rounds) != CLICK_ROUNDS:
        raise ValueError(f"expected {CLICK_ROUNDS} rounds, got {len(rounds)}")
    box_round = None if entry["box_round"] is None else _round(entry["box_round"])
    return CaseResult(
        entry["name"], entry["modality"], tuple(entry["classes"]), box_round, tuple(rounds), entry["error"]
    )


def _round(entry: dict[str, Any]) -> Round:
    return Round(entry["seconds"], tuple(entry["dice"]), tuple(entry["surface_dice"]), entry["error"])
