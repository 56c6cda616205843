"""Dice per click on labelled volumes: `python -m Testing.benchmarks.accuracy`, or `make accuracy`.

Clicks are simulated as the challenge does. From every case up to four objects are taken, evenly spaced over
the ranks of their sizes. Writes `build/accuracy/dev.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from GSMedSegLib.case_segmenter import CaseSegmenter
from GSMedSegLib.case_source import Reading, find_sources
from GSMedSegLib.challenge import play
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine

OBJECTS_PER_CASE = 4

ROOT = Path(__file__).parents[2]


def measure(
    data: Path, weights: str, strategy: str, precision: str, only: str = ""
) -> dict[str, list[list[float]]]:
    """Dice per click of every object by itself, by data set."""
    segmenter = CaseSegmenter(Predictor(load_engine(weights, precision=precision), strategy))
    scores: dict[str, list[list[float]]] = {}
    sources = find_sources(data / "dev", reading=Reading(objects=OBJECTS_PER_CASE))
    for source in tqdm([s for s in sources if only in s.name], unit="case", file=sys.stderr):
        case = source.load().case
        assert case.truth is not None, "case folders have labels"
        for label in np.unique(case.truth)[1:]:
            alone = replace(case, truth=(case.truth == label).astype(np.uint8))
            rounds = play(segmenter, alone, surfaces=False).result.click_rounds
            data_set = source.files[0].parents[1].name
            scores.setdefault(data_set, []).append([r.mean_dice for r in rounds])
    return scores


def main() -> int:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.accuracy", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("GSMEDSEG_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--strategy", choices=STRATEGIES, default="adaptive")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--only", default="", help="cases whose path contains this text")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/accuracy/dev.json"))
    options = parser.parse_args()
    if not (options.data / "dev").is_dir():
        print(
            f"accuracy: error: no labelled cases at {options.data / 'dev'}; set GSMEDSEG_DATA",
            file=sys.stderr,
        )
        return 2
    keep_freed_memory()
    scores = measure(options.data, options.weights, options.strategy, options.precision, options.only)
    means = {name: np.mean(curves, axis=0).round(4).tolist() for name, curves in scores.items()}
    overall = np.mean(list(means.values()), axis=0).round(4).tolist()
    print(f"{'data set':<20} objects  Dice after click 1..5")
    for name, curve in means.items():
        print(f"{name:<20} {len(scores[name]):>7}  " + "  ".join(f"{d:.3f}" for d in curve))
    print(f"{'mean over data sets':<28}  " + "  ".join(f"{d:.3f}" for d in overall))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"datasets": means, "mean": overall}, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
