"""Dice per click on labelled volumes: `python -m Testing.benchmarks.accuracy`, or `make accuracy`.

Clicks are simulated as the challenge does. From every case up to four objects are taken, evenly spaced over
the ranks of their sizes. Writes `build/accuracy/dev.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from GSMedSegLib.evaluation import dice_per_click
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine
from GSMedSegLib.volume_io import read_labelmap, read_volume

OBJECTS_PER_CASE = 4
SMALLEST_OBJECT = 100
"""Voxels; smaller labels are mostly pieces cut off by the image's border."""

ROOT = Path(__file__).parents[2]


def choose_labels(labels: np.ndarray, count: int = OBJECTS_PER_CASE) -> list[int]:
    """Up to `count` labels of at least `SMALLEST_OBJECT` voxels, evenly spaced by rank of size."""
    values, voxels = np.unique(labels[labels > 0], return_counts=True)
    large = [(int(n), int(v)) for v, n in zip(values, voxels, strict=True) if n >= SMALLEST_OBJECT]
    ranked = [v for _, v in sorted(large)]
    if len(ranked) <= count:
        return ranked
    return [ranked[round(n)] for n in np.linspace(0, len(ranked) - 1, count)]


def measure(
    data: Path, weights: str, strategy: str, precision: str, only: str = ""
) -> dict[str, list[list[float]]]:
    """Dice per click of every object, by data set."""
    engine = load_engine(weights, precision=precision)
    predictor = Predictor(engine, strategy)
    cases = [
        c for c in sorted((data / "dev").glob("*/*")) if (c / "label.nii.gz").exists() and only in str(c)
    ]
    scores: dict[str, list[list[float]]] = {}
    for case in tqdm(cases, unit="case", file=sys.stderr):
        image, labels = read_volume(case / "image.nii.gz"), read_labelmap(case / "label.nii.gz").array
        predictor.set_image(image.array, image.ijk_to_ras)
        for label in choose_labels(labels):
            predictor.clear()
            curve = dice_per_click(predictor, str(label), labels == label)
            scores.setdefault(case.parent.name, []).append(curve)
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
