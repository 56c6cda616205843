"""Answers in time: less care for the rest of a case that would come too late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from GSMedSegLib.case_segmenter import CaseSegmenter, ClassPrompts, prompts_of
from GSMedSegLib.challenge import CLICK_ROUNDS
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case
from GSMedSegLib.segment import Segment

GUESSED_SHARE = 0.4
"""Of an effort's time that the next one is thought to take, until it was timed."""

PLANNED_SHARE = 0.8
"""Of the time that is planned with; the rest is for reading, painting and writing."""


@dataclass
class Effort:
    """One way to answer, with more or less care.

    Attributes:
        name: for the warning, such as "bf16, half resolution".
        load: makes the segmenter, when it is needed first.
        seconds: that it has taken so far, on the image at hand.
        work: that it has done so far, in first clicks.
    """

    name: str
    load: Callable[[], CaseSegmenter]
    seconds: float = 0.0
    work: float = 0.0

    @cached_property
    def segmenter(self) -> CaseSegmenter:
        """The segmenter."""
        return self.load()

    @property
    def seconds_per_click(self) -> float:
        """Of a first click, measured so far; NaN before the first."""
        return self.seconds / self.work if self.work else math.nan


class PacedSegmenter:
    """Segments cases within a time limit; a `challenge.Segmenter`.

    The challenge limits all runs of a case together; a run's share goes by its clicks. The time of each class
    is foretold from those before it on the same image, and a case that would come too late goes on with less
    effort.

    Args:
        efforts: with most care first.
        limit_s: seconds per class for all runs of a case: one with a box, then one for each click round,
            which gets the earlier clicks too.
        further: what a further click takes, as a share of a first one's time.
        spent_s: seconds gone before the first case, as for loading; they count for it.
        clock: seconds.

    Raises:
        ValueError: no efforts, or a limit that is not above 0.
    """

    def __init__(
        self,
        efforts: Sequence[Effort],
        limit_s: float,
        further: float = 1.0,
        spent_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not efforts:
            raise ValueError("expected one effort or more; got none")
        if not limit_s > 0:
            raise ValueError(f"expected a time limit above 0 seconds; got {limit_s:g}")
        self.warnings: tuple[str, ...] = ()
        self._efforts = tuple(efforts)
        self._limit_s = limit_s
        self._further = further
        self._spent_s = spent_s
        self._clock = clock
        self._image: NDArray[np.uint8] | None = None

    def segment(self, case: Case) -> LabelArray:
        """Segment a case; `warnings` tells afterwards what was done with less effort and what came late.

        Returns:
            (K, J, I) labels, class c as c.

        Raises:
            ValueError: as `CaseSegmenter.segment`.
        """
        began, self._spent_s = self._clock() - self._spent_s, 0.0
        prompts, warnings = prompts_of(case), list[str]()
        costs = [self._work(len(clicks)) for clicks, _ in prompts]
        of_all_runs = sum(self._work(clicks) for clicks in range(CLICK_ROUNDS + 1))
        share_s = self._limit_s * sum(costs) / of_all_runs
        deadline = began + PLANNED_SHARE * share_s

        if case.image is not self._image:  # another one may take far longer
            self._image = case.image
            for effort in self._efforts:
                effort.seconds = effort.work = 0.0
        self._efforts[0].segmenter.set_image(case)
        known: int | None = None
        if not self._efforts[0].work:
            starts = (
                n for n, (clicks, box) in enumerate(prompts) if box or any(c.positive for c in clicks[:1])
            )
            known = next(starts, 0)
            clicks, box = prompts[known]
            self._timed(self._efforts[0], case, known, (clicks[:1], box))  # its window is kept: not in vain

        def segments() -> Iterator[Segment]:
            for n, class_prompts in enumerate(prompts):
                effort = self._plan(deadline - self._clock(), sum(costs[n:]), answered=int(n == known))
                if effort is not self._efforts[0] and not warnings:
                    warnings.append(
                        f"from class {n + 1} on with {effort.name}, to stay within the time limit"
                    )
                yield self._timed(effort, case, n, class_prompts)

        labels = self._efforts[0].segmenter.paint(segments())
        taken_s = self._clock() - began
        if taken_s > share_s:
            warnings.append(f"took {taken_s:.1f} s; this run's share of the time limit is {share_s:.1f} s")
        self.warnings = tuple(warnings)
        return labels

    def _work(self, clicks: int) -> float:
        """What the clicks of a class cost, in first clicks; none is a box, which costs as much."""
        return 1 + self._further * (max(1, clicks) - 1)

    def _plan(self, left_s: float, work: float, answered: int) -> Effort:
        """The most careful effort that is foretold to be in time, else the quickest.

        Args:
            left_s: until the deadline.
            work: still to be done, in first clicks.
            answered: how many first clicks of it the first effort has answered already.
        """
        per_click_s = self._efforts[0].seconds_per_click
        foretold_s = list[float]()
        for effort in self._efforts:
            per_click_s = effort.seconds_per_click if effort.work else GUESSED_SHARE * per_click_s
            foretold_s.append(per_click_s * (work if foretold_s else work - answered))
            if foretold_s[-1] <= left_s:
                return effort
        return self._efforts[foretold_s.index(min(foretold_s))]

    def _timed(self, effort: Effort, case: Case, index: int, prompts: ClassPrompts) -> Segment:
        began = self._clock()
        effort.segmenter.set_image(case)
        segment = effort.segmenter.segment_class(index, prompts)
        if segment.logits.numel():  # one with nothing to start from takes no time, and tells of none
            effort.seconds += self._clock() - began
            effort.work += self._work(len(prompts[0]))
        return segment
