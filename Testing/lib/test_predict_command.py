"""`gsmedseg predict`: the challenge's cases in, its label maps out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from GSMedSegLib import npz
from GSMedSegLib.batch import find_cases
from GSMedSegLib.cli import main
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine
from Testing.lib.command_line import SHAPE, Payload

CLICKS = ({"fg": [[9, 10, 12]], "bg": [[1, 1, 1]]}, {"fg": [[16, 18, 20], [15, 17, 19]], "bg": []})
SPACING = (2.5, 0.75, 1.25)
COMMON = ("--roi", "16")


def objects(*elements: Any) -> NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def save_case(path: Path, array: NDArray[np.int16], **changed: Any) -> Path:
    """A case as the challenge writes it; None leaves a key out."""
    image = np.clip(array + 60, 0, 255).astype(np.uint8)
    content = {"imgs": image, "spacing": np.array(SPACING), "clicks": objects(*CLICKS), **changed}
    np.savez_compressed(path, **{key: value for key, value in content.items() if value is not None})
    return path


@pytest.fixture
def cases(tmp_path: Path, array: NDArray[np.int16]) -> Path:
    """A folder with one good case."""
    folder = tmp_path / "cases"
    folder.mkdir()
    save_case(folder / "CT_a.npz", array)
    return folder


def segs(path: Path) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == ["segs"]
        return np.asarray(file["segs"])


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_classes_are_painted_as_the_strategy_says(
    strategy: str | None, cases: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """`reference`, the default: the last class wins where they overlap; `adaptive`: the surer one."""
    out = tmp_path / "out"
    said = run("predict", cases, out, *COMMON, *(["--strategy", strategy] if strategy else []))
    assert said == "CT_a: 2 classes\n"

    case = npz.read_case(cases / "CT_a.npz")
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"), strategy or "reference", roi=16)
    k_mm, j_mm, i_mm = SPACING
    predictor.set_image(case.image, np.diag([i_mm, j_mm, k_mm, 1]))
    logits = np.full((2, *SHAPE), -np.inf)
    assert case.clicks is not None
    for number, clicks in enumerate(case.clicks):
        predictor.add_object(f"class {number}")
        for click in clicks:
            predictor.add_click(f"class {number}", click.kji, click.positive)
        segment = predictor.segment(f"class {number}")
        logits[(number, *segment.box)] = np.nan_to_num(segment.logits.numpy(), nan=-np.inf)
    inside = logits > 0
    assert (inside[0] & inside[1]).any(), "where nothing overlaps, this test shows nothing"
    if strategy == "adaptive":
        expected = np.where(inside.any(axis=0), logits.argmax(axis=0) + 1, 0)
    else:
        expected = np.where(inside[1], 2, np.where(inside[0], 1, 0))
    np.testing.assert_array_equal(segs(out / "CT_a.npz"), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_too_little_time_costs_care_and_no_answer(
    strategy: str, cases: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that nothing can keep: the quickest way is taken, the answer is written, and all is said."""
    out = tmp_path / "out"
    arguments = ["predict", cases, out, "--weights", weights, "--strategy", strategy, "--roi", "32"]
    assert main([str(word) for word in [*arguments, "--time-limit", "0.001"]]) == 0
    said = capsys.readouterr().err
    assert "warning: CT_a: from class 1 on with quarter resolution, to stay within the time limit" in said
    assert "this run's share of the time limit is 0.0 s" in said
    assert segs(out / "CT_a.npz").shape == SHAPE
    if strategy == "adaptive":
        assert segs(out / "CT_a.npz").any()


def test_time_enough_changes_nothing(cases: Path, run: Callable[..., str], tmp_path: Path) -> None:
    run("predict", cases, tmp_path / "a", *COMMON)
    run("predict", cases, tmp_path / "b", *COMMON, "--time-limit", "3600")
    np.testing.assert_array_equal(segs(tmp_path / "a" / "CT_a.npz"), segs(tmp_path / "b" / "CT_a.npz"))


@pytest.mark.parametrize("limit", ["0", "-3", "nan"])
def test_a_time_limit_is_a_time(limit: str, cases: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    assert "--time-limit must be above 0 seconds" in fail(
        "predict", cases, tmp_path / "out", f"--time-limit={limit}"
    )


def test_labels_that_are_not_needed_cannot_be_wrong(
    cases: Path, array: NDArray[np.int16], run: Callable[..., str], tmp_path: Path
) -> None:
    """The truth, and the labels of the round before."""
    save_case(cases / "CT_b.npz", array, gts=np.full(SHAPE, 0.5), prev_pred=np.zeros((2, 2, 2), np.uint8))
    run("predict", cases, tmp_path / "out", *COMMON)
    np.testing.assert_array_equal(segs(tmp_path / "out" / "CT_b.npz"), segs(tmp_path / "out" / "CT_a.npz"))


BOX = {"z_min": 4, "z_max": 15, "z_mid": 9, "z_mid_y_min": 5, "z_mid_y_max": 16, "z_mid_x_min": 7}
BOX |= {"z_mid_x_max": SHAPE[2]}


def test_a_box_that_is_too_large_costs_nothing(
    cases: Path, array: NDArray[np.int16], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One voxel beyond the image: it is cut, and said; the same box cut by hand gives the same labels."""
    save_case(cases / "CT_b.npz", array, clicks=None, boxes=objects(BOX))
    save_case(cases / "CT_c.npz", array, clicks=None, boxes=objects({**BOX, "z_mid_x_max": SHAPE[2] - 1}))
    out = tmp_path / "out"
    command = ["predict", cases, out, "--weights", weights, "--strategy", "adaptive"]
    assert main([*map(str, command), *COMMON]) == 0
    assert capsys.readouterr().err == (
        "gsmedseg: warning: CT_b: the box of class 1 reaches beyond the image; what is inside is used\n"
    )
    np.testing.assert_array_equal(segs(out / "CT_b.npz"), segs(out / "CT_c.npz"))


def test_spacing_as_simpleitk_has_it(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases as the challenge's scripts write them: views and NIfTI go by the axes, and one line says so."""
    (tmp_path / "cases").mkdir()
    array = np.random.default_rng(2).normal(60, 20, (8, 28, 28)).astype(np.int16)
    clicks = objects({"fg": [[4, 14, 14]], "bg": []})
    for name, spacing in [("a", (1.0, 1.0, 5.0)), ("b", (5.0, 1.0, 1.0)), ("c", (1.0, 1.0, 5.0))]:
        save_case(tmp_path / "cases" / f"{name}.npz", array, spacing=np.array(spacing), clicks=clicks)
    command = ["predict", tmp_path / "cases", tmp_path / "out", "--weights", weights, "--save-nifti"]
    assert main([*map(str, command), "--strategy", "adaptive", *COMMON]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" not in line] == [
        "gsmedseg: note: spacing is taken in SimpleITK's order, (x, y, z), where that fits the image better: "
        "in 2 of 3 cases"
    ]
    for name in "abc":
        np.testing.assert_array_equal(
            segs(tmp_path / "out" / f"{name}.npz"), segs(tmp_path / "out" / "b.npz")
        )
        affine = nibabel.load(tmp_path / "out" / f"{name}.nii.gz").affine
        np.testing.assert_allclose(affine, np.diag([5, 1, 1, 1]), atol=1e-6)
    assert main([*map(str, command[:-1]), "--strategy", "reference", *COMMON]) == 0
    assert "note" not in capsys.readouterr().err  # spacing is nothing to it


def test_nifti_beside_the_result(cases: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """Array axis n is NIfTI axis n, with spacing n."""
    out = tmp_path / "out"
    run("predict", cases, out, "--save-nifti", *COMMON)
    nifti = nibabel.load(out / "CT_a.nii.gz")
    np.testing.assert_allclose(nifti.affine, np.diag([*SPACING, 1]), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), segs(out / "CT_a.npz"))
    assert sorted(path.name for path in out.iterdir()) == ["CT_a.nii.gz", "CT_a.npz"]


def test_a_class_without_clicks_stays_empty(
    cases: Path, weights: Path, array: NDArray[np.int16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No click is made up where there is none or only a box; background clicks alone run, as in the seed."""
    nothing = {"fg": [], "bg": []}
    box = {"z_min": 4, "z_max": 15, "z_mid": 9, "z_mid_y_min": 5, "z_mid_y_max": 16}
    box |= {"z_mid_x_min": 7, "z_mid_x_max": 20}
    only_background = {"fg": [], "bg": [[1, 1, 1]]}
    save_case(cases / "CT_a.npz", array, clicks=objects(nothing, CLICKS[1], only_background))
    save_case(cases / "CT_b.npz", array, clicks=None, boxes=objects(box))
    out = tmp_path / "out"
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 0
    captured = capsys.readouterr()
    assert set(np.unique(segs(out / "CT_a.npz"))) == {0, 2, 3}
    assert not segs(out / "CT_b.npz").any()
    assert captured.out == "CT_a: 3 classes\nCT_b: 1 class\n"
    assert captured.err.splitlines() == [
        f"gsmedseg: warning: {name}: class 1 has no foreground click and stays empty "
        "(a box alone is enough with --strategy adaptive)"
        for name in ("CT_a", "CT_b")
    ]


def test_bad_cases_are_named_and_the_others_go_on(
    cases: Path, weights: Path, array: NDArray[np.int16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.clip(array + 60, 0, 255).astype(np.uint8)
    witness = tmp_path / "witness"
    hostile = {"fg": [Payload(witness)], "bg": []}
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "b_key": ({"imgs": None}, "the key 'imgs' is missing; the file has: spacing, clicks"),
        "c_spacing": ({"spacing": None}, "the key 'spacing' is missing"),
        "d_dtype": ({"imgs": image + 0.5}, "imgs must be 3D (K, J, I) uint8"),
        "e_nan": ({"imgs": np.full(SHAPE, np.nan)}, "imgs must be 3D (K, J, I) uint8"),
        "f_2d": ({"imgs": image[0]}, "must be 3D (K, J, I) uint8, got shape (24, 28) uint8; give one volume"),
        "g_4d": ({"imgs": image[None]}, "imgs must be 3D (K, J, I) uint8, got shape (1, 20, 24, 28)"),
        "h_constant": ({"imgs": np.full(SHAPE, 9, np.uint8)}, "the image is constant (every voxel is 9)"),
        "i_outside": ({"clicks": objects({"fg": [[20, 0, 0]], "bg": []})}, "is outside the image"),
        "j_noclick": ({"clicks": None}, "the case has neither clicks nor boxes"),
        "k_noclass": ({"clicks": objects()}, "the case has neither clicks nor boxes"),
        "l_hostile": ({"clicks": objects(hostile)}, "not plain data; nothing of it was run"),
    }
    for name, (changed, _) in bad.items():
        save_case(cases / f"{name}.npz", array, **changed)
    (cases / "m_empty.npz").touch()
    (cases / "n_truncated.npz").write_bytes((cases / "CT_a.npz").read_bytes()[:-500])
    save_case(cases / "z_good.npz", array)
    (cases / "._z_good.npz").write_bytes(b"what macOS leaves behind")
    (cases / "notes.txt").touch()

    out = tmp_path / "out" / "deep"
    out.mkdir(parents=True)
    (out / "b_key.npz").touch()
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 2
    captured = capsys.readouterr()
    assert captured.out == "CT_a: 2 classes\nz_good: 2 classes\n"
    assert sorted(path.name for path in out.iterdir()) == ["CT_a.npz", "b_key.npz", "z_good.npz"]
    assert f"; {out / 'b_key.npz'} is of an earlier run" in captured.err
    assert captured.err.count("is of an earlier run") == 1
    assert not witness.exists()
    *lines, last = captured.err.splitlines()
    failed = [*bad, "m_empty", "n_truncated"]
    assert last == f"gsmedseg: error: 13 of 15 cases failed: {', '.join(failed)}"
    messages = [message for _, message in bad.values()] + ["(empty, truncated or damaged)"] * 2
    for line, name, message in zip(lines, failed, messages, strict=True):
        assert line.startswith(f"gsmedseg: error: {name}: ")
        assert message in line


def test_a_result_of_this_run_is_not_called_older(
    array: NDArray[np.int16], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels are written before the NIfTI file that cannot be."""
    (tmp_path / "cases").mkdir()
    save_case(tmp_path / "cases" / "CT_a.npz", array)
    (tmp_path / "out" / "CT_a.nii.gz").mkdir(parents=True)
    for _ in range(2):
        command = ["predict", tmp_path / "cases", tmp_path / "out", "--save-nifti", "--weights", weights]
        assert main([*map(str, command), *COMMON]) == 2
        assert "earlier run" not in capsys.readouterr().err
    assert (tmp_path / "out" / "CT_a.npz").exists()


def test_a_case_that_fails_to_be_written_leaves_nothing(
    cases: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_half(stream: Any, array: NDArray[Any], allow_pickle: bool) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(npz.npy_format, "write_array", write_half)
    out = tmp_path / "out"
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 2
    assert "CT_a: No space left on device; free some space" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_folders_that_cannot_be_predicted(cases: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file or directory; check the path" in fail("predict", tmp_path / "none", tmp_path / "out")
    assert "holds the cases, which the results would replace" in fail("predict", cases, cases)
    (tmp_path / "empty").mkdir()
    assert "there is no .npz case in this folder" in fail("predict", tmp_path / "empty", tmp_path / "out")
    assert "out: File exists; choose another name" in fail("predict", cases, make_file(tmp_path / "out"))
    assert "Not a directory; a folder is needed here" in fail("predict", tmp_path / "out", tmp_path / "other")
    assert find_cases(cases) == [cases / "CT_a.npz"]


def make_file(path: Path) -> Path:
    path.touch()
    return path
