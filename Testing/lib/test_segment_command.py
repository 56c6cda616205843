"""`gsmedseg segment`: what it writes and says; a failure is one line, exit code 2 and no file."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib import volume_io
from GSMedSegLib.cli import _size, main
from GSMedSegLib.geometry import flip_grid, flip_voxel, grid_distance_mm, kji_to_ras
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine
from GSMedSegLib.prompts import Box, Click, ClickLedger
from GSMedSegLib.volume_io import read_labelmap, read_volume
from Testing.dicom_series import write_series
from Testing.lib.command_line import OBLIQUE, SHAPE, write


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_every_format_in_and_out_on_an_oblique_grid(
    suffix: str, array: NDArray[np.int16], run: Callable[..., str], tmp_path: Path
) -> None:
    """The label map lies on the image's own grid, to 1e-4 mm, and holds the clicked voxel."""
    source, target = write(tmp_path / f"image{suffix}", array, OBLIQUE), tmp_path / f"labels{suffix}"
    said = run("segment", source, "-o", target, "--fg", "12,10,9")
    labels = read_labelmap(target)
    assert labels.shape == SHAPE
    assert grid_distance_mm(labels.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4
    assert labels.array[9, 10, 12] == 1
    voxels = int((labels.array == 1).sum())
    volume_mm3 = voxels * 0.9 * 1.1 * 2.5
    size = f"{volume_mm3 / 1000:.4g} ml" if volume_mm3 >= 1000 else f"{volume_mm3:.4g} mm³"
    assert said == f"object: label 1, {voxels} voxels, {size}\n"
    if suffix.startswith(".nii"):
        nifti = nibabel.load(target)
        assert grid_distance_mm(nifti.affine, OBLIQUE, SHAPE) < 1e-4
        assert np.asarray(nifti.dataobj)[12, 10, 9] == 1


def test_a_dicom_folder(data_dir: Path, run: Callable[..., str], tmp_path: Path) -> None:
    folder = data_dir / "unlabelled" / "dicom" / "ibsi_STS_012_PET"
    run("segment", folder, "-o", tmp_path / "labels.nii.gz", "--fg", "15,14,26")
    image, labels = read_volume(folder), read_labelmap(tmp_path / "labels.nii.gz")
    assert grid_distance_mm(image.ijk_to_ras, labels.ijk_to_ras, image.shape) < 1e-4
    assert labels.array[26, 14, 15] == 1


def test_a_choice_of_series_is_a_list(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_series(np.arange(80, dtype=np.int16).reshape(4, 4, 5), tmp_path / "ct")
    for file in files[:2]:
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID = "1.2.826.9"
        header.save_as(file)
    assert main(["segment", str(tmp_path / "ct"), "-o", str(tmp_path / "o.nrrd"), "--fg", "1,1,1"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.endswith("ct holds 2 DICOM series; choose one of:")
    assert sorted(lines) == ["- 1.2.826.2: CT · 2 slices", "- 1.2.826.9: CT · 2 slices"]


def test_millimetres_are_the_voxels_they_lie_in(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """The oblique grid has negative millimetres; a third of a voxel off is the same voxel."""
    clicks_kji = [[9.3, 9.7, 12.2], [2.0, 3.3, 3.8]]
    fg, bg = ["{:.6f},{:.6f},{:.6f}".format(*ras) for ras in kji_to_ras(clicks_kji, OBLIQUE)]
    run("segment", image, "-o", tmp_path / "a.nii.gz", "--fg", "12,10,9", "--bg", "4,3,2")
    run("segment", image, "-o", tmp_path / "b.nii.gz", "--ras", "--fg", fg, "--bg", bg)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_ledger_replays_to_the_same_bits(
    strategy: str, image: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """Two objects, clicks in turn; once more from the file alone, and once more continued from a part."""
    common = ["--strategy", strategy, "--roi", 16]
    first = ["--object", "block", "--fg", "12,10,9", "--object", "corner", "--fg", "2,2,2"]
    second = ["--object", "block", "--bg", "25,20,17"]
    a, b, c = (tmp_path / f"{name}.nrrd" for name in "abc")
    ledger, part = tmp_path / "clicks.json", tmp_path / "part.json"
    said = run("segment", image, "-o", a, *first, *second, "--save-clicks", ledger, *common)
    assert run("segment", image, "-o", b, "--clicks", ledger, *common) == said
    run("segment", image, "-o", c, *first, "--save-clicks", part, *common)
    again = run("segment", image, "-o", c, "--clicks", part, *second, "--save-clicks", part, *common)
    assert again == said
    assert a.read_bytes() == b.read_bytes() == c.read_bytes()
    assert part.read_bytes() == ledger.read_bytes()


def test_a_ledger_replays_to_the_same_mask_from_another_format(
    array: NDArray[np.int16], weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """NIfTI rounds the spacing to float32; the views, hence the masks, go by the ledger's own numbers."""
    exact, rounded = (write(tmp_path / name, array, OBLIQUE) for name in ("image.nrrd", "image.nii.gz"))
    ledger = tmp_path / "clicks.json"
    run("segment", exact, "-o", tmp_path / "a.nrrd", "--fg", "12,10,9", "--save-clicks", ledger)
    run("segment", rounded, "-o", tmp_path / "b.nrrd", "--clicks", ledger)
    spacings = {read_volume(path).spacing_kji_mm for path in (exact, rounded)}
    assert len(spacings) == 2, "where no number is rounded, this test shows nothing"
    a, b = (read_labelmap(tmp_path / name).array for name in ("a.nrrd", "b.nrrd"))
    np.testing.assert_array_equal(a, b)


LEFT_HANDED = np.diag([-2.0, 2.0, 3.0, 1.0])
"""Left, anterior, superior."""


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_a_ledger_replays_to_the_same_mask_on_a_left_handed_file(
    axes: tuple[int, ...], array: NDArray[np.int16], run: Callable[..., str], tmp_path: Path
) -> None:
    """Slicer turns it right-handed, and its clicks are on that; results are on the file's own grid."""
    turned = flip_grid(LEFT_HANDED, SHAPE, axes)
    file = write(tmp_path / "las.nii.gz", array, LEFT_HANDED)
    assert nibabel.aff2axcodes(nibabel.load(file).affine) == ("L", "A", "S")
    slicers = write(tmp_path / "turned.nrrd", np.flip(array, axes), turned)
    old = np.zeros(SHAPE, np.uint8)
    old[5:9, 6:9, 7:10] = 1
    start = write(tmp_path / "old.nrrd", np.flip(old, axes), turned)

    def places(*voxels: tuple[int, int, int]) -> list[str]:
        return [f"{i},{j},{k}" for k, j, i in (flip_voxel(kji, SHAPE, axes) for kji in voxels)]

    fg, bg, second = places((9, 10, 12), (2, 3, 4), (7, 8, 9))
    low, high = places((4, 5, 7), (15, 16, 20))
    prompts = [
        "--object",
        "block",
        "--fg",
        fg,
        "--bg",
        bg,
        "--object",
        "old",
        "--mask",
        start,
        "--fg",
        second,
    ]
    a, b, ledger, again = (tmp_path / name for name in ("a.nrrd", "b.nrrd", "clicks.json", "again.json"))
    sure, sure_b = tmp_path / "sure.nrrd", tmp_path / "sure-b.nrrd"
    said = run(
        "segment", slicers, "-o", a, *prompts, "--object", "boxed", "--box", f"{low},{high}",
        "--save-clicks", ledger, "--probability", sure, "--hint",
    )  # fmt: skip
    replay = ["segment", file, "-o", b, "--clicks", ledger, "--save-clicks", again, "--probability", sure_b]
    said_b = run(*replay, "--hint")
    labels, labels_b = read_labelmap(a), read_labelmap(b)
    assert grid_distance_mm(labels_b.ijk_to_ras, LEFT_HANDED, SHAPE) < 1e-4
    np.testing.assert_array_equal(np.flip(labels_b.array, axes), labels.array)
    assert labels_b.array[9, 10, 12] == 1
    for n in (1, 2, 3):
        maps = [read_volume(tmp_path / f"{stem}-{n}.nrrd").array for stem in ("sure", "sure-b")]
        np.testing.assert_array_equal(np.flip(maps[1], axes), maps[0])
    pattern = r"look at (\d+),(\d+),(\d+) \(RAS ([^ ]+) mm"
    hints, hints_b = (re.findall(pattern, text) for text in (said, said_b))
    assert hints_b
    assert [(flip_voxel((int(k), int(j), int(i)), SHAPE, axes), ras) for i, j, k, ras in hints_b] == [
        ((int(k), int(j), int(i)), ras) for i, j, k, ras in hints
    ]
    for clicks in (again, ledger):
        assert ClickLedger.load(clicks).clicks("block") == (
            Click(flip_voxel((9, 10, 12), SHAPE, axes), True),
            Click(flip_voxel((2, 3, 4), SHAPE, axes), False),
        )


def test_clicks_are_added_on_the_voxels_of_the_file(
    array: NDArray[np.int16], run: Callable[..., str], tmp_path: Path
) -> None:
    """To a ledger that Slicer made of a left-handed file."""
    file = write(tmp_path / "las.nii.gz", array, LEFT_HANDED)
    ledger = ClickLedger(SHAPE, flip_grid(LEFT_HANDED, SHAPE, (0,)))
    ledger.add_object("a")
    ledger.save(tmp_path / "clicks.json")
    given = ["segment", file, "-o", tmp_path / "out.nrrd", "--clicks", tmp_path / "clicks.json"]
    run(*given, "--fg", "12,10,9", "--save-clicks", tmp_path / "more.json")
    assert read_labelmap(tmp_path / "out.nrrd").array[9, 10, 12] == 1
    assert ClickLedger.load(tmp_path / "more.json").clicks("a") == (Click((10, 10, 12), True),)


def test_an_image_without_position_has_no_millimetres(
    array: NDArray[np.int16], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti = nibabel.Nifti1Image(array.T, None)
    nifti.set_qform(np.eye(4), 0)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    arguments = ["segment", tmp_path / "image.nii.gz", "-o", tmp_path / "o.nrrd", "--weights", weights]
    command = [*map(str, arguments), "--fg", "12,10,9"]
    assert main([*command, "--ras"]) == 2
    said = capsys.readouterr().err
    assert "its header gives no position (qform_code and sform_code are 0), so there" in said
    assert main(command) == 0
    said = capsys.readouterr().err
    assert said.startswith("gsmedseg: warning: ")
    assert "in different places" in said
    assert said.count("\n") == 1


def test_a_voxel_size_that_is_made_up_is_said(
    array: NDArray[np.int16], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    k, j, i = array.shape
    header = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {i} {j} {k}\nendian: little\nencoding: raw\n\n"
    (tmp_path / "image.nrrd").write_bytes(header.encode() + array.astype("<i2").tobytes())
    arguments = ["segment", tmp_path / "image.nrrd", "-o", tmp_path / "o.nrrd", "--weights", weights]
    assert main([*map(str, arguments), "--fg", "12,10,9"]) == 0
    assert (
        "image.nrrd: its header does not say how large a voxel is; 1 mm is taken" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("voxels", "voxel_mm3", "size"),
    [
        (2000, 1.0, "2 ml"),
        (500, 1.0, "500 mm³"),
        (0, 1.0, "0 mm³"),
        (2, 24e-9, "48 µm³"),
        (12345, 24e-9, "296280 µm³"),
        (0, 24e-9, "0 µm³"),
        (500_000, 24e-9, "0.012 mm³"),
    ],
)
def test_a_volume_has_a_unit_that_suits_it(voxels: int, voxel_mm3: float, size: str) -> None:
    assert _size(voxels, voxel_mm3) == size


def test_clicks_go_to_the_object_before_them(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """i,j,k becomes (k, j, i); coming back to an object adds to it; labels are in order."""
    ledger = tmp_path / "clicks.json"
    said = run(
        "segment", image, "-o", tmp_path / "labels.nrrd", "--save-clicks", ledger,
        "--object", "liver", "--fg", "12,10,9", "--bg=4,3,2", "--object", "left kidney", "--fg", "20,18,16",
        "--object", "liver", "--fg", "13,11,8",
    )  # fmt: skip
    saved = ClickLedger.load(ledger)
    assert saved.objects == ("liver", "left kidney")
    assert saved.clicks("liver") == (
        Click((9, 10, 12), True),
        Click((2, 3, 4), False),
        Click((8, 11, 13), True),
    )
    assert saved.clicks("left kidney") == (Click((16, 18, 20), True),)
    assert saved.ijk_to_ras is not None
    assert grid_distance_mm(saved.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4
    assert [line.split(",")[0] for line in said.splitlines()] == ["liver: label 1", "left kidney: label 2"]


def test_a_segmentation_for_slicer_has_the_names(
    image: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "x.seg.nrrd"
    run("segment", image, "-o", out, "--object", "liver", "--fg", "12,10,9", "--object", "b", "--fg", "2,2,2")
    written = sitk.ReadImage(str(out))
    assert [written.GetMetaData(f"Segment{n}_Name") for n in (0, 1)] == ["liver", "b"]


def test_the_mask_is_the_library_s(
    image: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """The shell adds nothing to what `Predictor` computes."""
    run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--fg", "9,9,9", "--bg", "1,1,1")
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    predictor.add_object("object")
    for kji, positive in (((9, 10, 12), True), ((9, 9, 9), True), ((1, 1, 1), False)):
        predictor.add_click("object", kji, positive)
    np.testing.assert_array_equal(read_labelmap(tmp_path / "labels.nrrd").array, predictor.predict("object"))


def test_a_box_has_two_opposite_corners(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """In either order, in voxels or in millimetres; the clicked object needs no name."""
    ledger, out = tmp_path / "clicks.json", tmp_path / "labels.nrrd"
    run("segment", image, "-o", out, "--fg", "12,10,9", "--box", "20,5,15,7,16,4", "--save-clicks", ledger)
    box = ClickLedger.load(ledger).box("object")
    assert box is not None
    assert (box.min_kji, box.max_kji) == ((4, 5, 7), (15, 16, 20))

    straight = write(tmp_path / "straight.nrrd", read_volume(image).array, np.diag([-2.0, -2.0, 3.0, 1.0]))
    run(
        "segment", straight, "-o", out, "--ras", "--fg", "-24,-20,27",
        "--box", "-40,-10,45,-14,-32,12", "--save-clicks", ledger,
    )  # fmt: skip
    assert ClickLedger.load(ledger).box("object") == box
    assert ClickLedger.load(ledger).clicks("object") == (Click((9, 10, 12), True),)


def test_what_an_object_starts_from_is_replayed(
    image: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """A box, a mask, or a mask and background clicks, as the browser app and Slicer save them."""
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    given = np.zeros(SHAPE, bool)
    given[5:9, 6:9, 7:10] = True
    for name, mask in (("boxed", None), ("kept", given), ("cut", given[::-1])):
        predictor.add_object(name)
        if mask is None:
            predictor.set_box(name, Box((4, 5, 7), (15, 16, 20)))
        else:
            predictor.set_mask(name, mask)
    predictor.add_click("cut", (12, 7, 8), positive=False)
    predictor.ledger.save(tmp_path / "clicks.json")
    out = tmp_path / "labels.nrrd"
    said = run("segment", image, "-o", out, "--clicks", tmp_path / "clicks.json", "--hint")
    np.testing.assert_array_equal(read_labelmap(out).array, predictor.labels())
    assert "kept: label 2, 36 voxels" in said

    run("segment", image, "-o", out, "--box", "7,5,4,20,16,15")
    np.testing.assert_array_equal(read_labelmap(out).array, predictor.predict("boxed"))


def test_a_mask_to_start_from(image: Path, weights: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """As the library does it; a mask alone is kept as it is, a click changes what is around it."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9, 6:9, 7:10] = 3
    labels[12:15, 12:15, 12:20] = 7
    old = write(tmp_path / "old.nii.gz", labels, OBLIQUE)
    out, ledger = tmp_path / "labels.nrrd", tmp_path / "clicks.json"
    run(
        "segment", image, "-o", out, "--save-clicks", ledger,
        "--object", "kept", "--mask", f"{old}:7",
        "--object", "cut", "--mask", f"{old}:3", "--bg", "8,7,6",
    )  # fmt: skip
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    for name, label in (("kept", 7), ("cut", 3)):
        predictor.add_object(name)
        predictor.set_mask(name, labels == label)
    predictor.add_click("cut", (6, 7, 8), positive=False)
    found = read_labelmap(out).array
    np.testing.assert_array_equal(found, predictor.labels())
    np.testing.assert_array_equal(found == 1, labels == 7)
    assert found[6, 7, 8] == 0
    run("segment", image, "-o", tmp_path / "again.nrrd", "--clicks", ledger)
    np.testing.assert_array_equal(read_labelmap(tmp_path / "again.nrrd").array, found)

    write(old, np.where(labels == 3, 200, 0).astype(np.uint8), OBLIQUE)
    run("segment", image, "-o", old, "--mask", old)  # may be written over: it was read whole
    np.testing.assert_array_equal(read_labelmap(old).array, labels == 3)


def test_a_map_of_several_labels_is_not_written_over(
    image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    """Neither by what becomes of one of them nor by its probabilities."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9], labels[10:12] = 3, 7
    old = write(tmp_path / "old.nii.gz", labels, OBLIQUE)
    assert "would be lost" in fail("segment", image, "-o", old, "--mask", f"{old}:3")
    out = tmp_path / "out.nii.gz"
    said = fail("segment", image, "-o", out, "--mask", f"{old}:3", "--probability", old)
    assert "is a mask to start from" in said
    np.testing.assert_array_equal(read_labelmap(old).array, labels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.nii.gz", "none.nii.gz"),
        ("two.nii.gz", "the map has the labels 1, 2; give one of them, "),
        ("two.nii.gz:3", "two.nii.gz:3: the map has the labels 1, 2"),
        ("two.nii.gz:0", "the map has the labels 1, 2"),
        ("empty.nii.gz", "is empty: all its voxels are 0"),
        ("small.nii.gz", "they must be on one grid"),
        ("elsewhere.nii.gz:1", "mm off its image; resample it to the image's grid"),
        ("grey.nii.gz", "grey.nii.gz"),
    ],
)
def test_a_mask_that_cannot_be_started_from(
    name: str, message: str, image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    two = np.zeros(SHAPE, np.uint8)
    two[2], two[3] = 1, 2
    write(tmp_path / "two.nii.gz", two, OBLIQUE)
    write(tmp_path / "empty.nii.gz", two * 0, OBLIQUE)
    write(tmp_path / "small.nii.gz", two[1:], OBLIQUE)
    write(tmp_path / "elsewhere.nii.gz", two, np.eye(4))
    write(tmp_path / "grey.nii.gz", two + np.float32(0.5), OBLIQUE)
    assert message in fail("segment", image, "-o", tmp_path / "out.nrrd", "--mask", tmp_path / name)


def test_probabilities_are_written_on_the_image_s_grid(
    image: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """Above a half where the label is; of several objects each in a file of its own."""
    out, probability = tmp_path / "labels.nii.gz", tmp_path / "sure.nii.gz"
    run("segment", image, "-o", out, "--fg", "12,10,9", "--probability", probability)
    volume = read_volume(probability)
    assert volume.array.dtype == np.float32
    assert 0 <= volume.array.min() < 0.5 < volume.array.max() <= 1
    np.testing.assert_array_equal(volume.array > 0.5, read_labelmap(out).array == 1)
    assert grid_distance_mm(volume.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4

    both = ["--object", "a", "--fg", "2,2,2", "--object", "b", "--fg", "12,10,9"]
    run("segment", image, "-o", out, *both, "--probability", tmp_path / "both.nii.gz")
    assert not (tmp_path / "both.nii.gz").exists()
    np.testing.assert_array_equal(read_volume(tmp_path / "both-2.nii.gz").array, volume.array)
    assert (tmp_path / "both-1.nii.gz").exists()


def test_probabilities_do_not_go_over_what_is_there(
    image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    common = ("segment", image, "-o", tmp_path / "p-2.nii.gz", "--fg", "12,10,9")
    assert "is the image" in fail(*common, "--probability", image)
    assert "is the label map" in fail(*common, "--probability", tmp_path / "p-2.nii.gz")
    two = (*common[:4], "--object", "a", "--fg", "2,2,2", "--object", "b", "--fg", "12,10,9")
    assert "p-2.nii.gz is the label map" in fail(*two, "--probability", tmp_path / "p.nii.gz")
    assert "volumes are written as" in fail(*common, "--probability", tmp_path / "p.png")


def test_a_hint_is_a_click_to_copy(
    image: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """i,j,k and its millimetres of the library's own hint, and the option that clicks there."""
    said = run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--hint")
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    predictor.add_object("object")
    predictor.add_click("object", (9, 10, 12))
    hint = predictor.next_click("object")
    assert hint is not None
    k, j, i = hint.kji
    ras = ",".join(f"{x:.1f}" for x in kji_to_ras([hint.kji], OBLIQUE)[0])
    sign, option = ("+", "--fg") if hint.positive else ("−", "--bg")
    assert said.splitlines()[1] == (
        f"object: look at {i},{j},{k} (RAS {ras} mm), {sign} if the mask is wrong there: {option} {i},{j},{k}"
    )


def test_without_doubt_there_is_no_hint(
    image: Path, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "next_click", lambda self, name: None)
    said = run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--hint")
    assert said.splitlines()[1] == "object: nothing is in doubt, so no further click is proposed"


def test_an_empty_object_is_said_to_be_empty(
    image: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ClickLedger(SHAPE)
    for name in ("block", "nothing"):
        ledger.add_object(name)
    ledger.add_click("block", Click((9, 10, 12), True))
    ledger.save(tmp_path / "clicks.json")
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--clicks", str(tmp_path / "clicks.json")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1] == "nothing: label 2, 0 voxels, 0 mm³"
    assert captured.err == (
        "gsmedseg: warning: object 'nothing' came out empty; it has no foreground click\n"
    )


def test_progress_is_for_a_person_who_watches(
    image: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--fg", "12,10,9", "--fg", "9,9,9"]) == 0
    assert "segmenting: 100%" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ([], "there is no click; add --fg i,j,k"),
        (["--bg", "1,2,3"], "there is no foreground click; add --fg i,j,k"),
        (["--object", "liver"], "object 'liver' has no foreground click; add --fg"),
        (
            ["--object", "a", "--fg", "1,2,3", "--object", "b", "--bg", "1,2,3"],
            "object 'b' has no foreground",
        ),
        (["--object", " ", "--fg", "1,2,3"], "an object needs a name"),
        (["--fg", "1,2,3", "--object", "liver"], "--fg 1,2,3 comes before the first --object"),
        (["--fg", "28,0,0"], "--fg 28,0,0: voxel i,j,k = 28,0,0 is outside the image"),
        (["--fg", "-1,0,0"], "is outside the image; its indices are i 0..27, j 0..23, k 0..19"),
        (["--fg", "1e8,0,0"], "is outside the image"),
        (["--fg", "1.5,0,0"], "voxel indices are whole numbers; for millimetres, add --ras"),
        (["--ras", "--fg", "1000,0,0"], "--fg 1000,0,0: voxel"),
        (["--fg", "1,2"], "argument --fg: expected i,j,k: 3 numbers, commas, no spaces; got '1,2'"),
        (["--fg", "1,2,x"], "got '1,2,x'"),
        (["--fg", "1,2,nan"], "got '1,2,nan'"),
        (["--fg", "-1,2,1e400"], "got '-1,2,1e400'"),
        (["--fg"], "argument --fg: expected one argument"),
        (["--fg", "1,2,3", "--box", "1,2,3,4"], "expected i1,j1,k1,i2,j2,k2"),
        (["--fg", "1,2,3", "--box", "0,0,0,9,9,99"], "--box 0,0,0,9,9,99: voxel i,j,k = 9,9,99 is outside"),
        (
            ["--box", "0,0,0,9,9,9", "--strategy", "reference", "--roi", "16"],
            "add --fg i,j,k, a voxel inside the object; a box alone is enough with --strategy",
        ),
        (["--bg", "1,2,3", "--strategy", "reference", "--roi", "16"], "there is no foreground click"),
        (["--fg", "1,2,3", "--strategy", "magic"], "invalid choice: 'magic'"),
        (["--fg", "1,2,3", "--device", "abacus"], "expected device auto, cpu or cuda; got 'abacus'"),
        (["--fg", "1,2,3", "--roi", "15"], "multiple of 4; got 15"),
        (["--fg", "1,2,3", "--series", "1.2"], "a series is chosen in a folder"),
        (["--fg", "1,2,3", "--weights", "none.pt"], "expected weights by name (compact,"),
        (["--fg", "1,2,3", "--weights", "vista3d"], "run: gsmedseg weights fetch vista3d"),
    ],
)
def test_wrong_clicks_and_choices(
    clicks: list[str], message: str, image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    assert message in fail("segment", image, "-o", tmp_path / "labels.nii.gz", *clicks)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("labels.png", "choose one of these endings"),
        ("labels", "choose one of these endings"),
        (".nii.gz", "this is an ending without a name before it; give a name"),
        ("none/labels.nii.gz", "none: the folder to write to does not exist; check the path"),
        ("folder.nii.gz", "a file name is needed, this is a folder"),
        ("image.nii.gz", "is the image itself; choose another name"),
    ],
)
def test_a_bad_output_is_noticed_before_anything_is_read(
    output: str,
    message: str,
    image: Path,
    fail: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    monkeypatch.setattr(volume_io, "read_volume", None)
    assert message in fail("segment", image, "-o", tmp_path / output, "--fg", "1,2,3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clicks.nii.gz", "clicks are saved as .json"),
        ("none/clicks.json", "the folder to write to does not exist"),
    ],
)
def test_a_bad_ledger_to_write_is_noticed_first(
    name: str,
    message: str,
    image: Path,
    fail: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume_io, "read_volume", None)
    arguments = ["segment", image, "-o", tmp_path / "labels.nii.gz", "--fg", "1,2,3"]
    assert message in fail(*arguments, "--save-clicks", tmp_path / name)


def make_bad_image(kind: str, path: Path, array: NDArray[np.int16]) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        write(path, array)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind in ("NaN", "infinite"):
        bad = array.astype(np.float32)
        bad[3, 3, 3] = np.nan if kind == "NaN" else np.inf
        write(path, bad)
    elif kind == "constant":
        write(path, np.full(SHAPE, 7, np.int16))
    elif kind == "2D":
        sitk.WriteImage(sitk.GetImageFromArray(array[0]), str(path))
    elif kind == "4D":
        nibabel.save(nibabel.Nifti1Image(np.stack([array.T] * 2, axis=-1), np.eye(4)), path)
    elif kind == "colour":
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(path))
    elif kind == "folder without DICOM":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "image.nii: No such file or directory; check the path"),
        ("empty", "image.nii: not a readable image (empty, damaged or of another kind)"),
        ("text", "image.nii: not a readable image"),
        ("truncated", "image.nii: the file is incomplete, 2000 bytes are missing"),
        ("NaN", "image.nii: the image has NaN or infinite voxels; replace them"),
        ("infinite", "image.nii: the image has NaN or infinite voxels; replace them"),
        ("constant", "the image is constant (every voxel is 7)"),
        ("2D", "image.nii: the image must be 3D, got 2D"),
        ("4D", "image.nii: the image must be 3D, got 4D"),
        ("colour", "one number a voxel is needed"),
        ("folder without DICOM", "no DICOM images in this folder"),
    ],
)
def test_images_that_cannot_be_segmented(
    kind: str, message: str, array: NDArray[np.int16], fail: Callable[..., str], tmp_path: Path
) -> None:
    make_bad_image(kind, tmp_path / "image.nii", array)
    assert message in fail("segment", tmp_path / "image.nii", "-o", tmp_path / "labels.nrrd", "--fg", "1,2,3")


def test_ledgers_that_cannot_be_replayed(image: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "clicks.json"
    arguments = ["segment", image, "-o", tmp_path / "labels.nii.gz", "--clicks", path]
    assert "clicks.json: No such file" in fail(*arguments)
    assert "image.nii.gz: not a click ledger" in fail(*arguments[:-1], image)
    path.touch()
    assert "not a click ledger: not valid JSON" in fail(*arguments)
    ledger = ClickLedger((3, 4, 5))
    ledger.add_object("a")
    ledger.save(path)
    assert "the clicks were made on an image of shape (3, 4, 5)" in fail(*arguments)
    ledger = ClickLedger(SHAPE, np.eye(4))
    ledger.save(path)
    assert "another position, spacing or orientation" in fail(*arguments)
    ledger = ClickLedger(SHAPE)
    ledger.add_object("a")
    ledger.save(path)
    assert "there is no click" in fail(*arguments)
    ledger.set_box("a", Box((1, 2, 3), (4, 5, 6)))
    ledger.save(path)
    said = fail(*arguments, "--strategy", "reference", "--roi", "16")
    assert "there is no click" in said
    assert "a box alone is enough with --strategy adaptive" in said
    ledger.clear()
    ledger.add_object("b")
    ledger.save(path)
    assert "the ledger has several objects ('a', 'b'); give --object" in fail(*arguments, "--fg", "1,2,3")
    data = json.loads(path.read_text())
    data["events"] = [{"event": "click", "object": "a", "kji": [99, 0, 0], "positive": True}]
    path.write_text(json.dumps(data))
    assert "event 1 of the click ledger: voxel" in fail(*arguments)


def test_a_full_disk(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was half written goes, what was there before stays."""
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"older")

    def write_half(image: sitk.Image, name: str, compress: bool) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(volume_io.sitk, "WriteImage", write_half)
    arguments = ["-o", target, "--fg", "12,10,9", "--save-clicks", tmp_path / "clicks.json"]
    assert "free some space, or write to another disk" in fail("segment", image, *arguments)


def test_too_little_memory(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Predictor, "labels", labels)
    said = fail("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9")
    assert "not enough memory; crop the image" in said


def test_an_error_of_several_lines_is_told_in_one(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise RuntimeError("CUDA out of memory.\n  Tried to allocate 2 GiB.\n")

    monkeypatch.setattr(Predictor, "labels", labels)
    said = fail("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9")
    assert said == "gsmedseg: error: CUDA out of memory. Tried to allocate 2 GiB.\n"


def test_control_c(
    image: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "labels", labels)
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--fg", "12,10,9"]) == 130
    assert capsys.readouterr().err.startswith("gsmedseg: stopped")
    assert list(tmp_path.iterdir()) == [image]
