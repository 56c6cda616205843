"""What is done is saved, kept and brought back: a real scene and a real engine behind it, no browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from Testing.mrml.conftest import OBLIQUE, scene, serve, slicer_app  # noqa: F401 - fixtures for the tests here too

from GSMedSegLib.atomic import atomic_path  # isort: skip
from GSMedSegLib.mrml.segments import Overwrite  # isort: skip
from GSMedSegLib.prompts import ClickLedger  # isort: skip
from GSMedSegLib.service.engines import ServerEngine  # isort: skip
from GSMedSegLib.volume_io import Volume, read_labelmap  # isort: skip
from GSMedSegLib.web.autosave import KEPT_DAYS, Autosave, digest_of  # isort: skip
from GSMedSegLib.web.saving import FORMATS, plan  # isort: skip
from GSMedSegLib.web.workspace import PALETTE, Workspace  # isort: skip
from Testing.service.conftest import TOKEN, Served, wait_until  # isort: skip


@pytest.fixture
def image(blobs: Callable[..., np.ndarray]) -> Volume:
    """An oblique image of blobs, 16×24×32 voxels."""
    return Volume((blobs(16, 24, 32) * 1000).astype(np.int16), OBLIQUE, "blobs: 1/2")


@pytest.fixture
def workspace(
    scene: Any,  # noqa: F811
    serve: Callable[..., AbstractContextManager[Served]],  # noqa: F811
    image: Volume,
) -> Iterator[Workspace]:
    """A workspace with the image open."""
    with serve() as served:
        opened = Workspace(scene, ServerEngine(served.url, TOKEN))
        opened.open(image)
        yield opened
        opened.close_image()
        opened.close()


def ras_of(kji: tuple[int, int, int]) -> np.ndarray:
    return (OBLIQUE @ [*kji[::-1], 1])[:3]


def answer(workspace: Workspace) -> None:
    wait_until(lambda: (bool(workspace.poll()) and not workspace.busy) or not workspace.busy)


def two_segments(workspace: Workspace) -> None:
    workspace.click(ras_of((8, 12, 16)), True)
    answer(workspace)
    workspace.rename(workspace.segment_id, "Left kidney")
    workspace.add_segment("Lesion")
    workspace.click(ras_of((4, 6, 8)), True)
    answer(workspace)


def write(workspace: Workspace, kind: str, folder: Path) -> Path:
    path, work = plan(workspace, kind, folder)
    work()
    return path


@pytest.mark.parametrize("way", ["undo", "clear", "remove"])
def test_a_neighbour_that_got_voxels_back_is_shown_anew(workspace: Workspace, way: str):
    """Its size and its surface, though the step was on another segment."""
    workspace.click(ras_of((8, 12, 16)), True)
    answer(workspace)
    neighbour = workspace.segment_id
    before_ml = workspace.rows()[0].volume_ml
    workspace.set_options(overwrite=Overwrite.OTHERS)
    workspace.add_segment("Lesion")
    workspace.click(ras_of((8, 12, 16)), True)
    answer(workspace)
    assert workspace.rows()[0].volume_ml < before_ml
    workspace.changed_segments.clear()
    if way == "remove":
        workspace.remove(workspace.segment_id)
    else:
        getattr(workspace, way)()
    assert workspace.rows()[0].volume_ml == before_ml
    assert neighbour in workspace.changed_segments


def test_a_label_map_lies_on_the_image(workspace: Workspace, tmp_path: Path):
    two_segments(workspace)
    path = write(workspace, "nii.gz", tmp_path)
    assert path.name == "blobs_ 1_2.nii.gz"
    labels = read_labelmap(path)
    assert np.allclose(labels.ijk_to_ras, OBLIQUE, atol=1e-4)
    shown, names = workspace.labels()
    assert names == ["Left kidney", "Lesion"]
    assert np.array_equal(labels.array, shown)
    assert labels.array[8, 12, 16] == 1
    assert labels.array[4, 6, 8] == 2


def test_an_image_with_a_long_name_can_be_saved(workspace: Workspace, tmp_path: Path):
    """Names of files have 255 bytes at the most, and the ending is one of ours."""
    two_segments(workspace)
    assert workspace.image is not None
    workspace.image = Volume(workspace.image.array, OBLIQUE, "ä" * 122)
    for kind in ("seg.nrrd", "nii.gz", "json"):
        assert write(workspace, kind, tmp_path).stat().st_size > 0


def test_a_new_segment_has_a_colour_of_its_own(workspace: Workspace):
    """Also after one was deleted; only when the palette is used up colours come again."""
    first = workspace.add_segment()
    workspace.add_segment()
    workspace.remove(first)
    for _ in range(len(PALETTE) - 1):
        workspace.add_segment()
    assert sorted(row.color for row in workspace.rows()) == sorted(PALETTE)
    workspace.add_segment()
    assert workspace.rows()[-1].color in PALETTE


def test_slicers_own_format_has_names_and_colours(workspace: Workspace, tmp_path: Path):
    two_segments(workspace)
    read = sitk.ReadImage(str(write(workspace, "seg.nrrd", tmp_path)), sitk.sitkUInt8)
    assert [read.GetMetaData(f"Segment{n}_Name") for n in (0, 1)] == ["Left kidney", "Lesion"]
    color = [float(x) for x in read.GetMetaData("Segment0_Color").split()]
    assert np.allclose(color, [int(PALETTE[0][at : at + 2], 16) / 255 for at in (1, 3, 5)], atol=0.01)


def test_the_clicks_are_saved_by_the_names_of_the_segments(workspace: Workspace, tmp_path: Path):
    two_segments(workspace)
    ledger = ClickLedger.load(write(workspace, "json", tmp_path))
    assert ledger.objects == ("Left kidney", "Lesion")
    assert [c.kji for c in ledger.clicks("Left kidney")] == [(8, 12, 16)]


def test_what_cannot_be_saved_says_why(workspace: Workspace, tmp_path: Path):
    with pytest.raises(ValueError, match="no segment has voxels yet"):
        plan(workspace, "nii.gz", tmp_path)
    with pytest.raises(ValueError, match="unknown format 'exe'"):
        plan(workspace, "exe", tmp_path)
    two_segments(workspace)
    _, work = plan(workspace, "dcm", tmp_path)
    with pytest.raises(ValueError, match="refers to DICOM slices"):
        work()
    workspace.close_image()
    for kind in FORMATS:
        with pytest.raises(RuntimeError, match="open an image first"):
            plan(workspace, kind, tmp_path)


def test_work_is_kept_and_goes_on(workspace: Workspace, image: Volume, tmp_path: Path):
    two_segments(workspace)
    before, _ = workspace.labels()
    kept = Autosave(tmp_path / "kept")
    digest = digest_of(image)
    kept.save(digest, workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    workspace.open(image)
    assert workspace.rows() == []
    back = kept.load(digest, workspace.volume)
    assert back is not None
    assert time.time() - back.saved_at < 600
    workspace.restore(back.segmentation, back.segment_id)
    shown, names = workspace.labels()
    assert names == ["Left kidney", "Lesion"]
    assert np.array_equal(shown, before)
    assert workspace.segment_id == workspace.rows()[1].id
    workspace.click(ras_of((4, 6, 10)), True)
    answer(workspace)
    assert workspace.rows()[1].clicks == 2
    assert workspace.mask(workspace.rows()[1].id).whole()[4, 6, 10]


@pytest.mark.parametrize("damage", ["clicks.json", "segments-*.seg.nrrd"])
def test_what_is_damaged_is_set_aside(workspace: Workspace, image: Volume, tmp_path: Path, damage: str):
    two_segments(workspace)
    kept = Autosave(tmp_path)
    kept.save("digest", workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    (damaged,) = (tmp_path / "digest").glob(damage)
    damaged.write_bytes(b"{")
    workspace.open(image)
    with pytest.raises(ValueError, match=r"cannot be read; it was put into .*digest-damaged-") as told:
        kept.load("digest", workspace.volume)
    aside = Path(str(told.value).rpartition("put into ")[2])
    assert (aside / damaged.name).read_bytes() == b"{"
    assert kept.load("digest", workspace.volume) is None
    assert workspace.rows() == []


def test_segments_and_clicks_are_kept_together_or_not_at_all(
    workspace: Workspace, image: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The program is killed after the new segments are written, before the clicks are."""
    two_segments(workspace)
    before, _ = workspace.labels()
    kept = Autosave(tmp_path)
    kept.save("digest", workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    workspace.undo()
    answer(workspace)
    with monkeypatch.context() as patched:
        patched.setattr("GSMedSegLib.web.autosave.atomic_path", fails_for("clicks.json"))
        with pytest.raises(OSError, match="killed"):
            kept.save("digest", workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    workspace.open(image)
    back = kept.load("digest", workspace.volume)
    assert back is not None
    workspace.restore(back.segmentation, back.segment_id)
    assert np.array_equal(workspace.labels()[0], before)
    assert [row.clicks for row in workspace.rows()] == [1, 1]
    kept.save("digest", workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    assert len(list((tmp_path / "digest").iterdir())) == 2, "what is of no use is gone"


def fails_for(name: str) -> Callable[[Path], Any]:
    def path_of(path: Path) -> Any:
        if path.name == name:
            raise OSError("killed")
        return atomic_path(path)

    return path_of


def test_kept_work_has_no_voxel_of_the_image_and_goes_after_a_month(workspace: Workspace, tmp_path: Path):
    two_segments(workspace)
    kept = Autosave(tmp_path)
    for name in ("old", "new"):
        kept.save(name, workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
    if os.name == "posix":
        assert (tmp_path / "new").stat().st_mode & 0o077 == 0  # no other user of the computer reads it
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert len(files) == 2
    assert files[0] == "clicks.json"
    assert files[1].endswith(".seg.nrrd")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "new" / files[1])))
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert "blobs" not in json.loads((tmp_path / "new" / files[0]).read_text(encoding="utf-8"))
    long_ago = time.time() - (KEPT_DAYS + 1) * 86400
    os.utime(tmp_path / "old" / "clicks.json", (long_ago, long_ago))
    kept.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    kept.forget("new")
    assert list(tmp_path.iterdir()) == []


def test_work_has_one_keeper_and_another_when_that_one_dies(tmp_path: Path):
    keep = "import sys; from pathlib import Path; from GSMedSegLib.web.autosave import Autosave; "
    keep += "kept = Autosave(Path(sys.argv[1])); print(kept.claim(), flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", keep, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        assert not Autosave(tmp_path).claim()
        assert Autosave(tmp_path / "another").claim()
        first.kill()
        first.wait()
    second = Autosave(tmp_path)
    assert second.claim()
    second.tidy()
    assert not Autosave(tmp_path).claim()


def test_only_the_latest_work_is_kept(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    two_segments(workspace)
    kept = Autosave(tmp_path)
    for age, name in enumerate(("newest", "middle", "oldest")):
        kept.save(name, workspace.segmentation, workspace.interaction.ledger, workspace.segment_id)
        then = time.time() - age * 60
        os.utime(tmp_path / name / "clicks.json", (then, then))
    monkeypatch.setattr("GSMedSegLib.web.autosave.KEPT_IMAGES", 2)
    kept.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "newest"]


def test_images_are_told_apart_by_voxels_and_place(image: Volume):
    same = Volume(image.array.copy(), image.ijk_to_ras.copy(), "another name")
    assert digest_of(same) == digest_of(image)
    other = image.array.copy()
    other[0, 0, 0] += 1
    assert digest_of(Volume(other, OBLIQUE, "")) != digest_of(image)
    assert digest_of(Volume(image.array, np.eye(4), "")) != digest_of(image)


def test_what_is_wrong_is_refused(workspace: Workspace):
    with pytest.raises(ValueError, match="outside the image"):
        workspace.click(ras_of((100, 0, 0)), True)
    with pytest.raises(ValueError, match="the box is outside"):
        workspace.box([ras_of((100, 0, 0)), ras_of((110, 5, 5))])
    assert workspace.rows() == []  # no segment was left for what was refused
    two_segments(workspace)
    first = workspace.rows()[0].id
    with pytest.raises(ValueError, match="needs a name"):
        workspace.rename(first, "  ")
    workspace.set_lock(first, True)
    with pytest.raises(ValueError, match="locked"):
        workspace.remove(first)
    workspace.set_lock(first, False)
    workspace.remove(first)
    with pytest.raises(ValueError, match="there is no segment"):
        workspace.choose(first)
    assert [row.name for row in workspace.rows()] == ["Lesion"]
