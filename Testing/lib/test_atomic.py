"""Outputs are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from GSMedSegLib.atomic import atomic_path


def test_appears_when_complete_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "CASE.1.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("-CASE_1.nii.gz")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "mask.nrrd"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_on_the_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch) -> None:
    """A power cut after the new name and before the new bytes would leave neither of them."""
    done: list[str] = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, plain=plain: done.append(name) or plain(*a))
    with atomic_path(tmp_path / "mask.nrrd") as temporary:
        temporary.write_bytes(b"new")
    assert done == ["fsync", "replace"]


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="folder to write to does not exist"),
        atomic_path(tmp_path / "a/b"),
    ):
        pass


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="file name is needed"), atomic_path(tmp_path):
        pass
