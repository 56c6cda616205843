"""The accuracy benchmark: means by hand, files whole, and nothing played twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from GSMedSegLib.case_source import CaseSource, LabelledCase
from GSMedSegLib.challenge import CaseResult, Round
from GSMedSegLib.engine import Engine
from GSMedSegLib.npz import Case
from GSMedSegLib.peers import PEERS
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.segment import Segment
from GSMedSegLib.volume_io import write_labelmap, write_volume
from Testing.benchmarks.accuracy import Measured, main
from Testing.benchmarks.merging import WAYS
from Testing.benchmarks.objects import DevObject, find_objects
from Testing.benchmarks.scores import summarise
from Testing.benchmarks.tables import by_data_set, overview, replace_blocks


def dev_object(name: str, data_set: str, modality: str, longest_side: int = 10) -> DevObject:
    image = np.zeros((2, 2, 2), np.uint8)
    case = LabelledCase(Case(name, image, (1, 1, 1)))
    return DevObject(CaseSource(name, modality, (), lambda: case), name, data_set, longest_side, 8)


def result(name: str, dice: float, nsd: float) -> CaseResult:
    return CaseResult(name, "CT", ("1",), None, (Round(0.1, (dice,), (nsd,)),) * 5)


OBJECTS = [
    dev_object("a", "liver", "CT", 60),
    dev_object("b", "liver", "CT"),
    dev_object("c", "lung", "CT", 49),
    dev_object("d", "tumour", "PET", 48),
]
RESULTS = {
    "a": result("a", 0.2, 0.0),
    "b": result("b", 0.6, 0.2),
    "c": result("c", 0.8, 0.5),
    "d": result("d", 0.1, 0.9),
}


def test_means_are_over_objects_then_over_data_sets() -> None:
    summary = summarise(OBJECTS, RESULTS, surfaces=True)
    assert summary.data_sets["liver"].dice == pytest.approx([0.4] * 5)
    assert summary.modalities["CT"].dice == pytest.approx([0.6] * 5)  # of 0.4 and 0.8: each set counts once
    assert summary.modalities["PET"].dice == pytest.approx([0.1] * 5)
    assert summary.mean.dice == pytest.approx([(0.4 + 0.8 + 0.1) / 3] * 5)
    assert summary.mean.dsc_auc == pytest.approx(4 * 1.3 / 3)
    assert summary.modalities["CT"].nsd_auc == pytest.approx(4 * (0.1 + 0.5) / 2)


def test_without_surfaces_there_is_no_surface_dice() -> None:
    entry = summarise(OBJECTS, RESULTS, surfaces=False).entry()
    assert entry["mean"]["nsd"] is None
    assert entry["mean"]["nsd_auc"] is None
    assert entry["datasets"]["lung"]["dsc_auc"] == 3.2


def test_objects_larger_than_the_roi_are_counted_by_their_longest_side() -> None:
    measured = Measured(OBJECTS, {"adaptive": RESULTS, "watershed": RESULTS}, surfaces=True)
    larger = measured.larger_than(48)
    assert larger == {"roi": 48, "count": 2, "adaptive": {"dsc_auc": 2.0, "nsd_auc": 1.0}}
    assert measured.larger_than(60) == {"roi": 60, "count": 0}


def test_tables_say_what_was_measured() -> None:
    summary = summarise(OBJECTS, RESULTS, surfaces=True)
    assert overview({"adaptive": summary}).splitlines() == [
        "|  | Dice 1 | Dice 5 | DSC_AUC | NSD 1 | NSD 5 | NSD_AUC | CT | PET |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| adaptive | 0.433 | 0.433 | 1.733 | 0.500 | 0.500 | 2.000 | 2.400 | 0.400 |",
    ]
    lines = by_data_set(summary, {"liver": 2}, {"watershed": summary}).splitlines()
    assert lines[2] == "| liver | 2 | 0.40 | 0.40 | 0.40 | 0.40 | 0.40 | 1.600 | 0.400 | 1.600 |"
    assert lines[-1] == "| mean |  | 0.43 | 0.43 | 0.43 | 0.43 | 0.43 | 1.733 | 2.000 | 1.733 |"


def test_a_block_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("before\n<!-- accuracy: x -->\nold\n<!-- end: x -->\nafter\n", encoding="utf-8")
    assert replace_blocks(file, {"x": r"new \1", "y": "elsewhere"}) == ["x"]
    text = file.read_text(encoding="utf-8")
    assert text == "before\n<!-- accuracy: x -->\nnew \\1\n<!-- end: x -->\nafter\n"
    file.write_text("<!-- accuracy: x -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="once after it"):
        replace_blocks(file, {"x": "new"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two cases of two data sets: a bright cube in each, and a second one in the first."""
    for data_set, modality, cubes in (("cubes", "CT", 2), ("cube", "MRI", 1)):
        folder = tmp_path / "data" / "dev" / data_set / "one"
        folder.mkdir(parents=True)
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[3:8, 3:9, 3:9] = 1
        if cubes == 2:
            labels[10:15, 9:14, 9:15] = 2
        image = (labels > 0).astype(np.int16) * 100
        image[0, 0, 0] = 50
        write_volume(folder / "image.nii.gz", image, np.eye(4))
        write_labelmap(folder / "label.nii.gz", labels, np.eye(4))
        about = {"modality": modality, "labels": {"1": "first", "2": "second"}}
        (folder / "labels.json").write_text(json.dumps(about), encoding="utf-8")
    return tmp_path / "data"


def test_every_object_is_a_case_of_its_own(data: Path) -> None:
    objects = find_objects(data / "dev")
    assert [one.source.name for one in objects] == ["cube_one_1", "cubes_one_1", "cubes_one_2"]
    assert [one.longest_side for one in objects] == [6, 6, 6]
    assert [one.data_set for one in objects] == ["cube", "cubes", "cubes"]
    first, second = (one.source.load() for one in objects[1:])
    assert second.classes == ("second",)
    assert second.case.truth is not None
    assert second.case.truth.sum() == 5 * 5 * 6
    assert first.case.image is second.case.image  # what a segmenter keeps of it serves both
    with pytest.raises(ValueError, match="liver"):
        find_objects(data / "dev", "liver")


def measure(data: Path, output: Path, *options: str | Path) -> int:
    arguments: Sequence[str] = [str(x) for x in ("--data", data, "-o", output, "--jobs", 1, *options)]
    return main(arguments)


def test_a_run_of_a_part_writes_its_files_and_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("![](page.png)\n<!-- accuracy: overview -->\n<!-- end: overview -->\n", encoding="utf-8")
    output = tmp_path / "accuracy"
    assert measure(data, output, "--methods", "watershed", "--docs", page) == 0
    peers = json.loads((output / "part" / "peers.json").read_text(encoding="utf-8"))
    scores = peers["methods"]["watershed"]
    assert min(scores["mean"]["dice"]) > 0.8  # cubes without noise
    assert scores["modalities"]["MRI"] == scores["datasets"]["cube"]
    assert peers["objects"] == {"count": 3, "datasets": {"cube": 1, "cubes": 2}}
    assert not (output / "part" / "dev.json").exists()
    assert not (output / "peers.json").exists()
    assert f"| watershed | {scores['mean']['dice'][0]:.3f} |" in page.read_text(encoding="utf-8")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"

    def never() -> None:
        raise AssertionError("all of it was there")

    monkeypatch.setitem(PEERS, "watershed", never)
    assert measure(data, output, "--methods", "watershed") == 0
    assert measure(data, output, "--methods", "watershed", "--only", "cubes") == 0
    assert "cubes " in capsys.readouterr().out


def test_a_failure_counts_as_zero_and_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def segment(self, case: Case) -> None:
            raise ValueError("no answer")

    monkeypatch.setitem(PEERS, "watershed", Broken)
    assert measure(data, tmp_path / "o", "--methods", "watershed", "--only", "cube_") == 1
    peers = json.loads((tmp_path / "o" / "part" / "peers.json").read_text(encoding="utf-8"))
    assert peers["methods"]["watershed"]["mean"]["dice"] == [0.0] * 5
    assert peers["errors"] == ["watershed: cube_one_1: no answer"]


def test_without_data_it_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "GSMEDSEG_DATA" in capsys.readouterr().err


def test_where_objects_overlap_the_surest_or_the_last_wins(make_engine: Callable[..., Engine]) -> None:
    """Two objects claim the middle of three voxels: the first one is surer of it."""
    shape, box = (1, 1, 3), (slice(0, 1), slice(0, 1), slice(0, 3))
    first, second = torch.tensor([[[5.0, 4.0, -1.0]]]), torch.tensor([[[-1.0, 2.0, 3.0]]])
    predictor = Predictor(make_engine(), roi=16)
    painted = {}
    for name, way in WAYS.items():
        segmenter = way(predictor)
        segmenter.set_image(Case("a", np.arange(3, dtype=np.uint8).reshape(shape), (1, 1, 1)))
        painted[name] = segmenter.paint(
            iter([Segment(shape, box, first), Segment(shape, box, second)])
        ).tolist()
    assert painted == {"surest": [[[1, 1, 2]]], "last": [[[1, 2, 2]]]}
