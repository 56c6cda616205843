"""Evaluations that are broken off, go on, and lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib.case_source import CaseSource, LabelledCase
from GSMedSegLib.challenge import CaseResult, Played
from GSMedSegLib.evaluation import ResultStore, evaluate
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, read_labels

TRUTH = np.zeros((6, 6, 6), np.uint8)
TRUTH[1:5, 1:5, 1:3] = 1
TRUTH[1:5, 1:5, 4] = 2
IMAGE = (TRUTH * 100 + 10).astype(np.uint8)


class Perfect:
    """Knows the truth; counts its runs, and fails at the one it is told."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.runs, self.fail_at, self.error = 0, fail_at, error

    def segment(self, case: Case) -> LabelArray:
        """The truth."""
        self.runs += 1
        if self.runs == self.fail_at:
            raise self.error("the engine fell over")
        return TRUTH


def source(folder: Path, name: str, load: Callable[[], LabelledCase] | None = None) -> CaseSource:
    """A case of two classes, with a file that stands for it."""
    file = folder / f"{name}.npz"
    file.write_bytes(b"x")
    case = Case(name, IMAGE, (1, 1, 1), TRUTH)
    return CaseSource(name, "CT", (file,), load or (lambda: LabelledCase(case, ("disc", "ring"))))


@pytest.fixture
def sources(tmp_path: Path) -> list[CaseSource]:
    return [source(tmp_path, name) for name in ("CT_a", "CT_b", "CT_c")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "report"


def run(segmenter: Perfect, sources: list[CaseSource], folder: Path) -> list[CaseResult]:
    return list(evaluate(segmenter, sources, ResultStore(folder, {"engine": "perfect"})))


def test_every_case_is_played(sources: list[CaseSource], folder: Path) -> None:
    results = run(Perfect(), sources, folder)
    assert [r.name for r in results] == ["CT_a", "CT_b", "CT_c"]
    assert {r.dice_auc for r in results} == {4.0}
    assert results[0].classes == ("disc", "ring")
    assert results[0].modality == "CT"


def test_what_is_done_is_not_done_again(sources: list[CaseSource], folder: Path) -> None:
    first = run(Perfect(), sources, folder)
    again = Perfect()
    assert run(again, sources, folder) == first
    assert again.runs == 0


def test_an_interrupted_evaluation_goes_on(sources: list[CaseSource], folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Perfect(fail_at=8, error=KeyboardInterrupt), sources, folder)  # in the second case
    rest = Perfect()
    results = run(rest, sources, folder)
    assert rest.runs == 10
    assert [r.dice_auc for r in results] == [4.0] * 3


def test_a_failed_round_is_listed_and_tried_again(sources: list[CaseSource], folder: Path) -> None:
    results = run(Perfect(fail_at=2), sources, folder)
    assert [r.errors for r in results] == [("the engine fell over",), (), ()]
    assert results[0].dice_auc == 3.0  # the second of five clicks counts 0
    again = Perfect()
    assert run(again, sources, folder)[0].dice_auc == 4.0
    assert again.runs == 5


def test_a_case_that_cannot_be_read_stops_no_other(
    sources: list[CaseSource], folder: Path, tmp_path: Path
) -> None:
    def load() -> LabelledCase:
        raise ValueError("CT_bad.npz: the key 'gts' is missing")

    bad = source(tmp_path, "CT_bad", load)
    results = run(Perfect(), [sources[0], bad, sources[1]], folder)
    assert [r.name for r in results] == ["CT_a", "CT_bad", "CT_b"]
    assert (results[1].dice_auc, results[1].errors) == (0.0, ("CT_bad.npz: the key 'gts' is missing",))


def test_a_changed_file_is_played_again(sources: list[CaseSource], folder: Path) -> None:
    run(Perfect(), sources, folder)
    sources[1].files[0].write_bytes(b"longer")
    again = Perfect()
    run(again, sources, folder)
    assert again.runs == 5


def test_a_damaged_result_is_made_again(sources: list[CaseSource], folder: Path) -> None:
    run(Perfect(), sources, folder)
    (folder / "cases" / "CT_a.json").write_text('{"files": [', encoding="utf-8")
    entry = json.loads((folder / "cases" / "CT_b.json").read_text(encoding="utf-8"))
    entry["result"]["click_rounds"].pop()
    (folder / "cases" / "CT_b.json").write_text(json.dumps(entry), encoding="utf-8")
    again = Perfect()
    run(again, sources, folder)
    assert again.runs == 10


def test_a_file_that_went_away_fails_its_case_alone(
    sources: list[CaseSource], folder: Path, tmp_path: Path
) -> None:
    def load() -> LabelledCase:
        raise FileNotFoundError(2, "No such file or directory", "CT_gone.npz")

    gone = source(tmp_path, "CT_gone", load)
    gone.files[0].unlink()
    results = run(Perfect(), [gone, sources[0]], folder)
    assert [bool(r.errors) for r in results] == [True, False]


def test_a_case_that_cannot_be_played_keeps_its_classes(
    sources: list[CaseSource], folder: Path, tmp_path: Path
) -> None:
    """Three names for two classes: listed with what is known of it."""
    case = Case("CT_odd", IMAGE, (1, 1, 1), TRUTH)
    odd = source(tmp_path, "CT_odd", lambda: LabelledCase(case, ("a", "b", "c")))
    (result,) = run(Perfect(), [odd], folder)
    assert (result.classes, result.dice_auc) == (("a", "b", "c"), 0.0)
    assert "a name for each of 2 classes, got 3" in result.errors[0]


def test_a_picture_that_fails_costs_no_result(sources: list[CaseSource], folder: Path) -> None:
    def draw(played: Played) -> bytes:
        raise MemoryError

    store = ResultStore(folder, {})
    (result,) = evaluate(Perfect(), sources[:1], store, draw=draw)
    assert store.read(sources[0]) == result
    assert not store.picture("CT_a").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_folder_with_another_settings_file(text: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="not what an evaluation wrote; choose another folder"):
        ResultStore(folder, {})


def test_other_settings_need_another_folder(sources: list[CaseSource], folder: Path) -> None:
    run(Perfect(), sources, folder)
    with pytest.raises(ValueError, match="engine 'perfect', now 'other'; choose another folder"):
        ResultStore(folder, {"engine": "other"})
    with pytest.raises(ValueError, match="roi None, now '64'"):
        ResultStore(folder, {"engine": "perfect", "roi": "64"})


def test_masks_and_pictures_are_kept(sources: list[CaseSource], folder: Path) -> None:
    def draw(played: Played) -> bytes:
        return f"a picture of {played.result.name}".encode()

    store = ResultStore(folder, {})
    list(evaluate(Perfect(), sources[:1], store, draw=draw, keep_masks=True))
    np.testing.assert_array_equal(read_labels(folder / "masks" / "CT_a.npz", "segs"), TRUTH)
    assert store.picture("CT_a").read_bytes() == b"a picture of CT_a"


def test_masks_asked_for_later_are_made(sources: list[CaseSource], folder: Path) -> None:
    store = ResultStore(folder, {})
    segmenter = Perfect()
    list(evaluate(segmenter, sources[:1], store))
    played = segmenter.runs
    for _ in range(2):
        list(evaluate(segmenter, sources[:1], store, keep_masks=True))
        assert segmenter.runs == 2 * played, "played again once, and not a third time"
        assert store.masks(sources[0].name).is_file()


def test_rounds_are_told(sources: list[CaseSource], folder: Path) -> None:
    told = []
    store = ResultStore(folder, {})
    list(evaluate(Perfect(), sources[:1], store, round_done=lambda s, n: told.append((s.name, n))))
    assert told == [("CT_a", n) for n in (1, 2, 3, 4, 5)]


def test_a_full_disk_leaves_no_half_result(
    sources: list[CaseSource], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResultStore(folder, {})
    monkeypatch.setattr("json.dumps", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        list(evaluate(Perfect(), sources[:1], store))
    assert list((folder / "cases").iterdir()) == []
