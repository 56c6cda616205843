"""Scores of a series: means over objects, data sets and modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from GSMedSegLib.challenge import CaseResult
from GSMedSegLib.metrics import auc
from Testing.benchmarks.objects import DevObject


@dataclass(frozen=True)
class Scores:
    """A mean.

    Attributes:
        dice: after clicks 1 to 5, 0..1.
        nsd: surface Dice after clicks 1 to 5, 0..1; None where it was not measured.
    """

    dice: tuple[float, ...]
    nsd: tuple[float, ...] | None

    @property
    def dsc_auc(self) -> float:
        """Area under the Dice curve, 0..4."""
        return auc(self.dice)

    @property
    def nsd_auc(self) -> float | None:
        """Area under the surface Dice curve, 0..4."""
        return None if self.nsd is None else auc(self.nsd)

    def entry(self) -> dict[str, Any]:
        """As the files have it."""
        return {
            "dice": [_rounded(value) for value in self.dice],
            "nsd": None if self.nsd is None else [_rounded(value) for value in self.nsd],
            "dsc_auc": _rounded(self.dsc_auc),
            "nsd_auc": _rounded(self.nsd_auc),
        }


@dataclass(frozen=True)
class Summary:
    """Of one series.

    Attributes:
        mean: over data sets.
        data_sets: each the mean over its objects.
        modalities: each the mean over its data sets.
    """

    mean: Scores
    data_sets: dict[str, Scores]
    modalities: dict[str, Scores]

    def entry(self) -> dict[str, Any]:
        """As the files have it."""
        return {
            "mean": self.mean.entry(),
            "datasets": {name: scores.entry() for name, scores in self.data_sets.items()},
            "modalities": {name: scores.entry() for name, scores in self.modalities.items()},
        }


def summarise(objects: Sequence[DevObject], results: Mapping[str, CaseResult], surfaces: bool) -> Summary:
    """Means of a series.

    Args:
        objects: at least one.
        results: of every object, by the name of its source.
        surfaces: whether surface Dice was measured.
    """
    modality = {one.data_set: one.modality for one in objects}
    by_set = {
        name: mean_over([results[one.source.name] for one in objects if one.data_set == name], surfaces)
        for name in sorted(modality)
    }
    by_modality = {
        kind: mean_of([scores for name, scores in by_set.items() if modality[name] == kind])
        for kind in sorted(set(modality.values()))
    }
    return Summary(mean_of(list(by_set.values())), by_set, by_modality)


def mean_over(results: Sequence[CaseResult], surfaces: bool) -> Scores:
    """Mean over objects."""
    return mean_of(
        [
            Scores(
                tuple(r.mean_dice for r in result.click_rounds),
                tuple(r.mean_surface_dice for r in result.click_rounds) if surfaces else None,
            )
            for result in results
        ]
    )


def mean_of(several: Sequence[Scores]) -> Scores:
    """Mean of means, each with the same weight."""
    nsd = [scores.nsd for scores in several if scores.nsd is not None]
    return Scores(
        tuple(np.mean([scores.dice for scores in several], axis=0).tolist()),
        tuple(np.mean(nsd, axis=0).tolist()) if nsd else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
