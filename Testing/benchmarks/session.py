"""What a person waits for, with the bundled weights: `python -m Testing.benchmarks.session`.

Two figures from one run. A further click inside the view beside the first one. And a session of five clicks
on an image of 256×256×128 voxels beside the seed method's with `vista3d132` (random weights, MONAI's own
inferer, a window of 128³ for every click in every round): the clicks are the challenge's own for the masks
of the bundled weights, and both sides get the same. Each side lives in a process of its own, and they take
turns. Writes `build/bench/session.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.challenge import CLICK_ROUNDS
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.simulation import next_click
from Testing.benchmarks.challenge import SIZES, WEIGHTS, Reference, new_network
from Testing.benchmarks.engine import Side, timed

SHAPE = (128, 256, 256)
SMALL_SHAPE = (32, 48, 48)
SPACING_MM = (1.0, 1.0, 1.0)

REPEATS = 5
"""First clicks; each is followed by `FURTHER`."""

FURTHER = (((0.0, 0.0, 0.7), True), ((0.0, -1.3, 0.0), False), ((-0.7, 0.0, 0.0), True))
"""Clicks after the first: where, in radii from the middle of the object, and whether on it."""


def make_case(shape: tuple[int, int, int]) -> Case:
    """A lumpy ball on noise, with a bay, so that one click is not enough."""
    rng = np.random.default_rng(0)
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    radii = _radii(shape)
    middle = [n // 2 for n in shape]
    place = [(axis - m) / r for axis, m, r in zip((k, j, i), middle, radii)]
    ball = place[0] ** 2 + place[1] ** 2 + place[2] ** 2 < 1
    bay = place[0] ** 2 + (place[1] - 0.8) ** 2 + (place[2] - 0.6) ** 2 < 0.4
    truth = ball & ~bay
    image = (100 + 60 * truth + rng.normal(0, 20, shape)).clip(0, 255).astype(np.uint8)
    return Case("made_up", image, SPACING_MM, truth.astype(np.uint8))


def _radii(shape: Sequence[int]) -> list[float]:
    """Of the ball, in voxels along each axis."""
    side = min(shape)
    return [side * 0.3, side * 0.4, side * 0.45]


class Compact:
    """The bundled weights with the adaptive strategy, as a user gets them.

    Args:
        settings: precision and shape, as JSON.
    """

    def __init__(self, settings: str) -> None:
        from GSMedSegLib.case_segmenter import CaseSegmenter
        from GSMedSegLib.memory import keep_freed_memory
        from GSMedSegLib.predictor import Predictor, load_engine

        keep_freed_memory()
        precision, shape = json.loads(settings)
        self.case = make_case(tuple(shape))
        self.engine = load_engine("compact", "cpu", precision)
        self.predictor = Predictor(self.engine)
        self.segmenter = CaseSegmenter(self.predictor)
        self.state = replace(self.case, truth=None)
        self.answer: LabelArray = np.zeros(self.case.image.shape, np.uint8)

    def clicks(self) -> tuple[list[float], list[float], int]:
        """Seconds of first clicks, of further ones inside the view, and how many left it."""
        first, further, outside = [], [], 0
        for _ in range(REPEATS):
            self.engine.forget()
            self.predictor.set_image(self.case.image)
            self.predictor.add_object("a")
            middle = tuple(n // 2 for n in self.case.image.shape)
            self.predictor.add_click("a", middle)
            first.append(timed(lambda: self.predictor.predict("a"))[0])
            for step, positive in FURTHER:
                radii = _radii(self.case.image.shape)
                self.predictor.add_click(
                    "a", [m + round(r * s) for m, r, s in zip(middle, radii, step)], positive
                )
                before = self.engine.encoded
                seconds = timed(lambda: self.predictor.predict("a"))[0]
                if self.engine.encoded == before:
                    further.append(seconds)
                else:
                    outside += 1
        return first, further, outside

    def next_round(self) -> tuple[float, Case]:
        """A click where the error is largest, and the seconds to the next mask; the case with its clicks."""
        assert self.case.truth is not None, "make_case made one"
        click = next_click(self.case.truth > 0, self.answer > 0)
        (row,) = self.state.clicks or ((),)
        self.state = replace(self.state, clicks=((*row, click),))
        seconds, self.answer = timed(lambda: self.segmenter.segment(self.state))
        return seconds, self.state

    def precision(self) -> str:
        """What "auto" is here."""
        return str(self.engine.precision).removeprefix("torch.")


def measure(folder: Path, shape: tuple[int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Both figures; the report."""
    from safetensors.torch import save_file

    save_file(new_network(SIZES[folder.name].width).state_dict(), folder / WEIGHTS)
    ours = Side(Compact, json.dumps([options.precision, shape]), options.threads)
    reference = Side(Reference, str(folder), options.threads)
    first, further, outside = ours("clicks")
    rounds: list[dict[str, float | None]] = []
    for number in range(1, CLICK_ROUNDS + 1):
        mine, case = ours("next_round")
        theirs = None
        if number <= options.reference_clicks:
            write_case(folder / f"{number}.npz", case)
            theirs = reference("next_round")[0]
        rounds.append({"ours_s": mine, "reference_s": theirs})
        said = "not measured" if theirs is None else f"{theirs:.2f} s"
        print(f"click {number}   ours {mine:.2f} s   MONAI {said}", flush=True)
    ours_s = sum(one["ours_s"] or 0 for one in rounds)
    reference_s = sum(one["reference_s"] or 0 for one in rounds)
    report = {
        "further_over_first": statistics.median(further) / statistics.median(first) if further else None,
        "first_click_s": statistics.median(first),
        "further_click_s": statistics.median(further) if further else None,
        "further_clicks": len(further),
        "further_clicks_that_left_the_view": outside,
        "session": reference_s / ours_s,
        "session_ours_s": ours_s,
        "session_reference_s": reference_s,
        "reference_clicks": options.reference_clicks,
        "rounds": rounds,
        "shape_kji": list(shape),
        "precision": ours("precision"),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    for side in (ours, reference):
        side.end()
    return report


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.session", description=__doc__)
    add = parser.add_argument
    add("--small", action="store_true", help="a small image and a narrow network beside, to try it out")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="ours; MONAI's is fp32")
    add("--threads", type=int, default=2)
    add(
        "--reference-clicks",
        type=int,
        choices=range(1, CLICK_ROUNDS + 1),
        default=CLICK_ROUNDS,
        help="stop MONAI after so many; the ratio, of its clicks to all five of ours, is then too low",
    )
    add("-o", "--output", type=Path, default=Path("build/bench/session.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / ("small" if options.small else "full")
        folder.mkdir()
        report = measure(folder, SMALL_SHAPE if options.small else SHAPE, options)
    share = report["further_over_first"]
    print(
        f"further click / first click {'–' if share is None else f'{share:.2f}'}; "
        f"five clicks {report['session_ours_s']:.1f} s, MONAI's {report['reference_clicks']} "
        f"{report['session_reference_s']:.1f} s, ratio {report['session']:.1f}"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
