"""Time limits, with a clock that ticks only when a fake segmenter works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from GSMedSegLib.case_segmenter import CaseSegmenter, ClassPrompts
from GSMedSegLib.engine import Engine
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case
from GSMedSegLib.pace import Effort, PacedSegmenter
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.segment import Segment, empty_segment, paint_in_order

CLICK = Click((1, 1, 1), True)
IMAGE = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker(CaseSegmenter):
    """Takes so many seconds for a first click, a share of it for others; class n's mask is (0, 0, n)."""

    def __init__(self, clock: Clock, seconds: float, further: float = 1.0) -> None:
        self.clock, self.seconds, self.further = clock, seconds, further
        self.done: list[tuple[int, int]] = []

    def set_image(self, case: Case) -> None:
        """Nothing to prepare."""

    def segment_class(self, index: int, prompts: ClassPrompts) -> Segment:
        """Takes its time."""
        clicks = max(1, len(prompts[0]))
        self.clock.now += self.seconds * (1 + self.further * (clicks - 1))
        self.done.append((index, clicks))
        logits = torch.full((4, 4, 4), -1.0)
        logits[0, 0, index] = 1
        return Segment((4, 4, 4), (slice(0, 4),) * 3, logits)

    def paint(self, segments: list[Segment]) -> LabelArray:
        """In order."""
        return paint_in_order(segments, (4, 4, 4))


def case_of(classes: int, clicks: int) -> Case:
    return Case("CT_x", IMAGE, (1, 1, 1), clicks=((CLICK,) * clicks,) * classes)


def paced(
    clock: Clock, seconds: list[float], limit_s: float, further: float = 1.0, spent_s: float = 0.0
) -> tuple[PacedSegmenter, list[Worker]]:
    workers = [Worker(clock, s, further) for s in seconds]
    efforts = [Effort(f"effort {n}", lambda w=w: w) for n, w in enumerate(workers)]
    return PacedSegmenter(efforts, limit_s, further, spent_s, clock), workers


def test_with_time_enough_all_care_is_taken() -> None:
    """Limit 96 s: a run with one click per class has 6 s per class, of which 4.8 s are planned with."""
    segmenter, (careful, quick) = paced(Clock(), [1.0, 0.1], 96)
    labels = segmenter.segment(case_of(classes=3, clicks=1))
    assert labels[0, 0].tolist() == [1, 2, 3, 0]
    assert careful.done == [(0, 1), (0, 1), (1, 1), (2, 1)]  # the first once more, to know its time
    assert not quick.done
    assert segmenter.warnings == ()


def test_what_would_come_too_late_is_done_with_less_care() -> None:
    """3 classes of 2 clicks have 36 s, planned 28.8 s. The careful one takes 5 s a click: 30 s in all.

    After the first click was timed 23.8 s are left for 6 clicks: 30 s. The quick one is thought to take 2 s
    a click, which fits: it does class 1 in 4 s. Then 19.8 s are left for 4 clicks: 20 s are too much, again;
    after class 2, 15.8 s for 2 clicks are enough for all care.
    """
    segmenter, (careful, quick) = paced(Clock(), [5.0, 2.0], 96)
    labels = segmenter.segment(case_of(classes=3, clicks=2))
    assert labels[0, 0].tolist() == [1, 2, 3, 0]
    assert careful.done == [(0, 1), (2, 2)]
    assert quick.done == [(0, 2), (1, 2)]
    assert segmenter.warnings == ("from class 1 on with effort 1, to stay within the time limit",)


def test_a_measured_time_replaces_the_guess() -> None:
    """The second effort turns out as slow as the first, so the third does class 2, in 1 s instead of 4.

    That leaves 12.8 s for the last 2 clicks: enough for all care.
    """
    segmenter, workers = paced(Clock(), [5.0, 5.0, 0.5], 96)
    segmenter.segment(case_of(classes=3, clicks=2))
    assert workers[1].done == [(0, 2)]
    assert workers[2].done == [(1, 2)]
    assert workers[0].done == [(0, 1), (2, 2)]


def test_further_clicks_that_cost_less_leave_more_time_to_the_first() -> None:
    """A further click takes a quarter: six first clicks and ten further ones, 8.5 first clicks in all runs.

    Limit 85 s: two classes with one click have 20 s, of which 16 are planned with. 5 s for the first click,
    to know its time, leave 11, and 6 after the first class: enough for 5. Were further clicks as dear as
    first ones, 8.5 s would be planned with.
    """
    segmenter, (careful, quick) = paced(Clock(), [5.0, 1.0], 85, further=0.25)
    segmenter.segment(case_of(classes=2, clicks=1))
    assert careful.done == [(0, 1), (0, 1), (1, 1)]
    assert not quick.done


def test_further_clicks_are_foretold_at_their_own_price() -> None:
    """5 clicks cost 2 first ones: 20 s of 85, 16 planned. 5 s to know the time leave 11, and 5 are foretold.

    Four further clicks at a first one's price would be foretold to take 20 s.
    """
    segmenter, (careful, quick) = paced(Clock(), [5.0, 1.0], 85, further=0.25)
    segmenter.segment(case_of(classes=1, clicks=5))
    assert careful.done == [(0, 1), (0, 5)]
    assert not quick.done
    assert segmenter.warnings == ()


def test_too_late_all_the_same() -> None:
    """6 s for the run, and finding out took 10: the careful answer is there, so no other is tried."""
    segmenter, (careful, quick) = paced(Clock(), [10.0, 8.0], 96)
    labels = segmenter.segment(case_of(classes=1, clicks=1))
    assert labels.any()
    assert careful.done == [(0, 1), (0, 1)]
    assert not quick.done
    assert segmenter.warnings == ("took 20.0 s; this run's share of the time limit is 6.0 s",)


def test_the_quickest_is_taken_when_none_is_in_time() -> None:
    """12 s for the run, 10 of them gone: one more careful click takes 10 s, two quick ones maybe 8."""
    segmenter, (careful, quick) = paced(Clock(), [10.0, 8.0], 96)
    segmenter.segment(case_of(classes=1, clicks=2))
    assert careful.done == [(0, 1)]
    assert quick.done == [(0, 2)]
    assert "effort 1" in segmenter.warnings[0]
    assert segmenter.warnings[1] == "took 26.0 s; this run's share of the time limit is 12.0 s"


def test_loading_counts_for_the_first_case_only() -> None:
    """Of 9.6 s that are planned with, 9 were spent on loading."""
    segmenter, (careful, quick) = paced(Clock(), [1.0, 0.1], 96, spent_s=9.0)
    segmenter.segment(case_of(classes=1, clicks=2))
    assert quick.done == [(0, 2)]
    segmenter.segment(case_of(classes=1, clicks=2))
    assert quick.done == [(0, 2)]
    assert segmenter.warnings == ()
    assert careful.done == [(0, 1), (0, 2)]


class Large(Worker):
    """Takes a second for a first click, and fifty on a large image."""

    def set_image(self, case: Case) -> None:
        """Its size tells."""
        self.seconds = 50.0 if case.image.shape[0] > 4 else 1.0


def test_small_cases_tell_nothing_of_a_large_one() -> None:
    """2 classes of 2 clicks have 24 s of 96, and the first click takes 50: both classes go the quick way.

    By the 81 clicks on small images before, two classes would have been foretold to take 4 s.
    """
    clock = Clock()
    careful, quick = Large(clock, 1.0), Worker(clock, 0.1)
    efforts = [Effort("careful", lambda: careful), Effort("quick", lambda: quick)]
    segmenter = PacedSegmenter(efforts, 96, clock=clock)
    for _ in range(20):
        segmenter.segment(replace(case_of(classes=4, clicks=1), image=IMAGE.copy()))
    assert not quick.done
    large = replace(case_of(classes=2, clicks=2), image=np.resize(IMAGE, (8, 4, 4)))
    careful.done.clear()
    segmenter.segment(large)
    assert careful.done == [(0, 1)]
    assert quick.done == [(0, 2), (1, 2)]
    assert segmenter.warnings[0] == "from class 1 on with quick, to stay within the time limit"


def test_the_rounds_of_a_case_are_timed_once() -> None:
    """The same image again: what was measured holds."""
    segmenter, (careful,) = paced(Clock(), [1.0], 96)
    for clicks in (1, 2, 3):
        segmenter.segment(case_of(classes=1, clicks=clicks))
    assert careful.done == [(0, 1), (0, 1), (0, 2), (0, 3)]


def test_a_box_counts_as_a_click() -> None:
    segmenter, (careful,) = paced(Clock(), [1.0], 96)
    segmenter.segment(Case("CT_x", IMAGE, (1, 1, 1), boxes=(Box((0, 0, 0), (1, 1, 1)),)))
    assert careful.done == [(0, 1), (0, 1)]
    assert segmenter.warnings == ()


class Picky(Worker):
    """Answers foreground clicks alone, as most strategies do; what else there is takes no time."""

    def segment_class(self, index: int, prompts: ClassPrompts) -> Segment:
        """Empty, or takes its time."""
        if not any(click.positive for click in prompts[0]):
            return empty_segment((4, 4, 4))
        return super().segment_class(index, prompts)


def test_a_class_with_nothing_to_start_from_tells_nothing_of_the_time() -> None:
    """3 classes of a click have 18 s, planned 14.4 s; that the first needs none does not make others quick.

    The second class is timed, in 10 s, so the 4.4 s left are too few for either of two: the quick one is
    thought to take 4 s a click and takes 1.
    """
    clock = Clock()
    careful, quick = Picky(clock, 10.0), Picky(clock, 1.0)
    efforts = [Effort("careful", lambda: careful), Effort("quick", lambda: quick)]
    segmenter = PacedSegmenter(efforts, 96, clock=clock)
    background = (Click((1, 1, 1), False),)
    case = Case("CT_x", IMAGE, (1, 1, 1), clicks=(background, (CLICK,), (CLICK,)))
    labels = segmenter.segment(case)
    assert labels[0, 0].tolist() == [0, 2, 3, 0]
    assert careful.done == [(1, 1)]
    assert quick.done == [(1, 1), (2, 1)]
    assert segmenter.warnings == ("from class 1 on with quick, to stay within the time limit",)


def test_an_effort_is_loaded_when_needed() -> None:
    clock, loaded = Clock(), []

    def load(name: str, seconds: float) -> Callable[[], CaseSegmenter]:
        return lambda: (loaded.append(name), Worker(clock, seconds))[1]

    efforts = [Effort("a", load("a", 1.0)), Effort("b", load("b", 0.1))]
    segmenter = PacedSegmenter(efforts, 96, clock=clock)
    segmenter.segment(case_of(1, 1))
    assert loaded == ["a"]


@pytest.mark.parametrize("limit_s", [0, -1, float("nan")])
def test_limits_are_above_0(limit_s: float) -> None:
    with pytest.raises(ValueError, match="a time limit above 0 seconds"):
        PacedSegmenter([Effort("a", lambda: Worker(Clock(), 1))], limit_s)


def test_no_efforts() -> None:
    with pytest.raises(ValueError, match="one effort or more"):
        PacedSegmenter([], 96)


def test_no_prompts() -> None:
    segmenter, _ = paced(Clock(), [1.0], 96)
    with pytest.raises(ValueError, match="neither clicks nor boxes"):
        segmenter.segment(Case("CT_x", IMAGE, (1, 1, 1)))


def test_in_time_the_answer_is_the_plain_one(
    make_engine: Callable[..., Engine], blobs: Callable[..., NDArray[np.float32]]
) -> None:
    """The click that is timed first leaves no trace."""
    image = blobs(20, 22, 24)
    case = Case("MR_x", (255 * (image > 0)).astype(np.uint8), (1, 1, 1))
    asked = replace(case, clicks=((Click((9, 9, 9), True), Click((2, 2, 2), False)), (CLICK,)))

    def load() -> CaseSegmenter:
        return CaseSegmenter(Predictor(make_engine(additions=True), "reference", 16))

    segmenter = PacedSegmenter([Effort("all", load)], 1e6)
    np.testing.assert_array_equal(segmenter.segment(asked), load().segment(asked))
