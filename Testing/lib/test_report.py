"""The report of an evaluation: tables and means by hand, then the page as a reader gets it, then pictures."""

from __future__ import annotations

import base64
import csv
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from GSMedSegLib.challenge import CaseResult, Round, failed_case, play
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case
from GSMedSegLib.picture import CAPTION_PIXELS, COLORS, GAP_PIXELS
from GSMedSegLib.prompts import Click
from GSMedSegLib.report import ROW_PIXELS, WORST_CASES, case_picture, check_report_tools, write_report
from GSMedSegLib.volume_io import read_volume

FACTS = {"engine": "gsmedseg", "weights": "compact", "date": "2026-01-02 03:04 UTC"}
PNG = b"\x89PNG stands for a picture"
TINY = 1 / 3
"""Is written in full or not at all."""


def of(seconds: float, *dice: float, error: str = "") -> Round:
    """A round whose surface Dice is half the Dice."""
    return Round(seconds, dice, tuple(value / 2 for value in dice), error)


def liver_and_spleen() -> CaseResult:
    """Means of both classes: 0.3 after the box, then 0, 0.25, 0.5, 0.75, 1; 19 seconds in all."""
    clicks = (of(1, 0, 0), of(2, 0.5, 0), of(3, 0.5, 0.5), of(4, 1, 0.5), of(5, 1, 1))
    return CaseResult("CT_a", "CT", ("liver", "spleen"), of(4, 0.6, 0), clicks)


def vessel(name: str = "MR_b", dice: float = TINY, seconds: float = 2.0) -> CaseResult:
    """No boxes, one class, every round the same."""
    return CaseResult(name, "MRI", ("vessel",), None, (of(seconds, dice),) * 5)


def unreadable(error: str = "not a readable .npz file") -> CaseResult:
    return failed_case("CT_c", "CT", (), has_boxes=False, error=error)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Reader(HTMLParser):
    """What a browser would make of the page: its text, and what it would fetch or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.targets: list[str] = []
        self._text: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert not [name for name, _ in attrs if name.startswith("on")], f"a handler in <{tag}>"

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self._text.append(data)

    @property
    def curves(self) -> list[ElementTree.Element]:
        """The drawings, as XML: what is in a page needs no name spaces of its own."""
        found = re.findall(r"<svg.*?</svg>", self.source, re.S)
        return [ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1)) for svg in found]


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Reader]:
    def write(*results: CaseResult, facts: Any = FACTS, pictures: Any = None) -> Reader:
        write_report(tmp_path / "report", results, facts, pictures or {})
        return Reader(tmp_path / "report" / "report.html")

    return write


# Tables


def test_metrics_have_the_columns_of_the_challenge(report: Callable[..., Reader], tmp_path: Path) -> None:
    report(liver_and_spleen(), vessel())
    with_boxes, without = rows_of(tmp_path / "report" / "metrics.csv")
    numbers = range(1, 7)
    assert list(with_boxes) == [
        *("CaseName", "TotalRunningTime"),
        *(f"RunningTime_{n}" for n in numbers),
        *("DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final"),
        *(f"DSC_{n}" for n in numbers),
        *(f"NSD_{n}" for n in numbers),
        *("num_class", "runtime_upperbound"),
    ]
    assert with_boxes.pop("CaseName") == "CT_a.npz"
    assert [float(value) for value in with_boxes.values()] == pytest.approx(
        [
            *(19, 4, 1, 2, 3, 4, 5),
            *(2, 1, 1, 0.5),
            *(0.3, 0, 0.25, 0.5, 0.75, 1),
            *(0.15, 0, 0.125, 0.25, 0.375, 0.5),
            *(2, 180),
        ]
    )
    assert [without[f"{name}_1"] for name in ("RunningTime", "DSC", "NSD")] == ["0.0"] * 3
    assert float(without["DSC_6"]) == TINY


def test_classes_have_a_row_each(report: Callable[..., Reader], tmp_path: Path) -> None:
    report(liver_and_spleen(), vessel())
    liver, spleen, other = rows_of(tmp_path / "report" / "classes.csv")
    assert [row["class"] for row in (liver, spleen, other)] == ["liver", "spleen", "vessel"]
    assert (spleen["case"], spleen["modality"]) == ("CT_a", "CT")
    assert [float(liver[f"DSC_click{n}"]) for n in range(1, 6)] == [0, 0.5, 0.5, 1, 1]
    assert [float(spleen[f"NSD_click{n}"]) for n in range(1, 6)] == [0, 0, 0.25, 0.25, 0.5]
    assert float(liver["DSC_box"]) == 0.6
    assert float(liver["DSC_AUC"]) == 2.5
    assert float(spleen["NSD_AUC"]) == 0.75
    assert other["DSC_box"] == other["NSD_box"] == ""


# Means


def test_means_are_over_cases_not_over_classes(report: Callable[..., Reader], tmp_path: Path) -> None:
    report(liver_and_spleen(), vessel("CT_d", 0.5), vessel("MR_b", 0.2, seconds=6))
    summary = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))
    assert summary["facts"] == FACTS
    assert (summary["cases"], summary["failed"]) == (3, 0)
    mean = summary["mean"]
    assert mean["dice"] == pytest.approx([0.7 / 3, 0.95 / 3, 1.2 / 3, 1.45 / 3, 1.7 / 3])
    assert mean["nsd"] == pytest.approx([value / 2 for value in mean["dice"]])
    assert mean["dsc_auc"] == pytest.approx((2 + 2 + 0.8) / 3)
    assert mean["box_dice"] == pytest.approx(0.3)
    assert mean["seconds_per_round"] == pytest.approx([4, 9 / 3, 10 / 3, 11 / 3, 12 / 3, 13 / 3])
    assert mean["seconds_per_case"] == pytest.approx((19 + 10 + 30) / 3)


def test_means_of_modalities_and_classes(report: Callable[..., Reader], tmp_path: Path) -> None:
    report(liver_and_spleen(), vessel("MR_b", 0.25), vessel("MR_d", 0.5))
    summary = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["modalities"]) == ["CT", "MRI"]
    assert [group["cases"] for group in summary["modalities"].values()] == [1, 2]
    assert summary["modalities"]["MRI"]["dsc_auc"] == pytest.approx(1.5)
    assert summary["modalities"]["MRI"]["box_dice"] is None
    assert summary["modalities"]["MRI"]["seconds_per_round"] == [None, 2, 2, 2, 2, 2]
    assert summary["mean_of_modalities"]["dsc_auc"] == pytest.approx((2 + 1.5) / 2)
    assert summary["mean"]["dsc_auc"] == pytest.approx((2 + 1 + 2) / 3)
    assert {name: group["cases"] for name, group in summary["classes"].items()} == {
        "liver": 1,
        "spleen": 1,
        "vessel": 2,
    }
    assert summary["classes"]["vessel"]["dice"] == pytest.approx([0.375] * 5)
    assert summary["classes"]["spleen"]["dsc_auc"] == pytest.approx(1.5)


def test_a_case_that_was_not_evaluated_costs_score_but_no_time(
    report: Callable[..., Reader], tmp_path: Path
) -> None:
    report(vessel(dice=0.5), unreadable())
    summary = json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["cases"], summary["failed"]) == (2, 1)
    assert summary["mean"]["dsc_auc"] == pytest.approx(1)
    assert summary["mean"]["seconds_per_round"] == [None, 2, 2, 2, 2, 2]
    assert summary["modalities"]["CT"]["seconds_per_round"] == [None] * 6


def test_a_report_of_nothing_but_failures_can_be_written(report: Callable[..., Reader]) -> None:
    page = report(unreadable())
    assert "DSC_AUC 0.000 of 4" in page.text
    assert "Lowest scores" not in page.text


# The page


def test_the_page_needs_nothing_but_itself(report: Callable[..., Reader], tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG)
    page = report(liver_and_spleen(), vessel(), unreadable(), pictures={"CT_a": picture})
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert "://" not in page.source
    assert "@import" not in page.source
    assert not re.findall(r"url\((?!#)", page.source)
    inside = [target for target in page.targets if not target.startswith("#")]
    assert inside == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]


def test_the_page_tells_the_figures(report: Callable[..., Reader]) -> None:
    page = report(liver_and_spleen(), vessel(dice=0.5))
    assert "Evaluation of gsmedseg" in page.text
    assert "DSC_AUC 2.000 of 4" in page.text
    assert "DSC after 5 clicks 0.750 after 1: 0.250" in page.text
    assert "DSC from the box 0.300" in page.text
    assert "Failed cases 0 of 2" in page.text
    assert "None: every round of every case gave an answer." in page.text
    assert "weights compact date 2026-01-02 03:04 UTC" in page.text


def test_names_are_shown_and_never_run(report: Callable[..., Reader], tmp_path: Path) -> None:
    name = "<script>alert('x')</script>&\""
    picture = tmp_path / "a.png"
    picture.write_bytes(PNG)
    result = CaseResult(
        name, "<b>CT", ("<i>a", "$x$"), None, (of(1, 0.5, 0.5, error="<img src=x onerror=y>"),) * 5
    )
    page = report(result, facts={"engine": "<u>", "</style>": "<script>"}, pictures={name: picture})
    assert {"script", "b", "i", "u"}.isdisjoint(page.tags)
    assert page.tags.count("img") == 1
    for text in (name, "<b>CT", "<i>a", "$x$", "<img src=x onerror=y>", "Evaluation of <u>"):
        assert text in page.text


def test_names_that_are_not_text_can_be_written(report: Callable[..., Reader], tmp_path: Path) -> None:
    """A file name in another encoding reaches us with a surrogate in it."""
    page = report(vessel("MR_\udcff"))
    assert "MR_\\udcff" in page.text
    assert rows_of(tmp_path / "report" / "metrics.csv")[0]["CaseName"] == "MR_\\udcff.npz"
    json.loads((tmp_path / "report" / "summary.json").read_text(encoding="utf-8"))


def test_failures_have_a_line_each(report: Callable[..., Reader]) -> None:
    rounds = (of(1, 0.5), of(1, 0.5), of(1, 0, error="out of\n  memory"), of(1, 0, error="out of\n  memory"))
    half = CaseResult("US_e", "US", ("prostate",), None, (*rounds, of(1, 0.5, error="lost" * 100)))
    page = report(half, unreadable("not a file"))
    failed = page.text[page.text.index("What went wrong") : page.text.index("Lowest scores")]
    assert re.search(r"US_e US out of memory (lost)+los… ", failed)
    assert "CT_c CT not a file" in failed
    assert "Failed cases 2 of 2" in page.text


def test_cases_over_the_limit_are_marked(report: Callable[..., Reader]) -> None:
    """One class may take 90 s: 5 rounds of 18 s are just within, 5 of 36 s are twice that."""
    page = report(vessel("MR_slow", seconds=36.0), vessel("MR_just", seconds=18.0))
    assert (
        "1 case was over the limit: Case Modality Classes Seconds Limit Share MR_slow MRI 1 180 90 200 %"
        in (page.text)
    )
    assert page.text.count("% over") == 1
    within = report(vessel("MR_just", seconds=18.0), vessel("MR_fast", seconds=1.0))
    assert "MR_just came closest, with 90 of 90 seconds (100 %)" in within.text


def test_only_engines_that_start_in_every_round_keep_the_limit(tmp_path: Path) -> None:
    """The challenge counts six starts of a container; what was loaded once is not measured so."""
    texts = []
    for started_anew in (False, True):
        write_report(tmp_path, [vessel()], FACTS, {}, started_anew=started_anew)
        texts.append(Reader(tmp_path / "report.html").text)
    inside, outside = texts
    assert "limit; MR_b came closest" not in inside
    assert "none over the limit" not in inside
    assert "shared one process, which loaded the engine once: --engine container:… measures" in inside
    assert "Without such starts, MR_b came closest, with 10 of 90 seconds (11 %)" in inside
    assert "Every case was within its limit; MR_b came closest, with 10 of 90 seconds (11 %)" in outside
    assert "none over the limit" in outside
    assert "one process" not in outside


def test_the_lowest_of_those_that_were_evaluated_are_shown(
    report: Callable[..., Reader], tmp_path: Path
) -> None:
    results = [vessel(f"MR_{n:02}", dice=n / 20) for n in range(WORST_CASES + 3, 0, -1)]
    pictures = {}
    for result in results[::2]:
        pictures[result.name] = tmp_path / f"{result.name}.png"
        pictures[result.name].write_bytes(result.name.encode())
    page = report(unreadable(), *results, pictures=pictures)
    shown = re.findall(r"<h3>(\w+)</h3>", page.source)
    assert shown == [f"MR_{n:02}" for n in range(1, WORST_CASES + 1)]
    embedded = [
        base64.b64decode(target.partition(",")[2]).decode()
        for target in page.targets
        if target.startswith("data:")
    ]
    assert embedded == [name for name in shown if name in pictures]


def test_curves_are_drawn_for_each_modality(report: Callable[..., Reader]) -> None:
    page = report(liver_and_spleen(), vessel())
    ct, mri = ({text.text for text in svg.iter("text")} for svg in page.curves)
    assert {"1", "2", "3", "4", "5", "0.0", "1.0", "clicks per class"} < mri
    assert ct - mri == {"box"}
    for svg in page.curves:
        assert not [group.get("id") for group in svg.iter("g") if group.get("id")]


def test_a_curve_goes_through_the_means(report: Callable[..., Reader]) -> None:
    """Dice 0 and 1 in turn: the line touches the axis' ends, which the tick labels' lines give."""
    rounds = tuple(of(1, value) for value in (0, 1, 0, 1, 0))
    (svg,) = report(CaseResult("CT_a", "CT", ("a",), None, rounds)).curves
    lines = [path for path in svg.iter("path") if "stroke: #2f7fd6" in path.get("style", "")]
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", lines[0].get("d", ""))]
    dashed = [path for path in svg.iter("path") if "stroke: #d97a1f" in path.get("style", "")]
    halves = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", dashed[0].get("d", ""))]
    assert len(heights) == len(halves) == 5
    bottom, top = heights[0], heights[1]
    assert bottom > top
    assert heights == pytest.approx([bottom, top] * 2 + [bottom])
    assert halves == pytest.approx([bottom, (bottom + top) / 2] * 2 + [bottom])


# Files


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the user's own matplotlib looks like."""
    results = [liver_and_spleen(), vessel(), unreadable()]
    write_report(tmp_path / "a", results, FACTS, {})
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.fonttype": "path"}):
        write_report(tmp_path / "b", results, FACTS, {})
    names = ["classes.csv", "metrics.csv", "report.html", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path, [vessel()], FACTS, {})
    before = (tmp_path / "report.html").read_bytes()
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path, [vessel(dice=0.9)], FACTS, {"MR_b": tmp_path / "gone.png"})
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_a_report_needs_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one case or more"):
        write_report(tmp_path, [], FACTS, {})


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_tools_are_said_at_once(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_report_tools()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=rf"need {package}; pip install 'gsmedseg\[evaluate\]'"):
        check_report_tools()
    with pytest.raises(RuntimeError, match=package):
        write_report(tmp_path / "report", [vessel()], FACTS, {})
    assert not (tmp_path / "report").exists()


# Pictures


def played() -> Case:
    """20³ voxels: class 1 right, class 2 half missing, class 3 missing; a click in the middle of 2."""
    truth = np.zeros((20, 20, 20), np.uint8)
    for number, k in enumerate((1, 8, 15), start=1):
        truth[k : k + 4, 4:16, 4:16] = number
    found = np.where(truth == 3, 0, truth).astype(np.uint8)
    found[8:12, 4:10, 4:16] = 0
    image = np.full(truth.shape, 128, np.uint8)
    image[0, 0, :10], image[0, 0, 10:] = 0, 255
    clicks = ((None,), (Click((10, 12, 10), positive=True), Click((10, 7, 10), positive=False)), (None,))
    return Case("CT_a", image, (1.0, 1.0, 1.0), truth=truth, clicks=clicks, prev_pred=found)


def colored(picture: Any, row: int) -> NDArray[np.bool_]:
    """Where a row's slices have the colour of outlines and clicks."""
    pixels = np.asarray(picture)
    height = ROW_PIXELS + CAPTION_PIXELS + GAP_PIXELS
    within = pixels[row * height : (row + 1) * height]
    return np.asarray((within == COLORS[0]).all(axis=2))


def test_a_row_for_each_class_the_worst_first() -> None:
    picture = case_picture(played())
    row = ROW_PIXELS + CAPTION_PIXELS + GAP_PIXELS
    assert picture.size == (3 * ROW_PIXELS + 2 * GAP_PIXELS, 3 * row)
    assert not colored(picture, 0).any()
    assert colored(picture, 1).any()
    assert case_picture(played(), limit_classes=2).size[1] == 2 * row


def test_slices_go_through_the_middle_of_the_error() -> None:
    """Of class 2 the part with j < 10 is missing; its middle is at j = 6 or 7, where there is no mask."""
    picture = case_picture(played())
    half = colored(picture, 1)[CAPTION_PIXELS:]
    axial, coronal = half[:, :ROW_PIXELS], half[:, ROW_PIXELS + GAP_PIXELS :][:, :ROW_PIXELS]
    voxel = ROW_PIXELS // 20
    assert axial[10 * voxel, 5 * voxel], "the mask's upper edge is at j = 10"
    assert not axial[7 * voxel + 2, 4 * voxel : 6 * voxel].any()
    assert coronal.any(), "the background click"
    assert not coronal[:, : 7 * voxel].any(), "but no outline"


def test_a_case_without_any_click_or_error_is_drawn() -> None:
    case = played()
    assert case.truth is not None
    right = Case(
        "CT_a", case.image, case.spacing_mm, truth=case.truth, clicks=((), (), ()), prev_pred=case.truth
    )
    assert all(colored(case_picture(right), row).any() for row in range(3))


def test_names_are_for_all_classes() -> None:
    numbered, named = case_picture(played()), case_picture(played(), classes=("liver", "spleen", "aorta"))
    assert numbered.size == named.size
    assert numbered.tobytes() != named.tobytes()
    with pytest.raises(ValueError, match="each of 3 classes, and a limit of 1 or more; got 1 names"):
        case_picture(played(), classes=("liver",))
    with pytest.raises(ValueError, match="a limit of 0"):
        case_picture(played(), limit_classes=0)


def test_only_played_cases_are_drawn() -> None:
    case = Case("CT_a", np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="CT_a has no truth, labels or clicks to draw; play it first"):
        case_picture(case)


class Balls:
    """A ball around every foreground click."""

    def segment(self, case: Case) -> LabelArray:
        labels = np.zeros(case.image.shape, np.uint8)
        where = np.indices(labels.shape)
        for number, clicks in enumerate(case.clicks or (), start=1):
            for click in clicks:
                if click and click.positive:
                    apart = where - np.reshape(click.kji, (3, 1, 1, 1))
                    labels[(apart**2).sum(axis=0) <= 16] = number
        return labels


def test_a_real_case_from_play_to_page(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "dev" / "msd_hippocampus" / "hippocampus_001"
    image, label = (read_volume(folder / f"{name}.nii.gz").array for name in ("image", "label"))
    grey = (255 * image.astype(float) / image.max()).astype(np.uint8)
    case = Case(folder.name, grey, (1.0, 1.0, 1.0), truth=label.astype(np.uint8))
    done = play(Balls(), case, modality="MRI", classes=("anterior", "posterior"))
    picture = tmp_path / "picture.png"
    case_picture(done.case, classes=done.result.classes).save(picture)
    write_report(tmp_path, [done.result], FACTS, {folder.name: picture})
    page = Reader(tmp_path / "report.html")
    assert f"DSC_AUC {done.result.dice_auc:.3f} of 4" in page.text
    assert page.tags.count("img") == 1
    assert float(rows_of(tmp_path / "metrics.csv")[0]["NSD_AUC"]) == done.result.surface_dice_auc
