"""Where objects overlap, the surer or the last one? `python -m Testing.benchmarks.merging`.

The challenge's clicks on several objects of a case at once, with the adaptive strategy, once with each way to
make one label map of them. The next clicks go by that label map, so a voxel that the wrong object took costs
clicks, too. Writes `build/accuracy/merging.json`; a run that is broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_segmenter import CaseSegmenter
from GSMedSegLib.case_source import CaseSource, Reading, find_sources
from GSMedSegLib.challenge import CaseResult
from GSMedSegLib.evaluation import ResultStore, evaluate
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.predictor import Predictor, load_engine
from GSMedSegLib.segment import Segment, paint_in_order
from Testing.benchmarks.scores import Scores, mean_of, mean_over
from Testing.benchmarks.series import Series

ROOT = Path(__file__).parents[2]


class LastWins(CaseSegmenter):
    """The adaptive strategy, its objects painted one over the other."""

    def paint(self, segments: Iterable[Segment]) -> LabelArray:
        """Labels; of several objects at a voxel the last."""
        several = list(segments)
        return paint_in_order(several, several[0].shape)


WAYS: dict[str, type[CaseSegmenter]] = {"surest": CaseSegmenter, "last": LastWins}
"""By name: `CaseSegmenter` is our own, in which the largest probability wins."""


def measure(
    sources: Sequence[CaseSource], folder: Path, weights: str, precision: str, objects: int
) -> dict[str, list[CaseResult]]:
    """Results of every case, by way."""
    predictor = Predictor(load_engine(weights, precision=precision))
    found = {}
    for name, way in WAYS.items():
        settings = {**Series("adaptive", weights, precision, False).settings(), "objects": str(objects)}
        store = ResultStore(folder / f"merging-{name}-{settings['code'][:12]}", {**settings, "way": name})
        with tqdm(sources, desc=name, unit="case", file=sys.stderr) as bar:
            found[name] = list(evaluate(way(predictor), bar, store, surfaces=False))
    return found


def summarise(results: Sequence[CaseResult], data_sets: Sequence[str]) -> dict[str, Any]:
    """Means of one way: over data sets, of each over its cases, of each over its objects."""
    by_set: dict[str, Scores] = {}
    for data_set in sorted(set(data_sets)):
        own = [result for result, name in zip(results, data_sets, strict=True) if name == data_set]
        by_set[data_set] = mean_over(own, surfaces=False)
    mean = mean_of(list(by_set.values()))
    return {"mean": mean.entry(), "datasets": {name: scores.entry() for name, scores in by_set.items()}}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.merging", description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path(os.environ.get("GSMEDSEG_DATA", ROOT.parent / "shared" / "data")),
        help="has dev/SET/CASE (default: %(default)s)",
    )
    add("--objects", type=int, default=8, help="of a case, at most (default: %(default)s)")
    add("--only", default="", metavar="TEXT", help="cases with this in their name SET_CASE")
    add("--weights", default="compact", metavar="NAME|FILE")
    add("--precision", default="fp32", choices=("auto", "fp32", "bf16", "fp16"))
    add("-o", "--output", type=Path, default=Path("build/accuracy"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    keep_freed_memory()
    sources = []
    for source in find_sources(options.data / "dev", reading=Reading(objects=options.objects)):
        if options.only in source.name:
            truth = source.load().case.truth
            if truth is not None and len(np.unique(truth)) > 2:
                sources.append(source)
    if not sources:
        print(
            "merging: error: no case with several objects was found; see --data and --only", file=sys.stderr
        )
        return 2
    results = measure(
        sources, options.output / "results", options.weights, options.precision, options.objects
    )
    data_sets = [source.files[0].parents[1].name for source in sources]
    report = {name: summarise(several, data_sets) for name, several in results.items()}
    objects = sum(len(result.classes) for result in results["surest"])
    print(f"{len(sources)} cases, {objects} objects\n{'':<20}" + "".join(f"{way:>34}" for way in WAYS))
    for row in (*sorted(set(data_sets)), "mean"):
        entries = [way["mean"] if row == "mean" else way["datasets"][row] for way in report.values()]
        cells = [" ".join(f"{dice:.3f}" for dice in e["dice"]) + f" {e['dsc_auc']:.3f}" for e in entries]
        print(f"{row:<20}" + "".join(f"{cell:>38}" for cell in cells))
    with atomic_path(options.output / "merging.json") as temporary:
        about = {"cases": len(sources), "objects": objects, "precision": options.precision, "ways": report}
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
