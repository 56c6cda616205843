"""Cases are checked before, split by patient, and read when they are needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib.case_source import CaseSource, LabelledCase, find_sources
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.sharding import Ranks
from Training import cases
from Training.cases import CaseCache, check_cases, find_data, patient_of, split_by_patient, without_broken
from Training.config import Config, Source, Validation
from Training.volumes import LabelledVolume


def write(path: Path, *, truth: bool = True, empty: bool = False, constant: bool = False) -> None:
    """A small challenge case."""
    rng = np.random.default_rng(0)
    image = np.full((8, 8, 8), 7, np.uint8) if constant else rng.integers(0, 255, (8, 8, 8), dtype=np.uint8)
    labels = np.zeros((8, 8, 8), np.uint8)
    if not empty:
        labels[2:6, 2:6, 2:6] = 3
    path.parent.mkdir(parents=True, exist_ok=True)
    write_case(path, Case(path.stem, image, (1.0, 1.0, 1.0), labels if truth else None))


def source(name: str) -> CaseSource:
    return CaseSource(name, "CT", (), lambda: None)  # never read


def test_every_broken_case_is_found_with_its_reason(tmp_path):
    """Sound ones with their labels; what is wrong is said, the others are looked at all the same."""
    folder = tmp_path / "cases"
    write(folder / "a.npz")
    write(folder / "b.npz", constant=True)
    write(folder / "c.npz", truth=False)
    write(folder / "e.npz", empty=True)
    (folder / "d.npz").write_bytes(b"no archive")
    found = {f.name: f for f in check_cases(find_sources(folder), tmp_path / "known.json")}
    assert found["a"].labels == [3]
    assert [found[name].problem == "" for name in "abcde"] == [True, False, False, False, True]
    assert "constant" in found["b"].problem
    assert "no truth" in found["c"].problem
    assert "d.npz" in found["d"].problem
    assert found["e"].labels == []


def test_a_case_is_looked_at_once_until_it_changes(tmp_path, monkeypatch):
    """The second look reads only the file that was written again; a spoilt record costs time, no more."""
    folder, known = tmp_path / "cases", tmp_path / "known.json"
    write(folder / "a.npz")
    write(folder / "b.npz")
    read, look = [], cases._look

    def watched(source, state):
        read.append(source.name)
        return look(source, state)

    monkeypatch.setattr(cases, "_look", watched)
    first = check_cases(find_sources(folder), known)
    assert check_cases(find_sources(folder), known) == first
    assert read == ["a", "b"]
    write(folder / "b.npz", constant=True)
    assert [bool(f.problem) for f in check_cases(find_sources(folder), known)] == [False, True]
    assert read == ["a", "b", "b"]
    known.write_text("{", encoding="utf-8")
    check_cases(find_sources(folder), known)
    assert read == ["a", "b", "b", "a", "b"]


def test_patients_stay_together():
    """Ten patients with three cases each: two are kept, whole, and always the same ones."""
    scans = [source(f"p{patient}_scan{scan}") for patient in range(10) for scan in range(3)]
    training, kept = split_by_patient(scans, 0.2, 0, r"p(\d+)_")
    by_patient = Counter(patient_of(case, r"p(\d+)_") for case in kept)
    assert sorted(by_patient.values()) == [3, 3]
    assert len(training) == 24
    assert not by_patient.keys() & {patient_of(case, r"p(\d+)_") for case in training}
    assert split_by_patient(scans, 0.2, 0, r"p(\d+)_") == (training, kept)
    assert split_by_patient(scans, 0.2, 1, r"p(\d+)_") != (training, kept)
    more, kept_of_more = split_by_patient([*scans, source("p99_scan0")], 0.1, 0, r"p(\d+)_")
    assert len(kept_of_more) in (1, 3)
    assert len(more) + len(kept_of_more) == 31


def test_a_split_leaves_something_on_both_sides():
    """However small or large the share; a single patient cannot be split."""
    cases = [source("a"), source("b")]
    for share in (0.01, 0.99):
        training, kept = split_by_patient(cases, share, 0)
        assert len(training) == len(kept) == 1
    assert split_by_patient(cases, 0.0, 0) == (cases, [])
    with pytest.raises(ValueError, match="a split needs two patients, got 1"):
        split_by_patient(cases[:1], 0.5, 0)
    with pytest.raises(ValueError, match="not found in the case name 'a'"):
        patient_of(cases[0], "p(.)")


def test_the_patient_is_what_the_labels_file_says(training_data):
    """`group` in labels.json; without it the case is its own patient."""
    folder = training_data / "train" / "blobs"
    (folder / "case_a" / "labels.json").write_text('{"group": "Smith"}', encoding="utf-8")
    assert [patient_of(case) for case in find_sources(folder)] == ["Smith", "case_b"]


def test_a_list_names_cases(tmp_path):
    """Relative to itself; comments and empty lines say nothing; what is not there is named."""
    write(tmp_path / "one" / "a.npz")
    write(tmp_path / "two" / "b.npz")
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\none/a.npz\n\ntwo\n", encoding="utf-8")
    assert [case.name for case in find_sources(listed)] == ["a", "b"]
    assert find_sources(listed)[0].load().case.truth is not None
    listed.write_text("three/c.npz\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists three/c\.npz, which does not exist"):
        find_sources(listed)


def test_what_is_trained_on_is_not_validated_with(tmp_path):
    """A split by share; cases given apart; the same ones in both are refused; nothing at all is refused."""
    for name in "abcde":
        write(tmp_path / f"{name}.npz")
    config = Config(data=(Source(path=str(tmp_path)),), validation=Validation(share=0.4))
    data = find_data(config)
    assert (data.count, len(data.validation)) == (3, 2)
    limited = find_data(replace(config, validation=Validation(share=0.4, limit_cases=1)))
    assert [case.name for case in limited.validation] == [data.validation[0].name]
    with pytest.raises(ValueError, match="trained on and validated with: a, b, c"):
        find_data(replace(config, validation=Validation(path=str(tmp_path))))
    with pytest.raises(ValueError, match="nothing to train on; give a folder of cases as --data"):
        find_data(Config())
    with pytest.raises(ValueError, match="window: expected two grey values"):
        find_data(Config(data=(Source(path=str(tmp_path), window=(1.0,)),)))


def test_broken_cases_stop_the_run_or_are_left_out(tmp_path):
    """As the settings say; empty ones are never drawn; a source with nothing left is an error."""
    folder = tmp_path / "cases"
    write(folder / "a.npz")
    write(folder / "b.npz", constant=True)
    write(folder / "c.npz", empty=True)
    config = Config(data=(Source(path=str(folder)),), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"1 of 3 cases are broken \(b: .*constant.*--check lists them all"):
        without_broken(find_data(config), config, Ranks())
    config = replace(config, skip_broken=True)
    assert [case.name for case in without_broken(find_data(config), config, Ranks()).training[0][1]] == ["a"]
    write(folder / "a.npz", empty=True)
    with pytest.raises(ValueError, match="no case with labels is left to train on"):
        without_broken(find_data(config), config, Ranks())


def test_the_cache_keeps_what_fits():
    """Three volumes of 64 bytes in room for two: the least recently used goes, and is read again."""
    reads = []

    def loader(index):
        def load():
            reads.append(index)
            return LabelledVolume(np.zeros((4, 4, 4), np.uint8), (1.0, 1.0, 1.0), None)

        return load

    cache = CaseCache([loader(index) for index in range(3)], 128)
    assert len(cache) == 3
    assert reads == []
    first = cache[0]
    assert cache[0] is first
    cache[1], cache[0], cache[2]
    assert list(cache.kept) == [0, 2]
    cache[1]
    assert reads == [0, 1, 2, 1]
    tiny = CaseCache([loader(0), loader(1)], 1)
    assert tiny[0] is tiny[0]
    tiny[1]
    assert list(tiny.kept) == [1]


def test_a_labelled_case_is_what_a_source_loads(tmp_path):
    """The seam to the library: a truth, and no names where there are none."""
    write(tmp_path / "a.npz")
    labelled = find_sources(tmp_path)[0].load()
    assert isinstance(labelled, LabelledCase)
    assert labelled.case.truth.max() == 3
