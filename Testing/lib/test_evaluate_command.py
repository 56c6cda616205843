"""`gsmedseg evaluate` and `make-cases` from end to end."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from GSMedSegLib import cases_command, engine, sharding
from GSMedSegLib.case_source import CaseSource, find_sources, modality_in
from GSMedSegLib.checkpoint import read_checkpoint, write_safetensors
from GSMedSegLib.cli import main
from GSMedSegLib.npz import read_case, read_labels

ROOT = Path(__file__).resolve().parents[2]

NAMES = ("CT_small", "MR_medium", "PET_large")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with two bright balls each, beside their label maps."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for size, name in zip((24, 28, 32), NAMES, strict=True):
        grid = np.indices((size,) * 3)
        labels = np.zeros((size,) * 3, np.uint8)
        for label, middle in ((2, size // 4), (7, 3 * size // 4)):
            labels[((grid - middle) ** 2).sum(0) <= (size // 6) ** 2] = label
        image = np.where(labels > 0, 200.0, 60.0) + rng.normal(0, 10, labels.shape)
        (folder / name).mkdir()
        for kind, array in (("image", image.astype(np.int16)), ("label", labels)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / name / f"{kind}.nii.gz"))
        about = {"modality": modality_in(name), "labels": {"2": "near", "7": "far"}}
        (folder / name / "labels.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cases(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Challenge files of them, with boxes."""
    folder = tmp_path_factory.mktemp("cases")
    assert main(["make-cases", str(volumes), str(folder)]) == 0
    return folder


def evaluate(data: Path, report: Path, *options: str | Path) -> int:
    return main(["evaluate", str(data), "-o", str(report), "--precision", "fp32", *map(str, options)])


def rows(report: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without the times."""
    with (report / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if "RunningTime" not in k} for row in csv.DictReader(file)]


def test_cases_are_made_as_the_challenge_has_them(volumes: Path, cases: Path) -> None:
    assert sorted(p.name for p in cases.iterdir()) == [*(f"{n}.npz" for n in NAMES), "classes.json"]
    case = read_case(cases / "CT_small.npz")
    original = find_sources(volumes)[0].load().case
    assert original.truth is not None
    np.testing.assert_array_equal(case.image, original.image)
    np.testing.assert_array_equal(case.truth, np.searchsorted([0, 2, 7], original.truth))
    assert case.boxes is not None
    assert len(case.boxes) == 2
    assert [source.load().classes for source in find_sources(cases)] == [("near", "far")] * 3


def test_truth_apart_and_no_boxes(volumes: Path, tmp_path: Path) -> None:
    assert main(["make-cases", str(volumes), str(tmp_path), "--split-truth", "--no-boxes"]) == 0
    case = read_case(tmp_path / "imgs" / "CT_small.npz")
    assert (case.truth, case.boxes) == (None, None)
    assert set(np.unique(read_labels(tmp_path / "gts" / "CT_small.npz"))) == {0, 1, 2}
    sources = find_sources(tmp_path / "imgs", truth=tmp_path / "gts")
    assert [source.load().classes for source in sources] == [("near", "far")] * 3


def test_the_modality_is_kept_where_the_name_does_not_say_it(volumes: Path, tmp_path: Path) -> None:
    """Else the means of modalities would be others; a case made anew takes what it has now."""
    for name, to in ((NAMES[0], "liver"), (NAMES[1], "MR_brain")):
        shutil.copytree(volumes / name, tmp_path / "data" / to)
    out = tmp_path / "out"
    assert main(["make-cases", str(tmp_path / "data"), str(out)]) == 0
    assert {source.name: source.modality for source in find_sources(out)} == {
        "liver": "CT",
        "MR_brain": "MRI",
    }
    assert main(["make-cases", str(tmp_path / "data"), str(out), "--modality", "PET"]) == 0
    assert {source.modality for source in find_sources(out)} == {"PET"}
    again = ["make-cases", str(tmp_path / "data" / "MR_brain"), str(out), "--modality", "MRI"]
    assert main([*again, "--window", "-160,240"]) == 0
    assert {source.name: source.modality for source in find_sources(out)} == {
        "liver": "PET",
        "MR_brain": "MRI",
    }


def test_a_file_that_is_away_costs_its_case_alone(cases: Path, tmp_path: Path) -> None:
    """As a link of git-annex whose content was not fetched."""
    data = tmp_path / "cases"
    shutil.copytree(cases, data)
    (data / "CT_small.npz").unlink()
    try:
        (data / "CT_small.npz").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("this user of Windows may not make links")
    assert evaluate(data, tmp_path / "report", "--engine", "watershed") == 2
    found = {row["CaseName"]: float(row["DSC_AUC"]) for row in rows(tmp_path / "report")}
    assert found["CT_small.npz"] == 0 < found["MR_medium.npz"]


def test_a_bad_volume_stops_no_other(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(volumes, data)
    (data / "CT_small" / "image.nii.gz").write_bytes(b"not an image")
    assert main(["make-cases", str(data), str(tmp_path / "out")]) == 2
    assert "1 of 3 cases failed: CT_small" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8")).keys() == {
        "MR_medium",
        "PET_large",
    }
    shutil.copy(volumes / "CT_small" / "image.nii.gz", data / "CT_small")
    assert main(["make-cases", str(data), str(tmp_path / "out")]) == 0


def test_cases_that_were_made_before_an_interruption_keep_their_names(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cases_command._write

    def interrupted(source: CaseSource, options: argparse.Namespace) -> tuple[str, ...]:
        if source.name == NAMES[2]:
            raise KeyboardInterrupt
        return write(source, options)

    monkeypatch.setattr(cases_command, "_write", interrupted)
    assert main(["make-cases", str(volumes), str(tmp_path), "--modality", "SPECT"]) == 130
    made = find_sources(tmp_path)
    assert [(s.name, s.modality, s.load().classes) for s in made] == [
        (name, "SPECT", ("near", "far")) for name in NAMES[:2]
    ]


def test_names_of_earlier_cases_are_kept(volumes: Path, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        assert main(["make-cases", str(volumes / name), str(tmp_path)]) == 0
    assert json.loads((tmp_path / "classes.json").read_text(encoding="utf-8")) == {
        name: ["near", "far"] for name in NAMES[:2]
    }


@pytest.mark.parametrize("split", [False, True])
def test_the_data_itself_is_not_written_over(
    split: bool, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Be it named as a folder, a file or a list, and be the truth in it or apart; elsewhere is fine."""
    options = ["--split-truth"] if split else []
    made = tmp_path / "made"
    assert main(["make-cases", str(volumes), str(made), *options]) == 0
    folder = made / "imgs" if split else made
    truth = ["--truth", str(made / "gts")] if split else []
    case, listed = folder / "CT_small.npz", tmp_path / "list.txt"
    listed.write_text(f"{case}\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    capsys.readouterr()
    for data in (folder, case, listed):
        assert main(["make-cases", str(data), str(made), "--no-boxes", *truth, *options]) == 2
        said = capsys.readouterr().err
        assert "choose another" in said
        assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    other = tmp_path / "other"
    assert main(["make-cases", str(case), str(other), "--no-boxes", *truth, *options]) == 0
    assert capsys.readouterr().out == f"1 case in {other}\n"


def test_a_report_does_not_go_into_the_data(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(volumes, data)
    before = sorted(data.rglob("*"))
    assert evaluate(data, data) == 2
    assert "holds the data itself" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before


def test_a_report_is_written(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report"
    assert evaluate(cases, report, "--save-masks") == 0
    assert "3 cases, DSC_AUC " in capsys.readouterr().out
    written = {p.name for p in report.iterdir()}
    assert written == {
        "cases",
        "classes.csv",
        "masks",
        "metrics.csv",
        "report.html",
        "settings.json",
        "summary.json",
    }
    assert [row["CaseName"] for row in rows(report)] == [f"{name}.npz" for name in NAMES]
    assert all(float(row["DSC_AUC"]) > 2 for row in rows(report)), "bright balls are no hard case"
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3
    again = rows(report)
    stamp = (report / "cases" / "CT_small.json").stat().st_mtime_ns
    assert evaluate(cases, report, "--save-masks") == 0
    assert rows(report) == again
    assert (report / "cases" / "CT_small.json").stat().st_mtime_ns == stamp, "it was played again"


def test_names_and_modalities_may_come_later(volumes: Path, tmp_path: Path) -> None:
    """Said after an evaluation, they are in its report when it is made again."""
    data, report = tmp_path / "data", tmp_path / "report"
    shutil.copytree(volumes / NAMES[0], data)
    (data / "labels.json").unlink()
    found = []
    for about in (None, {"modality": "CT"}, {"modality": "CT", "labels": {"2": "near"}}):
        if about:
            (data / "labels.json").write_text(json.dumps(about), encoding="utf-8")
        assert evaluate(data, report, "--engine", "region-growing", "--no-pictures") == 0
        summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
        found.append((list(summary["modalities"]), list(summary["classes"])))
    assert found == [(["unknown"], ["2", "7"]), (["CT"], ["2", "7"]), (["CT"], ["near", "7"])]


def test_pairs_and_the_cases_made_of_them_score_the_same(
    volumes: Path, cases: Path, weights: Path, tmp_path: Path
) -> None:
    """But for the box round, which only the cases have; without boxes there is no difference."""
    bare = tmp_path / "bare"
    assert main(["make-cases", str(volumes), str(bare), "--no-boxes"]) == 0
    assert evaluate(volumes, tmp_path / "a", "--weights", weights) == 0
    assert evaluate(bare, tmp_path / "b", "--weights", weights) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_retrained_weights_are_other_weights(
    cases: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the same name with another content: its results are not mixed with those before."""
    mine, other, report = tmp_path / "mine.safetensors", tmp_path / "other.safetensors", tmp_path / "report"
    shutil.copy(weights, mine)
    assert evaluate(cases, report, "--weights", mine) == 0
    assert main(["weights", "convert", str(mine), str(other), "--dtype", "bf16"]) == 0
    shutil.copy(other, mine)
    assert evaluate(cases, report, "--weights", mine) == 2
    assert "weights SHA-256" in capsys.readouterr().err


def test_auto_is_what_it_came_to(
    volumes: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Results of one precision are not gone on with in another one; the same by its name is the same."""
    report = tmp_path / "report"
    words = ["evaluate", str(volumes / NAMES[0]), "-o", str(report), "--weights", str(weights)]
    monkeypatch.setattr(engine, "has_bf16", lambda device: False)
    assert main([*words, "--device", "cpu"]) == 0
    facts = json.loads((report / "summary.json").read_text(encoding="utf-8"))["facts"]
    assert (facts["device"], facts["precision"]) == ("cpu", "float32")
    stamp = (report / "cases" / f"{NAMES[0]}.json").stat().st_mtime_ns
    monkeypatch.setattr(engine, "find_device", lambda name: torch.device("cpu"))
    assert main([*words, "--precision", "fp32"]) == 0
    assert (report / "cases" / f"{NAMES[0]}.json").stat().st_mtime_ns == stamp, "it was played again"
    monkeypatch.setattr(engine, "has_bf16", lambda device: True)
    capsys.readouterr()
    assert main(words) == 2
    assert "precision 'float32', now 'bfloat16'; choose another folder" in capsys.readouterr().err


def test_processes_evaluate_alike(
    volumes: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On another machine `auto` may come to another device, be the folder shared or not."""

    class Second(sharding.Ranks):
        def agree(self, item: Any) -> Any:
            return {**item, "device": "cuda"} if isinstance(item, dict) else item

    monkeypatch.setattr(sharding, "join_ranks", lambda: contextlib.nullcontext(Second()))
    assert evaluate(volumes, tmp_path / "report", "--weights", weights, "--device", "cpu") == 2
    assert "not evaluate as the first one does: device 'cuda', now 'cpu'" in capsys.readouterr().err


def test_a_container_that_changed_is_another_one(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the same command: its results are not mixed with those before."""
    script, one, report = tmp_path / "predict.py", tmp_path / "one", tmp_path / "report"
    one.mkdir()
    shutil.copy(cases / "CT_small.npz", one)
    bright = """
import numpy as np
from pathlib import Path
(file,) = Path("inputs").iterdir()
np.savez(Path("outputs") / file.name, segs=np.load(file)["imgs"] > 128)
"""
    script.write_text(bright, encoding="utf-8")
    command = f'container:"{sys.executable}" "{script}"'
    assert evaluate(one, report, "--engine", command) == 0
    assert "Every case was within its limit" in (report / "report.html").read_text(encoding="utf-8")
    stamp = (report / "cases" / "CT_small.json").stat().st_mtime_ns

    script.write_text(bright.replace("128", "64"), encoding="utf-8")
    capsys.readouterr()
    assert evaluate(one, report, "--engine", command) == 2
    assert f"has results made with {script} SHA-256 '" in capsys.readouterr().err
    script.write_text(bright, encoding="utf-8")
    monkeypatch.setenv("GSMEDSEG_STRATEGY", "reference")
    assert evaluate(one, report, "--engine", command) == 2
    assert "GSMEDSEG_STRATEGY None, now 'reference'" in capsys.readouterr().err
    monkeypatch.delenv("GSMEDSEG_STRATEGY")
    assert evaluate(one, report, "--engine", command) == 0
    assert (report / "cases" / "CT_small.json").stat().st_mtime_ns == stamp, "it was played again"


def test_cases_are_seen_in_the_window_that_the_weights_were_trained_in(
    volumes: Path, weights: Path, tmp_path: Path
) -> None:
    checkpoint, windowed = read_checkpoint(weights), tmp_path / "windowed.safetensors"
    write_safetensors(windowed, checkpoint.tensors, {**checkpoint.metadata, "window": "50 90"})
    one, found = volumes / NAMES[0], {}
    for name, options in {
        "by the weights": ["--weights", windowed],
        "by the user": ["--weights", weights, "--window", "50,90"],
        "another one": ["--weights", windowed, "--window", "0,300"],
        "none": ["--weights", weights],
    }.items():
        assert evaluate(one, tmp_path / name, *options) == 0
        found[name] = rows(tmp_path / name)
    assert found["by the weights"] == found["by the user"]
    assert found["by the weights"] != found["none"] != found["another one"] != found["by the weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "magic"], "there is no engine 'magic'; expected gsmedseg, container:COMMAND"),
        (["--engine", "container:no-such-program"], "no program 'no-such-program'"),
        (["--objects", "0"], "at least one object"),
        (["--window", "5"], "two numbers LOW,HIGH"),
        (["--truth", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: list[str], message: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = evaluate(cases, tmp_path / "report", *options)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_report_can_be_passed_on(cases: Path, tmp_path: Path) -> None:
    """Without pictures of the cases, be they made now or kept from before; the curves stay."""
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(cases / "CT_small.npz", one)
    counts = []
    for options in ([], ["--no-pictures"]):
        assert evaluate(one, tmp_path / "report", "--engine", "watershed", *options) == 0
        counts.append(
            (tmp_path / "report" / "report.html").read_text(encoding="utf-8").count("data:image/png")
        )
    assert counts[1] < counts[0]
    assert evaluate(one, tmp_path / "fresh", "--engine", "watershed", "--no-pictures") == 0
    assert not list((tmp_path / "fresh").rglob("*.png"))


def test_a_container_that_hangs_fails(cases: Path, tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text("import time; time.sleep(60)", encoding="utf-8")
    command = f'container:"{sys.executable}" "{script}"'
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(cases / "CT_small.npz", one)
    assert evaluate(one, tmp_path / "report", "--engine", command, "--run-timeout", "0.2") == 2
    (row,) = rows(tmp_path / "report")
    assert float(row["DSC_AUC"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh, as in the container")
def test_predict_sh_six_times_is_the_same(
    cases: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container starts anew in every round; masks and scores are those of one process."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("GSMEDSEG_TIME_LIMIT", "10000")  # a busy machine would answer with less care
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(cases / "MR_medium.npz", one)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    monkeypatch.setenv("GSMEDSEG_WEIGHTS", str(weights))
    assert main(["evaluate", str(one), "-o", str(inside), "--save-masks", "--weights", str(weights)]) == 0
    command = f"container:sh '{ROOT / 'predict.sh'}'"
    assert main(["evaluate", str(one), "-o", str(outside), "--save-masks", "--engine", command]) == 0
    assert rows(inside) == rows(outside)
    masks = [read_labels(folder / "masks" / "MR_medium.npz", "segs") for folder in (inside, outside)]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def in_two_processes(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, "-m", "GSMedSegLib.cli", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_report_what_one_does(cases: Path, weights: Path, tmp_path: Path) -> None:
    """Under the real torchrun, for `evaluate` and for `predict`."""
    options = ["--weights", str(weights), "--precision", "fp32"]
    assert evaluate(cases, tmp_path / "one", "--weights", weights) == 0
    done = in_two_processes("evaluate", cases, "-o", tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 cases, DSC_AUC") == 1
    assert rows(tmp_path / "two") == rows(tmp_path / "one")

    prompted = tmp_path / "prompted"
    prompted.mkdir()
    for name in NAMES:
        shutil.copy(cases / f"{name}.npz", prompted)
    options += ["--strategy", "adaptive"]
    assert main(["predict", str(prompted), str(tmp_path / "p1"), *options]) == 0
    (prompted / "CT_broken.npz").write_bytes(b"no archive")
    done = in_two_processes("predict", prompted, tmp_path / "p2", *options)
    assert done.returncode != 0
    assert "1 of 4 cases failed: CT_broken" in done.stderr
    for name in NAMES:
        found: list[NDArray[np.generic]] = [
            read_labels(tmp_path / out / f"{name}.npz", "segs") for out in ("p1", "p2")
        ]
        np.testing.assert_array_equal(*found)
