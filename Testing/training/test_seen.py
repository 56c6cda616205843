"""What was trained on is known again, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib.case_source import CaseSource, find_sources
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.volume_io import write_volume
from Training.seen import patient_of, seen_among, trace_of


def write(folder: Path, seed: int, label: int = 1, suffix: str = ".nii") -> CaseSource:
    """A case of two files, mostly background, as a brain without its skull is; the files have one size."""
    folder.mkdir(parents=True)
    image, labels = np.zeros((64, 64, 32), np.int16), np.zeros((64, 64, 32), np.uint8)
    image[30:34] = np.random.default_rng(seed).integers(1, 999, (4, 64, 32))
    labels[31, label] = 1
    write_volume(folder / f"image{suffix}", image, np.eye(4))
    write_volume(folder / f"label{suffix}", labels, np.eye(4))
    (source,) = find_sources(folder)
    return source


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_images_are_told_apart_by_what_is_in_them(tmp_path: Path, suffix: str) -> None:
    """A copy is the same whatever its name, and with other labels too; another brain is not."""
    first, other = write(tmp_path / "a", 1, suffix=suffix), write(tmp_path / "b", 2, suffix=suffix)
    corrected = write(tmp_path / "elsewhere" / "c", 1, label=2, suffix=suffix)
    traces = [trace_of(first)]
    assert seen_among([first, other, corrected], "", traces) == [first, corrected]
    shutil.rmtree(tmp_path / "a")
    assert seen_among([other, corrected], "", traces) == [corrected]


def test_challenge_files_are_known_by_their_images(tmp_path: Path) -> None:
    """Whatever else is in them, packed or not."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 8, 8, 8), dtype=np.uint8)
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    write_case(tmp_path / "a.npz", Case("a", images[0], (1.0, 1.0, 1.0), labels))
    np.savez(tmp_path / "b.npz", imgs=images[0], gts=labels[::-1], spacing=np.ones(3))
    np.savez(tmp_path / "c.npz", imgs=images[1], gts=labels, spacing=np.ones(3))
    a, b, c = find_sources(tmp_path)
    assert seen_among([a, b, c], "", [trace_of(a)]) == [a, b]


def test_what_is_not_known_is_not_compared(tmp_path: Path) -> None:
    """Headers without their images, and files that are gone: nothing says that they are the same."""
    headers = []
    for name in ("a", "b"):
        folder = tmp_path / name / "case"
        write(folder, seed=ord(name))
        for kind in ("image", "label"):
            (folder / f"{kind}.nii").unlink()
            (folder / f"{kind}.mhd").write_text(f"ElementDataFile = {kind}.raw\n", encoding="utf-8")
        headers += find_sources(folder)
    assert [trace_of(source).digest for source in headers] == ["", ""]
    assert seen_among(headers, "", [trace_of(headers[0])]) == headers[:1], "it lies where it lay"
    gone = write(tmp_path / "gone", 3)
    gone.files[0].unlink()
    assert trace_of(gone).digest == ""


def test_patients_are_compared_where_somebody_said_who_they_are(tmp_path: Path) -> None:
    first, again, other = (write(tmp_path / name, n) for n, name in enumerate(("p1_a", "p1_b", "p2_a")))
    assert seen_among([again, other], r"^p\d", [trace_of(first)]) == [again], "the pattern came later"
    assert seen_among([again, other], "", [trace_of(first, r"^p\d")]) == []
    for folder in ("p1_a", "p2_a"):
        (tmp_path / folder / "labels.json").write_text(json.dumps({"group": "Smith"}), encoding="utf-8")
    first, other = (source for name in ("p1_a", "p2_a") for source in find_sources(tmp_path / name))
    assert seen_among([again, other], "", [trace_of(first)]) == [other]


def test_a_group_that_takes_no_part_finds_no_patient(tmp_path: Path) -> None:
    case = write(tmp_path / "foo", 0)
    with pytest.raises(ValueError, match="is not found in the case name 'foo'"):
        patient_of(case, r"(?:p(\d+))|foo")
    with pytest.raises(ValueError, match="is not one: "):
        patient_of(case, "(")
