"""How good masks are per click on labelled volumes: `python -m Testing.benchmarks.accuracy`.

Clicks are simulated as the challenge does, without boxes, on one object at a time: up to four of every
case, evenly spaced over the ranks of their sizes. Our strategies and simple methods get the same. Writes
`dev.json`, `peers.json` and `curves.png`. What was measured is kept: a run that is broken off goes on where
it was. A run of a part, such as the quickest look at one strategy,

    python -m Testing.benchmarks.accuracy --strategies adaptive --no-surfaces --precision bf16

writes its files to the folder `part`, and so replaces none of the whole.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from GSMedSegLib import __version__
from GSMedSegLib.adaptive import DEFAULT_ROI
from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.challenge import CaseResult
from GSMedSegLib.checkpoint import read_checkpoint, sha256_of
from GSMedSegLib.model_store import resolve
from GSMedSegLib.peers import PEERS
from GSMedSegLib.predictor import STRATEGIES
from Testing.benchmarks.curves import draw_curves
from Testing.benchmarks.objects import DevObject, find_objects
from Testing.benchmarks.scores import Summary, mean_over, summarise
from Testing.benchmarks.series import Series, run
from Testing.benchmarks.tables import by_data_set, overview, replace_blocks, text_table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """What a run found.

    Attributes:
        objects: that were clicked on.
        results: of every object by the name of its source, by strategy or method.
        surfaces: whether surface Dice was measured.
    """

    objects: list[DevObject]
    results: dict[str, dict[str, CaseResult]]
    surfaces: bool

    @property
    def summaries(self) -> dict[str, Summary]:
        """By strategy or method."""
        return {
            name: summarise(self.objects, results, self.surfaces) for name, results in self.results.items()
        }

    @property
    def counts(self) -> Counter[str]:
        """Objects of each data set."""
        return Counter(one.data_set for one in self.objects)

    @property
    def errors(self) -> list[str]:
        """What went wrong."""
        return [
            f"{name}: {result.name}: {error}"
            for name, results in self.results.items()
            for result in results.values()
            for error in result.errors
        ]

    def larger_than(self, roi: int) -> dict[str, Any]:
        """Scores of the objects whose longest side is larger, in voxels: the mean over them."""
        names = [one.source.name for one in self.objects if one.longest_side > roi]
        entry: dict[str, Any] = {"roi": roi, "count": len(names)}
        for series, results in self.results.items() if names else ():
            if series in STRATEGIES:
                scores = mean_over([results[name] for name in names], self.surfaces).entry()
                entry[series] = {key: scores[key] for key in ("dsc_auc", "nsd_auc")}
        return entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write the files."""
    options = _options(arguments)
    folder = options.data / "dev"
    if not folder.is_dir():
        print(f"accuracy: error: no labelled cases at {folder}; set GSMEDSEG_DATA", file=sys.stderr)
        return 2
    began = time.perf_counter()
    named = options.strategies is not None or options.methods is not None
    strategies = (options.strategies or []) if named else list(STRATEGIES)
    methods = (options.methods or []) if named else list(PEERS)
    surfaces = not options.no_surfaces
    series = [Series(name, options.weights, options.precision, surfaces) for name in (*strategies, *methods)]
    objects = find_objects(folder, options.only)
    measured = Measured(objects, _play(series, objects, options.output / "results", options.jobs), surfaces)
    for name, summary in measured.summaries.items():
        print(f"\n{text_table(name, summary, measured.counts)}")
    whole = not named and not options.only and surfaces
    target = options.output if whole else options.output / "part"
    _write(target, measured, _settings(options))
    for file in options.docs:
        _document(file, target, measured)
    print(f"\n{target}, after {time.perf_counter() - began:.0f} s")
    return 1 if measured.errors else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="Testing.benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    add(
        "--docs",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE.md",
        help="put the tables between the marks in these, and the curves where they are shown",
    )
    return parser.parse_args(arguments)


def _play(
    several: Sequence[Series], objects: Sequence[DevObject], folder: Path, jobs: int
) -> dict[str, dict[str, CaseResult]]:
    results: dict[str, dict[str, CaseResult]] = {series.name: {} for series in several}
    with tqdm(total=len(several) * len(objects), unit="object", file=sys.stderr) as bar:
        for series, found in run(several, objects, folder, jobs):
            results[series.name].update({result.name: result for result in found})
            bar.set_postfix_str(f"{series.name}, {found[0].name}")
            bar.update(len(found))
    return results


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """What made the figures."""
    import torch

    return {
        "version": __version__,
        "weights": options.weights,
        "weights SHA-256": sha256_of(resolve(options.weights)),
        "precision": options.precision,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _write(folder: Path, measured: Measured, settings: Mapping[str, str]) -> None:
    """`dev.json` with our strategies, `peers.json` with `adaptive` beside the methods, and the curves."""
    summaries = measured.summaries
    entries = {name: summary.entry() for name, summary in summaries.items()}
    about = {
        "settings": settings,
        "objects": {"count": len(measured.objects), "datasets": dict(sorted(measured.counts.items()))},
        "errors": measured.errors,
    }
    ours = {name: entry for name, entry in entries.items() if name in STRATEGIES}
    methods = {name: entry for name, entry in entries.items() if name not in STRATEGIES}
    folder.mkdir(parents=True, exist_ok=True)
    if ours:
        larger = measured.larger_than(_trained_roi(settings["weights"]))
        _write_json(folder / "dev.json", {**about, "strategies": ours, "larger_than_roi": larger})
    if methods:
        beside = {name: entry for name, entry in ours.items() if name == "adaptive"}
        _write_json(folder / "peers.json", {**about, "methods": {**beside, **methods}})
    draw_curves(folder / "curves.png", summaries)


def _trained_roi(weights: str) -> int:
    """Voxels per side that the weights see at once."""
    return int(read_checkpoint(resolve(weights)).metadata.get("roi", DEFAULT_ROI))


def _write_json(path: Path, entry: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def _document(file: Path, folder: Path, measured: Measured) -> None:
    """The tables into a document, and the curves beside it as NAME.png where it shows them."""
    summaries = measured.summaries
    blocks = {"overview": overview(summaries)}
    if "adaptive" in summaries:
        others = {name: summary for name, summary in summaries.items() if name != "adaptive"}
        blocks["data sets"] = by_data_set(summaries["adaptive"], measured.counts, others)
        blocks["scores"] = by_data_set(summaries["adaptive"], measured.counts, {})
    picture = file.with_suffix(".png")
    if f"({picture.name})" in file.read_text(encoding="utf-8"):
        with atomic_path(picture) as temporary:
            temporary.write_bytes((folder / "curves.png").read_bytes())
    if not replace_blocks(file, blocks):
        raise ValueError(
            f"{file} has no mark such as <!-- accuracy: overview -->; add it where the table goes"
        )


if __name__ == "__main__":
    raise SystemExit(main())
