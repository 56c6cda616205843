"""Rounds and scores by hand, then agreement with a literal reading of the challenge's script."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from GSMedSegLib import simulation
from GSMedSegLib.challenge import Played, failed_case, play
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.prompts import Box, Click
from Testing.benchmarks.challenge import main as benchmark
from Testing.lib import official_protocol

Labels = NDArray[Any]
Answer = Callable[[int], Labels]
"""The labels that are answered after so many click rounds."""

AREA_END, AREA_SIDE = math.sqrt(19) / 8, math.sqrt(18) / 2
"""Surface in mm² at a point of a bar of voxels with a spacing of (3, 1, 1) mm: at its ends, and between.

A point is where eight voxels meet. At the bar's ends one of them is inside and cut off by a facet of
(1·1, 3·1, 3·1) / 8; between them two are, behind a facet of (0, 3·1, 3·1) / 2.
"""


@dataclass
class Scripted:
    """Answers by the number of click rounds so far, whichever side asks, and remembers what it got."""

    answer: Answer
    cases: list[Case] = field(default_factory=list)

    def segment(self, case: Case) -> LabelArray:
        """For `play`."""
        self.cases.append(case)
        return self.answer(len(case.clicks[0]) if case.clicks else 0).astype(np.uint8)

    def predict(self, file: dict[str, Any]) -> Labels:
        """For the script."""
        return self.answer(len(file["clicks_order"][0]) if "clicks_order" in file else 0)


@dataclass
class Corrector:
    """Sets right what is within a radius of each click: its answers follow from clicks and `prev_pred`."""

    truth: Labels
    radius: float = 3.0

    def segment(self, case: Case) -> LabelArray:
        """For `play`."""
        assert case.prev_pred is not None
        assert case.clicks is not None
        clicks = [click.kji for row in case.clicks for click in row if click]
        return self._corrected(case.prev_pred, clicks).astype(np.uint8)

    def predict(self, file: dict[str, Any]) -> Labels:
        """For the script."""
        clicks = [kji for entry in file["clicks"] for kind in ("fg", "bg") for kji in entry[kind]]
        return self._corrected(file["prev_pred"], clicks)

    def _corrected(self, before: Labels, clicks: list[Any]) -> Labels:
        labels = before.copy()
        for kji in clicks:
            away = np.indices(labels.shape) - np.reshape(kji, (3, 1, 1, 1))
            near = (away**2).sum(axis=0) <= self.radius**2
            labels[near] = self.truth[near]
        return labels


def make_case(
    truth: Labels | None, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), **more: Any
) -> Case:
    shape = (3, 3, 3) if truth is None else truth.shape
    image = np.arange(math.prod(shape)).reshape(shape).astype(np.uint8)
    return Case("CT_case", image, spacing_mm, truth=truth, **more)


def boxes_of(truth: Labels) -> tuple[Box, ...]:
    """The bounding box of each class."""
    found = [np.argwhere(truth == n) for n in np.unique(truth) if n]
    return tuple(Box(tuple(v.min(axis=0)), tuple(v.max(axis=0))) for v in found)


def one_box_entry(box: Box) -> dict[str, int]:
    """As the challenge writes it."""
    (k, j, i), (k_max, j_max, i_max) = box.min_kji, box.max_kji
    middle = {"z_mid": (k + k_max) // 2, "z_mid_x_min": i, "z_mid_y_min": j}
    return {"z_min": k, "z_max": k_max, **middle, "z_mid_x_max": i_max, "z_mid_y_max": j_max}


def renumbered(truth: Labels) -> Labels:
    """Labels without gaps."""
    out = np.zeros(truth.shape, np.uint8)
    for number, label in enumerate(sorted(set(truth.ravel().tolist()) - {0}), start=1):
        out[truth == label] = number
    return out


def compare(
    ours: Any,
    theirs: Any,
    truth: Labels,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    boxes: tuple[Box, ...] | None = None,
) -> tuple[Played, dict[str, Any]]:
    """Plays a case both ways and compares clicks, their order, and all scores."""
    case = make_case(truth, spacing_mm, boxes=boxes)
    played = play(ours, case)
    entries = None if boxes is None else [one_box_entry(box) for box in boxes]
    official = official_protocol.run(theirs.predict, case.image, renumbered(truth), spacing_mm, entries)
    assert_same(played, official)
    return played, official


def assert_same(played: Played, official: dict[str, Any]) -> None:
    """Clicks and DSC exactly; NSD and areas within rounding."""
    result, last = played.result, official["files"][-1]
    assert played.case.clicks is not None
    assert [order(row) for row in played.case.clicks] == last["clicks_order"]
    assert [entry(row) for row in played.case.clicks] == last["clicks"]
    rounds = [result.box_round, *result.click_rounds]
    for number, one in enumerate(rounds, start=1):
        dsc, nsd = (one.mean_dice, one.mean_surface_dice) if one else (0.0, 0.0)
        assert dsc == official[f"DSC_{number}"]
        assert nsd == pytest.approx(official[f"NSD_{number}"], abs=1e-9)
    assert result.dice_auc == pytest.approx(official["DSC_AUC"], abs=1e-12)
    assert result.surface_dice_auc == pytest.approx(official["NSD_AUC"], abs=1e-12)
    assert result.click_rounds[-1].mean_dice == official["DSC_Final"]
    assert len(result.classes) == official["num_class"]
    assert result.limit_s == official["runtime_upperbound"]
    assert result.errors == ()


def order(row: tuple[Click | None, ...]) -> list[str | None]:
    return [None if click is None else "fg" if click.positive else "bg" for click in row]


def entry(row: tuple[Click | None, ...]) -> dict[str, list[list[int]]]:
    return {
        kind: [list(c.kji) for c in row if c and c.positive is wanted]
        for kind, wanted in (("fg", True), ("bg", False))
    }


def voxels(*kjis: tuple[int, int, int], shape: tuple[int, int, int] = (3, 3, 3)) -> Labels:
    """Label 1 at these places."""
    labels = np.zeros(shape, np.uint8)
    for kji in kjis:
        labels[kji] = 1
    return labels


UPPER, LOWER, BELOW, CORNER = (0, 1, 1), (1, 1, 1), (2, 1, 1), (2, 2, 2)
BAR = voxels(UPPER, LOWER)
BAR_ANSWERS = (
    voxels(UPPER, LOWER, BELOW),  # to the box
    voxels(UPPER),
    BAR,
    voxels(UPPER, LOWER, BELOW),
    voxels(CORNER),
    voxels(),
)


def test_a_case_by_hand() -> None:
    """A bar of two voxels in 3×3×3, 3 mm along it; the tolerance of 2 mm spans no voxel of the bar's length.

    Points lie in planes across the bar, four to a plane; those of a plane that both surfaces have agree, the
    others are 3 mm off. The draws are those of seed 42: the first of two, the last of three.
    """
    segmenter = Scripted(BAR_ANSWERS.__getitem__)
    played = play(segmenter, make_case(BAR, (3.0, 1.0, 1.0), boxes=boxes_of(BAR)), modality="CT")
    result = played.result
    too_long = (12 * AREA_END + 12 * AREA_SIDE) / (16 * AREA_END + 12 * AREA_SIDE)
    too_short = (12 * AREA_END + 4 * AREA_SIDE) / (16 * AREA_END + 4 * AREA_SIDE)
    assert result.box_round is not None
    assert result.box_round.dice == (4 / 5,)
    assert result.box_round.surface_dice == pytest.approx((too_long,))
    assert [r.mean_dice for r in result.click_rounds] == [2 / 3, 1, 4 / 5, 0, 0]
    expected = [too_short, 1, too_long, 0, 0]
    assert [r.mean_surface_dice for r in result.click_rounds] == pytest.approx(expected)
    assert result.dice_auc == pytest.approx((2 / 3) / 2 + 1 + 4 / 5 + 0 + 0 / 2)
    assert result.surface_dice_auc == pytest.approx(too_short / 2 + 1 + too_long)
    assert played.case.clicks == (
        (
            Click(BELOW, False),  # the box's answer is one voxel too long
            Click(LOWER, True),  # half of the bar is missed
            None,  # all is right
            Click(BELOW, False),
            Click(CORNER, False),  # touches the bar, all of which is missed: one error of three voxels
        ),
    )
    assert (result.name, result.modality, result.classes) == ("CT_case", "CT", ("1",))
    assert result.limit_s == 90
    np.testing.assert_array_equal(played.case.prev_pred, BAR_ANSWERS[5])


def test_the_case_by_hand_is_the_scripts_too() -> None:
    """The literal reading gives the same numbers and clicks."""
    segmenter = Scripted(BAR_ANSWERS.__getitem__)
    _, official = compare(segmenter, segmenter, BAR, (3.0, 1.0, 1.0), boxes_of(BAR))
    assert [official[f"DSC_{n}"] for n in range(1, 7)] == [4 / 5, 2 / 3, 1, 4 / 5, 0, 0]
    assert official["files"][-1]["clicks_order"] == [["bg", "fg", None, "bg", "bg"]]


def test_what_a_segmenter_gets_by_hand() -> None:
    """Round by round: the very same image, no truth, the box, clicks that grow, and the answer before."""
    segmenter = Scripted(BAR_ANSWERS.__getitem__)
    case = make_case(BAR, (3.0, 1.0, 1.0), boxes=boxes_of(BAR))
    final = play(segmenter, case).case
    assert len(segmenter.cases) == 6
    for got in segmenter.cases:
        assert got.image is case.image
        assert got.truth is None
        assert (got.boxes, got.spacing_mm, got.name) == (case.boxes, case.spacing_mm, case.name)
    first, *others = segmenter.cases
    assert first.clicks is None
    assert first.prev_pred is None
    assert final.clicks is not None
    for number, got in enumerate(others, start=1):
        assert got.clicks == (final.clicks[0][:number],)
        np.testing.assert_array_equal(got.prev_pred, BAR_ANSWERS[number - 1])
    np.testing.assert_array_equal(final.truth, BAR)


def test_the_files_of_all_rounds_are_the_scripts(tmp_path: Path) -> None:
    """Written as a container would find them: every key of every round, boxes and clicks as plain dicts."""
    truth = np.repeat(np.repeat([[[0, 1, 1, 0, 2, 0]]], 5, axis=1), 4, axis=0).astype(np.uint8)
    wrong = np.roll(truth, 1, axis=2)
    segmenter = Scripted(lambda number: truth if number in (2, 3) else wrong)
    _, official = compare(segmenter, segmenter, truth, boxes=boxes_of(truth))
    assert official["files"][-1]["clicks_order"][0][2:4] == [None, None]
    for number, (case, file) in enumerate(zip(segmenter.cases, official["files"], strict=True)):
        path = tmp_path / f"{number}.npz"
        write_case(path, case)
        with np.load(path, allow_pickle=True) as written:
            assert set(written) == set(file)
            for key in written:
                assert written[key].tolist() == np.asarray(file[key]).tolist(), key


def test_without_boxes_there_are_five_rounds() -> None:
    """The first click goes by an empty mask, which the segmenter gets as the answer before."""
    segmenter = Scripted(lambda number: BAR)
    _, official = compare(segmenter, segmenter, BAR)
    assert len(segmenter.cases) == len(official["files"]) == 5
    assert segmenter.cases[0].boxes is None
    assert segmenter.cases[0].prev_pred is not None
    assert not segmenter.cases[0].prev_pred.any()
    assert official["files"][-1]["clicks_order"] == [["fg", None, None, None, None]]


def test_prompts_that_the_case_has_already_are_left_out() -> None:
    """Clicks and an answer of some earlier evaluation are not this one's."""
    segmenter = Scripted(lambda number: BAR)
    again = make_case(BAR, boxes=boxes_of(BAR), clicks=((Click(CORNER, False),),), prev_pred=BAR)
    played = play(segmenter, again)
    assert segmenter.cases[0].clicks is None
    assert segmenter.cases[0].prev_pred is None
    assert played.case.clicks == ((None,) * 5,)


def test_perfect_in_one_round_and_wrong_later() -> None:
    """One class needs no click for a while, the other always does."""
    truth = np.zeros((6, 8, 10), np.uint8)
    truth[1:4, 2:6, 1:4], truth[2:5, 2:6, 6:9] = 1, 2
    wrong = np.roll(truth, 1, axis=0)

    def answer(number: int) -> Labels:
        first_is_right = number in (1, 2, 4)
        return np.where(truth == 1, truth, np.where(wrong == 1, 0, wrong)) if first_is_right else wrong

    segmenter = Scripted(answer)
    _, official = compare(segmenter, segmenter, truth, boxes=boxes_of(truth))
    first, second = official["files"][-1]["clicks_order"]
    assert [kind is None for kind in first] == [False, True, True, False, True]
    assert None not in second


def test_of_equal_errors_the_first_is_clicked() -> None:
    """Four cubes of one size, missed all at once; every correction leaves a tie among the rest."""
    truth = np.zeros((11, 11, 11), np.uint8)
    for k, j, i in itertools.product((1, 7), (1, 7), (1,)):
        truth[k : k + 3, j : j + 3, i : i + 3] = 1
    corrector = Corrector(truth)
    played, _ = compare(corrector, corrector, truth)
    assert played.case.clicks is not None
    assert [c and c.kji for c in played.case.clicks[0]] == [
        *[(2, 2, 2), (2, 8, 2), (8, 2, 2), (8, 8, 2)],
        None,
    ]


@pytest.mark.parametrize(("voxel_count", "counts"), [(9, False), (8, True)])
def test_a_mean_dice_of_exactly_a_fifth_is_hopeless(voxel_count: int, counts: bool) -> None:
    """One voxel of nine: 2 · 1 / (9 + 1) = 0.2, and surfaces are not looked at; of eight, and they are."""
    truth = np.zeros((3, 3, 3), np.uint8)
    truth.ravel()[:voxel_count] = 1
    found = voxels((0, 0, 0))
    segmenter = Scripted(lambda number: found)
    played, _ = compare(segmenter, segmenter, truth)
    for one in played.result.click_rounds:
        assert one.mean_dice == 2 / (voxel_count + 1)
        assert (one.mean_surface_dice > 0) is counts


def test_a_class_that_is_never_found_beside_one_that_is() -> None:
    """The empty one has a surface Dice of 0, and the mean is over both."""
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:3, 1:5, 1:5], truth[4, 1:5, 1:5] = 1, 2
    segmenter = Scripted(lambda number: np.where(truth == 1, 1, 0))
    played, _ = compare(segmenter, segmenter, truth)
    assert played.result.click_rounds[0].dice == (1.0, 0.0)
    assert played.result.click_rounds[0].surface_dice == (1.0, 0.0)


def test_labels_with_gaps_are_numbered_in_order() -> None:
    """Labels 3, 40 and 700 are the classes 1, 2 and 3, for the segmenter and in the truth that comes back."""
    truth = np.zeros((6, 8, 12), np.uint16)
    truth[1:4, 2:6, 1:4], truth[2:5, 2:6, 5:8], truth[1:4, 2:6, 9:11] = 700, 3, 40
    segmenter = Scripted(lambda number: np.roll(renumbered(truth), number % 2, axis=0))
    played, _ = compare(segmenter, segmenter, truth, boxes=boxes_of(truth))
    assert played.result.classes == ("3", "40", "700")
    assert played.result.click_rounds[1].mean_dice == 1
    np.testing.assert_array_equal(played.case.truth, renumbered(truth))


def test_a_truth_without_background() -> None:
    """The smallest label is a class, not the background."""
    truth = np.full((4, 4, 4), 7, np.uint8)
    truth[2:] = 9
    segmenter = Scripted(lambda number: np.where(truth == 7, 1, 0))
    played, _ = compare(segmenter, segmenter, truth)
    assert played.result.classes == ("7", "9")
    assert played.result.click_rounds[0].dice == (1.0, 0.0)


@pytest.mark.parametrize("step", [1, 3], ids=["labels without gaps", "labels with gaps"])
def test_memory_does_not_grow_with_the_classes(step: int) -> None:
    """Sixty classes: a mask of each, of truth and answer, would be 120 bytes a voxel."""
    right = np.zeros((40, 100, 160), np.uint8)
    for number in range(1, 61):
        right[4:20, 4:20, 2 * number + 4] = number
    case, wrong = make_case(right * np.uint8(step)), np.roll(right, 1, axis=1)

    class Forgetful:
        def segment(self, case: Case) -> LabelArray:
            return wrong

    tracemalloc.start()
    try:
        play(Forgetful(), case)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / right.size < 6


def test_errors_too_large_for_full_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit of 60 million voxels lowered to 500: distances at half resolution, by both."""
    rng = np.random.default_rng(0)
    truth = (ndimage.gaussian_filter(rng.standard_normal((15, 17, 19)), 2) > 0).astype(np.uint8)
    corrector = Corrector(truth, radius=2.5)
    full, _ = compare(corrector, corrector, truth)
    monkeypatch.setattr(simulation, "MAX_DISTANCE_VOXELS", 500)
    monkeypatch.setattr(official_protocol, "LARGEST_BOX_VOXELS", 500)
    halved, _ = compare(corrector, corrector, truth)
    assert halved.case.clicks != full.case.clicks


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(2, 7)] * 3),
    labels=st.sampled_from([(1,), (1, 2), (2, 5), (1, 3, 4)]),
    share=st.sampled_from([0.05, 0.3, 0.7]),
    spacing_mm=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
    has_boxes=st.booleans(),
)
@settings(max_examples=30)
def test_equals_the_script(
    seed: int,
    shape: tuple[int, int, int],
    labels: tuple[int, ...],
    share: float,
    spacing_mm: tuple[float, float, float],
    has_boxes: bool,
) -> None:
    """Noise in truth and answers: touching, tiny and empty errors of several classes."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(shape) < share, rng.choice(labels, shape), 0).astype(np.uint8)
    truth.ravel()[: len(labels)] = labels
    right = renumbered(truth)
    answers = [
        np.where(rng.random(shape) < rng.choice([0, 0.1, 0.6]), rng.integers(0, 4, shape), right)
        for _ in range(6)
    ]
    segmenter = Scripted(answers.__getitem__)
    compare(segmenter, segmenter, truth, spacing_mm, boxes_of(truth) if has_boxes else None)


def real_case(folder: Path) -> tuple[Labels, tuple[float, float, float]]:
    """Up to four of a label map's largest objects in a block of at most 40 voxels a side, and its spacing."""
    image = sitk.ReadImage(str(sorted(folder.glob("*/label.nii.gz"))[0]))
    labels = sitk.GetArrayFromImage(image)
    middle = [(max(0, n // 2 - 20), min(n, n // 2 + 20)) for n in labels.shape]
    block = labels[tuple(slice(a, b) for a, b in middle)].astype(int)
    sizes = np.bincount(block.ravel())
    sizes[0] = 0
    largest = [int(label) for label in np.argsort(-sizes)[:4] if sizes[label]]
    k, j, i = (float(mm) for mm in image.GetSpacing()[::-1])
    return np.where(np.isin(block, largest), block, 0).astype(np.uint16), (k, j, i)


def mistaken(truth: Labels) -> Answer:
    """Errors that segmenters make: shifted, eroded, with blobs, dilated, a class missing, holes filled."""
    rng = np.random.default_rng(0)
    right = renumbered(truth)
    count = int(right.max())
    noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape), 2)
    blobs = noise > np.quantile(noise, 0.95)

    def each(change: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> Labels:
        labels = np.zeros_like(right)
        for number in range(1, count + 1):
            labels[change(right == number)] = number
        return labels

    answers = [
        np.roll(right, (1, 2, -3), axis=(0, 1, 2)),
        each(ndimage.binary_erosion),
        np.where(blobs, 1, right),
        each(lambda mask: ndimage.binary_dilation(mask, iterations=2)),
        np.where(right == 1, 1, np.where(blobs, 0, np.minimum(right, max(1, count - 1)))),
        np.where(blobs, 0, each(ndimage.binary_closing)),
    ]
    return answers.__getitem__


@pytest.mark.parametrize(
    "data_set",
    ["totalseg_ct", "totalseg_mr", "ibsi_sts_pet", "msd_hippocampus", "stardist", "elastix_lung"],
)
def test_equals_the_script_on_real_cases(data_set: str, data_dir: Path) -> None:
    """Organs, a tumour in PET, cells: real shapes and spacings; realistic errors, then corrections."""
    truth, spacing_mm = real_case(data_dir / "dev" / data_set)
    segmenter = Scripted(mistaken(truth))
    played, _ = compare(segmenter, segmenter, truth, spacing_mm, boxes_of(truth))
    assert 0 < played.result.surface_dice_auc < 4
    corrector = Corrector(renumbered(truth), radius=6.0)
    played, _ = compare(corrector, corrector, truth, spacing_mm)
    curve = [r.mean_dice for r in played.result.click_rounds]
    assert curve == sorted(curve)


@pytest.mark.parametrize("failing", range(6))
def test_a_segmenter_that_fails_in_one_round(failing: int) -> None:
    """It scores 0 there and says why; the next click goes by an empty mask, and the others are as ever."""
    truth = np.zeros((5, 5, 5), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    wrong = np.roll(truth, 1, axis=2)

    def answer(number: int) -> Labels:
        if number == failing:
            raise ValueError("no")
        return wrong

    def file_or_none(file: dict[str, Any]) -> Labels | None:
        return None if len(file.get("clicks_order", [[]])[0]) == failing else wrong

    case = make_case(truth, boxes=boxes_of(truth))
    segmenter = Scripted(answer)
    played = play(segmenter, case)
    rounds = [played.result.box_round, *played.result.click_rounds]
    assert [one.error if one else None for one in rounds] == ["no" if n == failing else "" for n in range(6)]
    assert played.result.errors == ("no",)
    if failing < 5:
        after = segmenter.cases[failing + 1]
        assert after.prev_pred is not None
        assert not after.prev_pred.any()
        assert after.clicks is not None
        assert after.clicks[0][-1] == Click((2, 2, 2), positive=True)
    entries = [one_box_entry(box) for box in boxes_of(truth)]
    official = official_protocol.run(file_or_none, case.image, truth, case.spacing_mm, entries)
    assert [one.mean_dice for one in rounds if one] == [official[f"DSC_{n}"] for n in range(1, 7)]
    assert played.case.clicks is not None
    assert [entry(row) for row in played.case.clicks] == official["files"][-1]["clicks"]


@pytest.mark.parametrize("failure", [ValueError, OSError, RuntimeError, MemoryError])
def test_an_error_without_words_is_named_by_its_kind(failure: type[Exception]) -> None:
    def answer(number: int) -> Labels:
        raise failure

    result = play(Scripted(answer), make_case(BAR)).result
    assert result.errors == (failure.__name__,)
    assert [(r.dice, r.surface_dice) for r in result.click_rounds] == [((0.0,), (0.0,))] * 5


def test_a_programming_error_is_no_failed_round() -> None:
    def answer(number: int) -> Labels:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        play(Scripted(answer), make_case(BAR))


def test_an_answer_of_another_shape() -> None:
    """Is an error of the round, not of the evaluation."""
    segmenter = Scripted(lambda number: BAR if number != 2 else BAR[:2])
    result = play(segmenter, make_case(BAR)).result
    assert [r.mean_dice for r in result.click_rounds] == [1, 0, 1, 1, 1]
    assert result.errors == ("expected labels of shape (3, 3, 3), got (2, 3, 3)",)


@pytest.mark.parametrize(
    ("case", "classes", "message"),
    [
        (make_case(None), (), r"case CT_case has no truth \(gts\)"),
        (make_case(np.zeros((3, 3, 3), np.uint8)), (), "the truth of case CT_case is empty"),
        (make_case(BAR, boxes=(Box(UPPER, LOWER), None)), (), "expected a box for each of 1 classes, got 2"),
        (make_case(BAR), ("liver", "spleen"), "expected a name for each of 1 classes, got 2"),
    ],
    ids=["no truth", "empty truth", "boxes", "names"],
)
def test_cases_that_cannot_be_played(case: Case, classes: tuple[str, ...], message: str) -> None:
    """Are refused before the segmenter is asked."""
    segmenter = Scripted(lambda number: BAR)
    with pytest.raises(ValueError, match=message):
        play(segmenter, case, classes=classes)
    assert segmenter.cases == []


def test_classes_may_have_names() -> None:
    assert play(Scripted(lambda number: BAR), make_case(BAR), classes=("bar",)).result.classes == ("bar",)


@pytest.mark.parametrize("has_boxes", [True, False])
def test_every_finished_round_is_told(has_boxes: bool) -> None:
    """0 for the box round, after the segmenter has answered."""
    segmenter = Scripted(lambda number: BAR)
    told: list[tuple[int, int]] = []
    case = make_case(BAR, boxes=boxes_of(BAR) if has_boxes else None)
    play(segmenter, case, finished=lambda number: told.append((number, len(segmenter.cases))))
    first = 0 if has_boxes else 1
    assert told == [(number, number - first + 1) for number in range(first, 6)]


@pytest.mark.parametrize("has_boxes", [True, False])
def test_seconds_are_the_segmenters_alone(has_boxes: bool) -> None:
    """A clock that only the segmenter moves on, by 1, 2, 3, … s; the script has the same running times."""
    now = 0.0

    def answer(number: int) -> Labels:
        nonlocal now
        now += number + 1
        return BAR

    case = make_case(BAR, boxes=boxes_of(BAR) if has_boxes else None)
    segmenter = Scripted(answer)
    result = play(segmenter, case, clock=lambda: now).result
    assert [r.seconds for r in result.click_rounds] == [2, 3, 4, 5, 6]
    assert (result.box_round.seconds if result.box_round else None) == (1 if has_boxes else None)
    assert result.seconds == (21 if has_boxes else 20)
    entries = [one_box_entry(box) for box in boxes_of(BAR)] if has_boxes else None
    official = official_protocol.run(
        segmenter.predict, case.image, BAR, case.spacing_mm, entries, clock=lambda: now
    )
    assert [official[f"RunningTime_{n}"] for n in range(1, 7)] == [int(has_boxes), 2, 3, 4, 5, 6]
    assert official["TotalRunningTime"] == result.seconds


def test_a_case_that_could_not_be_evaluated() -> None:
    """Counts with zeros, in as many rounds as it would have had."""
    result = failed_case("CT_case", "CT", ("liver", "spleen"), has_boxes=True, error="damaged")
    assert (result.dice_auc, result.surface_dice_auc, result.seconds, result.limit_s) == (0, 0, 0, 180)
    assert result.box_round is not None
    assert [len(r.dice) for r in result.click_rounds] == [2] * 5
    assert result.errors == ("damaged",)
    unknown = failed_case("CT_case", "CT", (), has_boxes=False, error="damaged")
    assert unknown.box_round is None
    assert unknown.limit_s == 90


@pytest.mark.slow
def test_the_benchmark_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes through MONAI and through us: the same masks, with a third of the windows."""
    output = tmp_path / "bench" / "challenge.json"
    options = ["challenge", "--small", "--classes", "2", "--threads", "1", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", options)
    assert benchmark() == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["masks_equal"] is True
    assert report["voxels_that_differ"]["beyond"] == 0
    assert report["windows_encoded"] == {"reference": 30, "ours": 10}
    assert report["six_rounds"] == pytest.approx(
        report["seconds"]["reference_s"] / report["seconds"]["ours_s"]
    )
    assert len(report["seconds"]["rounds"]) == 5
