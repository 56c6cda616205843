"""A case of the challenge, ours beside the seed method: `python -m Testing.benchmarks.challenge`.

The same `vista3d132` with random weights, the same case files, float32, windows of 128³ voxels in a larger
image. The clicks are made beforehand, so that both sides have the same work, and every click has a window of
its own. Each side lives in a process of its own; the two take turns, round by round. Neither loading the
network nor reading files is timed. Nor is the box round, which counts as 0 s for both: the seed makes up a
click there, and ours has nothing to do. Writes `build/bench/challenge.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.challenge import CLICK_ROUNDS, play
from GSMedSegLib.npz import Case, read_case, write_case
from GSMedSegLib.prompts import Box
from Testing.benchmarks.engine import Side, faster, timed

WEIGHTS = "weights.safetensors"

UNDECIDED = 1e-5
"""A logit this small beside the case's largest has no sign that float32 could tell."""

NO_CLICK_LOGIT = -9999
"""MONAI's answer for a window without clicks, which is no measure of the others."""


class Size(NamedTuple):
    """How large network and case are; both sides find it by the name of their folder."""

    roi: int
    width: int


SIZES = {"full": Size(128, 48), "small": Size(32, 8)}


@dataclass(frozen=True)
class Answer:
    """What a side says in a round.

    Attributes:
        labels: (K, J, I).
        encoded: windows that went through the encoder up to this round.
        undecided: (K, J, I) bool, where a logit is zero within rounding; None where a side does not tell.
    """

    labels: np.ndarray
    encoded: int
    undecided: np.ndarray | None = None


class Reference:
    """The seed's way: every click of every class has its window encoded, in every round anew."""

    def __init__(self, folder: str) -> None:
        from safetensors.torch import load_file

        self.folder, self.roi = Path(folder), SIZES[Path(folder).name].roi
        self.network = new_network(SIZES[self.folder.name].width)
        self.network.load_state_dict(load_file(self.folder / WEIGHTS))
        self.round = self.encoded = 0

    def next_round(self) -> tuple[float, Answer]:
        self.round += 1
        with np.load(self.folder / f"{self.round}.npz", allow_pickle=True) as archive:  # our own
            file = dict(archive)
        seconds, (labels, logits) = timed(lambda: self.segment(file))
        self.encoded += sum(len(row["fg"]) + len(row["bg"]) for row in file["clicks"])
        undecided = np.zeros(labels.shape, bool)
        for of_class in logits:
            size = np.abs(np.where(of_class > NO_CLICK_LOGIT / 2, of_class, 0))  # NaN is no size either
            undecided |= np.abs(of_class) <= UNDECIDED * size.max()
        return seconds, Answer(labels, self.encoded, undecided)

    def segment(self, file: dict[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels, the last class on top, and the logits of every class."""
        from monai.apps.vista3d.inferer import point_based_window_inferer
        from monai.transforms import ScaleIntensityRangePercentiles

        scale = ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)
        image = torch.from_numpy(np.asarray(scale(file["imgs"][None].astype(np.float32))))
        labels, all_logits = np.zeros(file["imgs"].shape, np.uint8), []
        for number, row in enumerate(file["clicks"], start=1):
            with torch.no_grad():
                logits = point_based_window_inferer(
                    image[None],
                    (self.roi,) * 3,
                    self.network,
                    torch.tensor([row["fg"] + row["bg"]]),
                    torch.tensor([[1] * len(row["fg"]) + [0] * len(row["bg"])]),
                    center_only=True,
                    transpose=True,
                    with_coord=True,
                    mode="gaussian",
                )
            all_logits.append(np.asarray(logits)[0, 0])
            labels[all_logits[-1] > 0] = number
        return labels, all_logits


class Ours:
    """The same through `CaseSegmenter`, as an evaluation runs it: one image for all rounds of a case."""

    def __init__(self, folder: str) -> None:
        from GSMedSegLib.case_segmenter import CaseSegmenter
        from GSMedSegLib.memory import keep_freed_memory
        from GSMedSegLib.predictor import Predictor, load_engine

        self.folder = Path(folder)
        self.engine = load_engine(str(self.folder / WEIGHTS), "cpu", "fp32")
        self.segmenter = CaseSegmenter(Predictor(self.engine, "reference", SIZES[self.folder.name].roi))
        self.image: np.ndarray | None = None
        self.round = 0
        keep_freed_memory()

    def next_round(self) -> tuple[float, Answer]:
        self.round += 1
        case = read_case(self.folder / f"{self.round}.npz")
        self.image = case.image if self.image is None else self.image
        same_image = replace(case, image=self.image)
        seconds, labels = timed(lambda: self.segmenter.segment(same_image))
        return seconds, Answer(labels, self.engine.encoded)


class Wandering:
    """A cheap segmenter: the truth, but for a ball that is wrong somewhere else in every round.

    Args:
        truth: (K, J, I).
        centres: voxel (k, j, i) in the middle of each class.
        radius: of the classes, in voxels.
    """

    STEPS = ((0.8, 0, 0), (0, -1.2, 0), (0, 0, 0.8), (-1.2, 0, 0), (0, 0.8, 0))
    """From the middle of a class to the ball's, in radii of the class."""

    def __init__(self, truth: np.ndarray, centres: Sequence[Sequence[int]], radius: int) -> None:
        self.truth, self.centres, self.radius = truth, centres, radius
        self.cases: list[Case] = []

    def segment(self, case: Case) -> np.ndarray:
        self.cases.append(case)
        labels = self.truth.copy()
        step = np.array(self.STEPS[min(len(self.cases), CLICK_ROUNDS) - 1])
        for number, centre in enumerate(self.centres, start=1):
            ball = in_ball(labels.shape, centre + (step * self.radius).round(), self.radius * 3 // 8)
            labels[ball] = np.where(self.truth[ball] == number, 0, number)
        return labels


def in_ball(shape: tuple[int, ...], centre: Sequence[float] | np.ndarray, radius: int) -> np.ndarray:
    """(K, J, I) bool."""
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    squares = [(axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)]
    return np.asarray(sum(squares) <= radius**2)


def new_network(width: int) -> Any:
    """MONAI's `vista3d132` with fixed random weights; the public one is 48 wide."""
    from monai.networks.nets.vista3d import vista3d132

    torch.manual_seed(0)
    return vista3d132(encoder_embed_dim=width).eval()


def prepare(folder: Path, classes: int) -> None:
    """Write weights, and the files of the five click rounds of a made-up case as 1.npz to 5.npz."""
    from safetensors.torch import save_file

    roi, width = SIZES[folder.name]
    save_file(new_network(width).state_dict(), folder / WEIGHTS)
    shape, radius = (roi * 5 // 4, roi * 11 // 8, roi * 3 // 2), roi // 6
    middles = [(shape[0] // 2, shape[1] // 2, shape[2] * n // (classes + 1)) for n in range(1, classes + 1)]
    truth = np.zeros(shape, np.uint8)
    for number, middle in enumerate(middles, start=1):
        truth[in_ball(shape, middle, radius)] = number
    image = np.random.default_rng(0).integers(0, 128, shape, np.uint8) + np.uint8(100) * (truth > 0)
    k, j, i = (np.array(side) for side in zip(*middles, strict=True))
    boxes = tuple(
        Box((a - radius, b - radius, c - radius), (a + radius, b + radius, c + radius))
        for a, b, c in zip(k, j, i, strict=True)
    )
    segmenter = Wandering(truth, middles, radius)
    play(segmenter, Case("made_up", image, (1.0, 1.0, 1.0), truth=truth, boxes=boxes))
    for number, case in enumerate(segmenter.cases):
        if number > 0:
            write_case(folder / f"{number}.npz", case)


def compare(folder: Path, threads: int) -> dict[str, Any]:
    """Let both sides go through the rounds; the report."""
    reference, ours = Side(Reference, str(folder), threads), Side(Ours, str(folder), threads)
    rounds: list[dict[str, float]] = []
    within = beyond = 0
    for number in range(1, CLICK_ROUNDS + 1):
        seconds, (theirs, mine) = faster(1, "next_round", reference, ours)
        rounds.append({"reference_s": seconds[0], "ours_s": seconds[1]})
        wrong = theirs.labels != mine.labels
        within += int(np.count_nonzero(wrong & theirs.undecided))
        beyond += int(np.count_nonzero(wrong & ~theirs.undecided))
        print(
            f"round {number}   MONAI {seconds[0]:8.2f} s   ours {seconds[1]:8.2f} s   "
            f"{np.count_nonzero(wrong)} of {np.count_nonzero(theirs.labels)} labelled voxels differ",
            flush=True,
        )
    total = {side: sum(one[side] for one in rounds) for side in rounds[0]}
    return {
        "six_rounds": total["reference_s"] / total["ours_s"],
        "masks_equal": beyond == 0,
        "voxels_that_differ": {"within_rounding": within, "beyond": beyond},
        "seconds": {**total, "rounds": rounds},
        "windows_encoded": {"reference": theirs.encoded, "ours": mine.encoded},
        "memory": {"reference_gib": reference.end(), "ours_gib": ours.end()},
        "threads": threads,
        "torch": torch.__version__,
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.challenge", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small network and image, to try it out")
    parser.add_argument("--classes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/challenge.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / ("small" if options.small else "full")
        folder.mkdir()
        prepare(folder, options.classes)
        report = compare(folder, options.threads)
    windows, differ = report["windows_encoded"], report["voxels_that_differ"]
    print(
        f"six_rounds {report['six_rounds']:.1f} x; "
        f"windows encoded: {windows['reference']} and {windows['ours']}; "
        f"voxels that differ: {differ['within_rounding']} within rounding, {differ['beyond']} beyond"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
