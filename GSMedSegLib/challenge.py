"""The protocol of the CVPR 2025 challenge for one case: a box round, five click rounds, and their scores.

Source:
    the challenge's evaluation script, CVPR25_iter_eval.py (github.com/JunMa11/CVPR-MedSegFMCompetition).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import ndimage

from GSMedSegLib.cropped import Box3
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.metrics import BoolArray, auc, dice, surface_dice
from GSMedSegLib.npz import Case
from GSMedSegLib.prompts import Click
from GSMedSegLib.simulation import next_click

CLICK_ROUNDS = 5

TOLERANCE_MM = 2.0
"""Of the surface Dice."""

HOPELESS_DICE = 0.2
"""Up to this mean Dice a round's surface Dice is not looked at and counts as 0."""

SECONDS_PER_CLASS = 90.0
"""Allowed for the six runs of a case, for every class in it."""


class Segmenter(Protocol):
    """What can be evaluated: it gets what a submitted container gets, and gives what it gives."""

    def segment(self, case: Case) -> LabelArray:
        """Segment all classes of a case from its prompts.

        Args:
            case: with boxes, clicks and the labels of the round before, as far as there are any; without
                truth. The rounds of a case come one after the other, with the very same image object.

        Returns:
            (K, J, I) labels, class c as c.
        """


@dataclass(frozen=True)
class Round:
    """One run of a case.

    Attributes:
        seconds: that the segmenter took.
        dice: of each class.
        surface_dice: of each class; zeros where the mean Dice is at most `HOPELESS_DICE`.
        error: what went wrong, in which case the scores are 0; empty when nothing did.
    """

    seconds: float
    dice: tuple[float, ...]
    surface_dice: tuple[float, ...]
    error: str = ""

    @property
    def mean_dice(self) -> float:
        """Over the classes."""
        return float(np.mean(self.dice))

    @property
    def mean_surface_dice(self) -> float:
        """Over the classes."""
        return float(np.mean(self.surface_dice))


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes:
        name: of the case.
        modality: CT, MRI, PET, …
        classes: a name for each class.
        box_round: None where the case has no boxes.
        click_rounds: five.
        error: why the case could not be evaluated at all, its scores being 0; empty when it was. It stands
            beside the errors of single rounds.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    box_round: Round | None
    click_rounds: tuple[Round, ...]
    error: str = ""

    @property
    def dice_auc(self) -> float:
        """Area under the mean Dice of the click rounds, 0..4; the box round is left out."""
        return auc([r.mean_dice for r in self.click_rounds])

    @property
    def surface_dice_auc(self) -> float:
        """Area under the mean surface Dice of the click rounds, 0..4."""
        return auc([r.mean_surface_dice for r in self.click_rounds])

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return sum(r.seconds for r in (self.box_round, *self.click_rounds) if r)

    @property
    def limit_s(self) -> float:
        """What the challenge allows for them."""
        return SECONDS_PER_CLASS * len(self.classes)

    @property
    def errors(self) -> tuple[str, ...]:
        """Of the case and its rounds, each once."""
        rounds = [r for r in (self.box_round, *self.click_rounds) if r]
        return tuple(dict.fromkeys(e for e in (self.error, *(r.error for r in rounds)) if e))


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Played:
    """A case after its last round.

    Attributes:
        result: the scores.
        case: with all clicks and, as `prev_pred`, the last labels; its truth has the labels 1, 2, … in order.
    """

    result: CaseResult
    case: Case


def play(
    segmenter: Segmenter,
    case: Case,
    *,
    modality: str = "",
    classes: tuple[str, ...] = (),
    surfaces: bool = True,
    finished: Callable[[int], None] = lambda number: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Played:
    """Evaluate a segmenter on one case.

    Classes are the labels of the truth in rising order, and are expected in the answer as 1, 2, …
    A segmenter that fails in a round scores 0 there, and the clicks of the next round go by an empty mask.

    Args:
        segmenter: runs once a round.
        case: with truth; clicks it has are left out, boxes are used.
        modality: for the result.
        classes: a name for each class; by default the labels of the truth.
        surfaces: score surfaces too, which takes longer; zeros stand for them otherwise.
        finished: called with the number of each finished round, 0 for the box round.
        clock: seconds.

    Raises:
        ValueError: no truth, an empty one, or boxes or names for another number of classes.
    """
    truth, labels = numbered_truth(case)
    if classes and len(classes) != len(labels):
        raise ValueError(f"expected a name for each of {len(labels)} classes, got {len(classes)}")
    if case.boxes is not None and len(case.boxes) != len(labels):
        raise ValueError(f"expected a box for each of {len(labels)} classes, got {len(case.boxes)}")
    known = _Truth(truth, len(labels))
    state = replace(case, truth=None, clicks=None, prev_pred=None)

    box_round = None
    if case.boxes is not None:
        answer, seconds, error = _run(segmenter, state, clock)
        state = replace(state, prev_pred=answer)
        box_round = _score(known, answer, case.spacing_mm if surfaces else None, seconds, error)
        finished(0)
    rounds: list[Round] = []
    clicks: list[tuple[Click | None, ...]] = [()] * len(labels)
    for number in range(1, CLICK_ROUNDS + 1):
        before = state.prev_pred if state.prev_pred is not None else np.zeros(case.image.shape, np.uint8)
        clicks = [(*row, click) for row, click in zip(clicks, _next_clicks(known, before), strict=True)]
        state = replace(state, clicks=tuple(clicks), prev_pred=before)
        answer, seconds, error = _run(segmenter, state, clock)
        state = replace(state, prev_pred=answer)
        rounds.append(_score(known, answer, case.spacing_mm if surfaces else None, seconds, error))
        finished(number)
    names = classes or tuple(str(label) for label in labels)
    return Played(
        CaseResult(case.name, modality, names, box_round, tuple(rounds)), replace(state, truth=truth)
    )


def failed_case(
    name: str, modality: str, classes: tuple[str, ...], has_boxes: bool, error: str
) -> CaseResult:
    """The result of a case that could not be evaluated: it counts, with zeros."""
    names = classes or ("?",)
    nothing = Round(0.0, (0.0,) * len(names), (0.0,) * len(names))
    return CaseResult(name, modality, names, nothing if has_boxes else None, (nothing,) * CLICK_ROUNDS, error)


def numbered_truth(case: Case) -> tuple[LabelArray, list[int]]:
    """The truth of a case with its labels as 1, 2, … in rising order, and the labels it had.

    Raises:
        ValueError: no truth, or an empty one.
    """
    if case.truth is None:
        raise ValueError(f"case {case.name} has no truth (gts), so nothing to be compared with")
    values = np.unique(case.truth)
    labels = [int(value) for value in values if value]
    if not labels:
        raise ValueError(f"the truth of case {case.name} is empty; there is nothing to click on")
    if labels == list(range(1, len(labels) + 1)):
        return case.truth, labels
    truth: LabelArray = np.empty(case.truth.shape, np.min_scalar_type(len(labels)))
    for numbers, slab in zip(truth, case.truth, strict=True):  # positions take eight bytes a voxel
        numbers[...] = np.searchsorted(values, slab) + (values[0] != 0)
    return truth, labels


def _run(segmenter: Segmenter, case: Case, clock: Callable[[], float]) -> tuple[LabelArray, float, str]:
    """The answer, the seconds it took and what went wrong; an empty answer where something did."""
    began, error = clock(), ""
    try:
        answer = segmenter.segment(case)
        if answer.shape != case.image.shape:
            raise ValueError(f"expected labels of shape {case.image.shape}, got {answer.shape}")
    except (ValueError, OSError, RuntimeError, MemoryError) as failure:
        answer, error = np.zeros(case.image.shape, np.uint8), str(failure) or type(failure).__name__
    return answer, clock() - began, error


class _Truth:
    """The classes of a truth, to be compared with answers one by one: memory is that of the largest alone.

    Args:
        labels: (K, J, I), 1, 2, … without gaps.
        classes: how many.
    """

    def __init__(self, labels: LabelArray, classes: int) -> None:
        self._labels = labels
        self._boxes: list[Box3] = ndimage.find_objects(labels, classes)

    def compared(self, answer: LabelArray) -> Iterator[tuple[Box3, BoolArray, BoolArray]]:
        """Each class in turn: a box around all of it in truth and answer, and its mask in either there."""
        found = ndimage.find_objects(answer, len(self._boxes))
        for number, (mine, other) in enumerate(zip(self._boxes, found, strict=True), start=1):
            k, j, i = (
                slice(min(a.start, b.start), max(a.stop, b.stop))
                for a, b in zip(mine, other or mine, strict=True)
            )
            yield (k, j, i), self._labels[k, j, i] == number, answer[k, j, i] == number


def _next_clicks(truth: _Truth, answer: LabelArray) -> Iterator[Click | None]:
    """Of each class; errors beyond its box there are none."""
    for box, mask, found in truth.compared(answer):
        click = next_click(mask, found)
        if click:
            k, j, i = (side.start + at for side, at in zip(box, click.kji, strict=True))
            click = Click((k, j, i), click.positive)
        yield click


def _score(
    truth: _Truth,
    answer: LabelArray,
    spacing_mm: tuple[float, float, float] | None,
    seconds: float,
    error: str,
) -> Round:
    overlaps = tuple(dice(mask, found) for _, mask, found in truth.compared(answer))
    surfaces = (0.0,) * len(overlaps)
    if spacing_mm is not None and float(np.mean(overlaps)) > HOPELESS_DICE:
        surfaces = tuple(
            surface_dice(mask, found, spacing_mm, TOLERANCE_MM) for _, mask, found in truth.compared(answer)
        )
    return Round(seconds, overlaps, surfaces, error)
