"""How good masks are per click on labelled volumes: `python -m Testing.benchmarks.accuracy`.

Clicks are simulated as the challenge does, without boxes, on one object at a time: up to four of every
case, evenly spaced over the ranks of their sizes. Our strategies and simple methods get the same. What was
measured is kept: a run that is broken off goes on where it was. The quickest look at one strategy is

    python -m Testing.benchmarks.accuracy --strategies adaptive --no-surfaces --precision bf16
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from GSMedSegLib.challenge import CaseResult
from GSMedSegLib.peers import PEERS
from GSMedSegLib.predictor import STRATEGIES
from Testing.benchmarks.objects import DevObject, find_objects
from Testing.benchmarks.scores import Summary, summarise
from Testing.benchmarks.series import Series, run

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write the files."""
    options = _options(arguments)
    folder = options.data / "dev"
    if not folder.is_dir():
        print(f"accuracy: error: no labelled cases at {folder}; set GSMEDSEG_DATA", file=sys.stderr)
        return 2
    began = time.perf_counter()
    objects = find_objects(folder, options.only)
    whole = options.strategies is None and options.methods is None
    names = [
        *(STRATEGIES if whole else options.strategies or ()),
        *(PEERS if whole else options.methods or ()),
    ]
    several = [Series(name, options.weights, options.precision, not options.no_surfaces) for name in names]
    summaries = _summaries(several, objects, options.output / "results", options.jobs)
    for name, summary in summaries.items():
        _print_table(name, summary, objects)
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path(os.environ.get("GSMEDSEG_DATA", ROOT.parent / "shared" / "data")),
        help="has dev/SET/CASE (default: %(default)s)",
    )
    add("--strategies", nargs="*", choices=STRATEGIES, metavar="NAME", help=f"of {', '.join(STRATEGIES)}")
    add("--methods", nargs="*", choices=PEERS, metavar="NAME", help=f"of {', '.join(PEERS)}")
    add("--only", default="", metavar="TEXT", help="cases with this in their name SET_CASE")
    add("--no-surfaces", action="store_true", help="Dice alone: quicker")
    add("--weights", default="compact", metavar="NAME|FILE")
    add("--precision", default="fp32", choices=("auto", "fp32", "bf16", "fp16"))
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    add("-o", "--output", type=Path, default=Path("build/accuracy"), help="folder (default: %(default)s)")
    return parser.parse_args(arguments)


def _summaries(
    several: Sequence[Series], objects: Sequence[DevObject], folder: Path, jobs: int
) -> dict[str, Summary]:
    results: dict[str, dict[str, CaseResult]] = {series.name: {} for series in several}
    with tqdm(total=len(several) * len(objects), unit="object", file=sys.stderr, disable=None) as bar:
        for series, found in run(several, objects, folder, jobs):
            results[series.name].update({result.name: result for result in found})
            for result in found:
                for error in result.errors:
                    bar.write(f"{series.name}: {result.name}: {error}", file=sys.stderr)
            bar.set_postfix_str(f"{series.name}, {found[0].name}")
            bar.update(len(found))
    return {s.name: summarise(objects, results[s.name], s.surfaces) for s in several}


def _print_table(name: str, summary: Summary, objects: Sequence[DevObject]) -> None:
    counts = {one.data_set: 0 for one in objects}
    for one in objects:
        counts[one.data_set] += 1
    rows = {
        **{data_set: (str(counts[data_set]), scores) for data_set, scores in summary.data_sets.items()},
        **{kind: ("", scores) for kind, scores in summary.modalities.items()},
        "mean over data sets": ("", summary.mean),
    }
    print(f"\n{name:<20} objects  Dice after click 1..5               DSC_AUC  NSD_AUC")
    for row, (count, scores) in rows.items():
        entry = scores.entry()
        surface = "" if entry["nsd_auc"] is None else f"{entry['nsd_auc']:>9.3f}"
        curve = "  ".join(f"{dice:.3f}" for dice in scores.dice)
        print(f"{row:<20} {count:>7}  {curve}  {entry['dsc_auc']:>7.3f}{surface}")


if __name__ == "__main__":
    raise SystemExit(main())
