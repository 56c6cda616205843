"""Cases are checked before, split by patient, and read when they are needed."""

from __future__ import annotations

import json
import shutil
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib.case_source import LabelledCase, find_sources
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.sharding import Ranks
from GSMedSegLib.volume_io import write_volume
from Training import cases
from Training.cases import (
    CaseCache,
    check_cases,
    choose_patients,
    find_data,
    window_of,
    without_broken,
)
from Training.config import Config, Source, Validation
from Training.seen import patient_of
from Training.volumes import LabelledVolume


def write(path: Path, *, truth: bool = True, empty: bool = False, constant: bool = False) -> None:
    """A small challenge case."""
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    image = np.full((8, 8, 8), 7, np.uint8) if constant else rng.integers(0, 255, (8, 8, 8), dtype=np.uint8)
    labels = np.zeros((8, 8, 8), np.uint8)
    if not empty:
        labels[2:6, 2:6, 2:6] = 3
    path.parent.mkdir(parents=True, exist_ok=True)
    write_case(path, Case(path.stem, image, (1.0, 1.0, 1.0), labels if truth else None))


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


def test_a_look_that_is_broken_off_forgets_nothing(tmp_path, monkeypatch):
    """Of ten thousand cases, say, that took an hour: the next look reads none of them again."""
    folder, known = tmp_path / "cases", tmp_path / "known.json"
    for name in "abc":
        write(folder / f"{name}.npz")
    first = check_cases(find_sources(folder), known)

    def broken_off(source):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_cases(find_sources(folder), known, broken_off)
    monkeypatch.setattr(cases, "_look", lambda *_: pytest.fail("looked at again"))
    assert check_cases(find_sources(folder), known) == first


def test_pieces_that_are_too_small_to_be_asked_for(tmp_path):
    """Four spots of 18 voxels: no view has one of them as its object, and steps would teach nothing."""
    labels = np.zeros((8, 16, 16), np.uint8)
    for j, i in ((2, 2), (2, 10), (10, 2), (10, 10)):
        labels[3:5, j : j + 3, i : i + 3] = 1
    image = np.random.default_rng(0).integers(0, 255, labels.shape, dtype=np.uint8)
    (tmp_path / "cases").mkdir()
    write_case(tmp_path / "cases" / "spots.npz", Case("spots", image, (1.0, 1.0, 1.0), labels))
    (found,) = check_cases(find_sources(tmp_path / "cases"), tmp_path / "known.json")
    assert (found.problem, found.labels) == ("", [])


def test_a_case_read_another_way_is_looked_at_again(tmp_path, monkeypatch):
    """With another window of grey values the same file is another case; a share that was away comes back."""
    folder, known = tmp_path / "cases", tmp_path / "known.json"
    folder.mkdir()
    write(folder / "a.npz")
    plain = find_sources(folder)
    (found,) = check_cases(plain, known)
    assert not found.problem
    monkeypatch.setattr(cases, "_look", lambda *_: pytest.fail("looked at again"))
    check_cases(plain, known)
    monkeypatch.undo()

    def away():
        raise OSError("the share is away")

    other = [replace(plain[0], load=away, reading="another")]
    assert check_cases(other, known)[0].problem == "the share is away"
    assert not check_cases([replace(plain[0], reading="another")], known)[0].problem


def test_the_patients_of_a_split():
    """A fifth of ten is two, the same ones in any order; another seed, others; never none, never all."""
    patients = [f"p{n}" for n in range(10)]
    chosen = choose_patients(patients, 0.2, 0)
    assert len(chosen) == 2
    assert choose_patients([*reversed(patients), *patients], 0.2, 0) == chosen
    assert len({frozenset(choose_patients(patients, 0.2, seed)) for seed in range(10)}) > 3
    for share in (0.01, 0.99):
        assert len(choose_patients(["a", "b"], share, 0)) == 1
    assert choose_patients(patients, 0.0, 0) == set()
    with pytest.raises(ValueError, match=r"a split needs two patients, got 1; .* or share 0 to do without"):
        choose_patients(["a", "a"], 0.5, 0)


@pytest.mark.parametrize("seed", range(20))
def test_whom_weights_were_trained_on_does_not_validate_the_next_ones(seed):
    """Of five patients more and two who validated then, one or two do now; some of the new ones are left."""
    before = {f"p{n}" for n in range(10)}
    validated = choose_patients(before, 0.2, 0)
    new = {f"q{seed} {n}" for n in range(5)}
    for share, count in ((0.2, 1), (0.3, 2), (0.99, 6)):
        chosen = choose_patients(before | new, share, seed, before - validated)
        assert len(chosen) == count
        assert chosen <= validated | new
    assert choose_patients(before | {"q"}, 0.2, seed, before) == {"q"}
    with pytest.raises(ValueError, match="were trained on all these patients"):
        choose_patients(before, 0.2, seed, before)


def test_patients_stay_together(tmp_path):
    """Three scans of each of five, in two sources: whoever is validated with is nowhere trained on."""
    for patient in range(5):
        for scan in range(3):
            write(tmp_path / ("first" if scan else "second") / f"p{patient}_scan{scan}.npz")
    sources = (Source(path=str(tmp_path / "first")), Source(path=str(tmp_path / "second")))
    data = find_data(Config(data=sources, validation=Validation(share=0.4, patient=r"p(\d+)_")))
    validated = Counter(case.name[1] for case in data.validation)
    assert sorted(validated.values()) == [3, 3]
    trained = Counter(case.name[1] for _, cases in data.training for case in cases)
    assert sorted(trained.values()) == [3, 3, 3]
    assert not validated.keys() & trained.keys()
    with pytest.raises(ValueError, match="not found in the case name 'p0_scan0'"):
        find_data(Config(data=sources[1:], validation=Validation(share=0.4, patient="q(.)")))


def test_the_pattern_goes_before_the_labels_file(tmp_path):
    """A `group` that names the hospital, say, takes no part in a split by the names."""
    for n in range(4):
        write(tmp_path / "cases" / f"p{n}_a.npz")
    apart = replace(
        Config(),
        data=(Source(path=str(tmp_path / "cases")),),
        validation=Validation(share=0.25, patient=r"p\d"),
    )
    with pytest.MonkeyPatch.context() as patch:
        plain = cases.find_sources
        patch.setattr(
            cases, "find_sources", lambda *a, **k: [replace(one, patient="here") for one in plain(*a, **k)]
        )
        assert len(find_data(apart).validation) == 1


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
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    listed.write_text("one/a.npz\nscan.nii.gz\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists scan\.nii\.gz, which is neither a folder nor a \.npz file"):
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
    with pytest.raises(ValueError, match="are trained on and validated with: a, b, c"):
        find_data(replace(config, validation=Validation(path=str(tmp_path))))
    for grey, (folder, patient) in enumerate((("ours", "Smith"), ("theirs", "Smith"), ("others", "case"))):
        about = tmp_path / "groups" / folder / "case" / "labels.json"
        about.parent.mkdir(parents=True)
        about.write_text(json.dumps({"group": patient}), encoding="utf-8")
        for name in ("image.nii.gz", "label.nii.gz"):
            write_volume(about.with_name(name), np.full((4, 4, 4), grey, np.uint8), np.eye(4))
    ours = Config(data=(Source(path=str(tmp_path / "groups" / "ours")),))
    with pytest.raises(ValueError, match=r"or others of their patients, .* validated with: case"):
        find_data(replace(ours, validation=Validation(path=str(tmp_path / "groups" / "theirs"))))
    apart = find_data(replace(ours, validation=Validation(path=str(tmp_path / "groups" / "others"))))
    assert len(apart.validation) == 1, (
        "patients of whom nothing is known are not compared by their cases' names"
    )
    shutil.copytree(tmp_path / "groups" / "others", tmp_path / "groups" / "copies")
    twice = Config(data=(Source(path=str(tmp_path / "groups" / "copies")),))
    with pytest.raises(ValueError, match=r"copies of them or others .* validated with: case"):
        find_data(replace(twice, validation=Validation(path=str(tmp_path / "groups" / "others"))))
    with pytest.raises(ValueError, match="nothing to train on; give a folder of cases as --data"):
        find_data(Config())
    with pytest.raises(ValueError, match="window: expected two grey values"):
        find_data(Config(data=(Source(path=str(tmp_path), window=(1.0,)),)))


def test_a_window_that_all_cases_share(tmp_path):
    """Cases to validate with are seen in it as well; where the sources differ there is none."""
    one, other = tmp_path / "one", tmp_path / "other"
    for n, folder in enumerate((one, other)):
        image = np.arange(n, n + 64, dtype=np.int16).reshape(4, 4, 4)
        for name, array in (("image", image), ("label", (image > 20).astype(np.uint8))):
            (folder / "case").mkdir(parents=True, exist_ok=True)
            write_volume(folder / "case" / f"{name}.nrrd", array, np.eye(4))
    ct = Source(path=str(one), window=(10, 30))
    config = Config(data=(ct, Source(kind="scenes")), validation=Validation(path=str(other)))
    assert window_of(config) == (10, 30)
    seen = find_data(config).validation[0].load().case.image
    np.testing.assert_array_equal(seen.ravel()[[0, 9, 10, 29, 63]], [0, 0, 13, 255, 255])
    assert window_of(replace(config, data=(ct, Source(path=str(other))))) is None


def test_a_validation_without_cases_is_no_validation(tmp_path):
    """All of its objects are smaller than what is asked for where only some of them are taken."""
    write(tmp_path / "train" / "a.npz")
    write(tmp_path / "val" / "b.npz")
    config = Config(
        data=(Source(path=str(tmp_path / "train")),),
        output=str(tmp_path / "run"),
        validation=Validation(path=str(tmp_path / "val")),
    )
    with pytest.raises(ValueError, match=r"to validate with none is left; .*limit_objects 0"):
        without_broken(find_data(config), config, Ranks())
    every = replace(config, validation=replace(config.validation, limit_objects=0))
    assert len(without_broken(find_data(every), every, Ranks()).validation) == 1


def test_a_look_that_is_broken_off_is_not_lost(tmp_path, monkeypatch):
    """What was looked at by then is known the next time."""
    folder, known = tmp_path / "cases", tmp_path / "known.json"
    for name in "abc":
        write(folder / f"{name}.npz")
    sources, look, read = find_sources(folder), cases._look, []

    def interrupted(source, state):
        read.append(source.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return look(source, state)

    monkeypatch.setattr(cases, "_look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_cases(sources, known)
    check_cases(sources, known)
    assert read == ["a", "b", "c", "c"]


def test_cases_of_the_same_name_are_told_apart(tmp_path):
    """Two sources may each have a case a: one is broken, the other is trained on."""
    write(tmp_path / "one" / "a.npz")
    write(tmp_path / "two" / "a.npz", constant=True)
    write(tmp_path / "two" / "b.npz")
    sources = (Source(path=str(tmp_path / "one")), Source(path=str(tmp_path / "two")))
    config = Config(data=sources, output=str(tmp_path / "run"), skip_broken=True)
    training = without_broken(find_data(config), config, Ranks()).training
    assert [[case.name for case in several] for _, several in training] == [["a"], ["b"]]


def test_specks_are_no_labels(tmp_path):
    """A case whose label has fewer voxels than any view asks for would never be drawn from."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0, 0, :8] = 1
    labels[2:5, 2:5, 2:5] = 2
    image = np.arange(512, dtype=np.int64).reshape(8, 8, 8) % 255
    write_case(tmp_path / "a.npz", Case("a", image.astype(np.uint8), (1.0,) * 3, labels))
    assert check_cases(find_sources(tmp_path), tmp_path / "known.json")[0].labels == [2]


def test_broken_cases_stop_the_run_or_are_left_out(tmp_path, capsys):
    """As the settings say, and told; empty ones are never drawn; a source with nothing left is an error."""
    folder = tmp_path / "cases"
    write(folder / "a.npz")
    write(folder / "b.npz", constant=True)
    write(folder / "c.npz", empty=True)
    config = Config(data=(Source(path=str(folder)),), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"1 of 3 cases are broken \(b: .*constant.*--check lists them all"):
        without_broken(find_data(config), config, Ranks())
    config = replace(config, skip_broken=True)
    assert [case.name for case in without_broken(find_data(config), config, Ranks()).training[0][1]] == ["a"]
    told = capsys.readouterr().err
    assert "left out: b: " in told
    assert "left out: c: no label has 24 voxels" in told
    tiny = tmp_path / "tiny"
    write(tiny / "d.npz")  # 64 voxels
    for limit, count in ((4, 0), (0, 1)):
        apart = replace(config, validation=Validation(path=str(tiny), limit_objects=limit))
        if count:
            assert len(without_broken(find_data(apart), apart, Ranks()).validation) == count
        else:
            with pytest.raises(ValueError, match="of the cases to validate with none is left"):
                without_broken(find_data(apart), apart, Ranks())
            told = capsys.readouterr().err
            assert "left out: d: no label has 100 voxels; limit_objects 0 takes smaller ones" in told
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
