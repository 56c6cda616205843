"""DICOM series and files of frames: in place, and told when a slice is missing, damaged or elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from GSMedSegLib.geometry import grid_distance_mm, kji_to_ras
from GSMedSegLib.volume_io import read_volume, write_labelmap, write_volume
from Testing.dicom_series import DIRECTION, ORIGIN_LPS_MM, enhanced, write_series

LABELS = np.zeros((7, 6, 5), np.uint8)
LABELS[1:3, 2:5, 3] = 1
LABELS[4, 0, 0] = 2


@pytest.fixture(scope="session")
def dicom_dir(data_dir: Path) -> Path:
    return data_dir / "unlabelled" / "dicom"


@pytest.mark.parametrize(
    ("name", "shape", "spacing_kji_mm"),
    [
        ("ibsi_STS_012_CT", (53, 155, 159), (3.27, 0.9766, 0.9766)),
        ("ibsi_STS_012_PET", (53, 29, 30), (3.27, 5.469, 5.469)),
        ("prostatex_0000_t2_tse_tra", (19, 384, 384), (3, 0.5, 0.5)),
    ],
)
def test_dicom_slices_lie_where_their_headers_say(
    name: str, shape: tuple[int, ...], spacing_kji_mm: tuple[float, ...], dicom_dir: Path, tmp_path: Path
) -> None:
    """Each slice of the volume is the file at that position, with the rescaling applied; the output fits."""
    volume = read_volume(dicom_dir / name)
    assert volume.name == name
    assert volume.shape == shape
    assert volume.spacing_kji_mm == pytest.approx(spacing_kji_mm, abs=1e-3)
    for path in sorted((dicom_dir / name).glob("*.dcm"))[::7]:
        header = pydicom.dcmread(path)
        x, y, z = map(float, header.ImagePositionPatient)
        corners_ras = kji_to_ras([[k, 0, 0] for k in range(shape[0])], volume.ijk_to_ras)
        offsets_mm = np.linalg.norm(corners_ras - [-x, -y, z], axis=1)
        k = int(offsets_mm.argmin())
        assert offsets_mm[k] < 0.01
        pixels = header.pixel_array * float(header.get("RescaleSlope", 1)) + float(
            header.get("RescaleIntercept", 0)
        )
        np.testing.assert_allclose(volume.array[k], pixels, rtol=1e-6)
    write_labelmap(tmp_path / "label.nii.gz", volume.array > volume.array.mean(), volume.ijk_to_ras)
    assert (
        grid_distance_mm(read_volume(tmp_path / "label.nii.gz").ijk_to_ras, volume.ijk_to_ras, shape) < 1e-4
    )


def test_several_series_in_a_folder_need_a_choice(dicom_dir: Path, tmp_path: Path) -> None:
    for name in ("ibsi_STS_012_PET", "ibsi_STS_012_MR_T1", "ibsi_STS_012_PET_RTSTRUCT"):
        for path in (dicom_dir / name).glob("*.dcm"):
            shutil.copyfile(path, tmp_path / f"{name}-{path.name}")
    uids = {
        name: str(pydicom.dcmread(next((dicom_dir / name).glob("*.dcm"))).SeriesInstanceUID)
        for name in ("ibsi_STS_012_PET", "ibsi_STS_012_MR_T1")
    }
    with pytest.raises(ValueError, match="holds 2 DICOM series; choose one of") as caught:
        read_volume(tmp_path)
    assert all(uid in str(caught.value) for uid in uids.values())
    assert read_volume(tmp_path, series=uids["ibsi_STS_012_PET"]).shape == (53, 29, 30)
    assert read_volume(tmp_path, series=uids["ibsi_STS_012_MR_T1"]).shape == (53, 98, 109)
    with pytest.raises(ValueError, match=r"no DICOM series 1\.2\.3; it has"):
        read_volume(tmp_path, series="1.2.3")


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    """Ten slices, 2.4 mm apart, oblique."""
    return write_series(np.arange(10 * 4 * 5, dtype=np.int16).reshape(10, 4, 5), tmp_path / "ct")


def change(file: Path, place_lps: NDArray[np.float64], **header: str) -> None:
    slice_ = pydicom.dcmread(file)
    slice_.ImagePositionPatient = [f"{x:.6f}" for x in place_lps]
    for name, value in header.items():
        setattr(slice_, name, value)
    slice_.save_as(file)


def place(k: float, aside_mm: float = 0) -> NDArray[np.float64]:
    """The position of slice k of the made-up series, moved aside within the slice."""
    return np.asarray(ORIGIN_LPS_MM + DIRECTION[:, 2] * 2.4 * k + DIRECTION[:, 1] * aside_mm)


def test_a_missing_slice_is_named_by_its_neighbours(slices: list[Path]) -> None:
    slices[6].unlink()
    with pytest.raises(ValueError, match=r"uneven: 4\.8 mm from 005\.dcm to 007\.dcm, elsewhere 2\.4 mm"):
        read_volume(slices[0].parent)


def test_a_tilted_gantry_is_named(slices: list[Path]) -> None:
    """0.64 mm aside at each step of 2.4 mm: the arc tangent of 0.2667 is 14.9°."""
    for k, file in enumerate(slices):
        change(file, place(k, 0.64 * k))
    with pytest.raises(ValueError, match=r"tilted by 14\.9° .* resample the series first"):
        read_volume(slices[0].parent)


@pytest.mark.parametrize(("copied", "said"), [(10, "20 slices lie at 10 places: 2"), (3, "more than one")])
def test_several_volumes_in_a_series_are_counted(slices: list[Path], copied: int, said: str) -> None:
    for k, file in enumerate(slices[:copied]):
        again = file.with_name(f"again-{k}.dcm")
        shutil.copyfile(file, again)
        change(again, place(k), SOPInstanceUID=f"1.2.826.5.{k + 1}", InstanceNumber=str(k + 11))
    with pytest.raises(ValueError, match=rf"{said} volumes? in one series"):
        read_volume(slices[0].parent)


def test_slices_unevenly_apart_without_a_gap(slices: list[Path]) -> None:
    for k, file in enumerate(slices):
        change(file, place(k + 0.008 * k**2))
    with pytest.raises(ValueError, match="the slices are uneven"):
        read_volume(slices[0].parent)


def test_several_series_are_told_apart(slices: list[Path]) -> None:
    for k, file in enumerate(slices[:3]):
        change(file, place(k), SeriesInstanceUID="1.2.826.9", SeriesDescription="Thorax, thin", Modality="MR")
    with pytest.raises(ValueError, match="2 DICOM series") as caught:
        read_volume(slices[0].parent)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("choose one of:")
    assert sorted(lines) == ["- 1.2.826.2: CT · 7 slices", "- 1.2.826.9: MR · Thorax, thin · 3 slices"]


def test_slices_in_a_folder_within_are_pointed_at(slices: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no DICOM images in this folder; they are in .*ct, give that one"):
        read_volume(tmp_path)
    for k, file in enumerate(sorted(shutil.copytree(slices[0].parent, tmp_path / "b" / "ct").iterdir())):
        change(file, place(k), SeriesInstanceUID="1.2.826.9")
    with pytest.raises(
        ValueError, match=r"2 folders within it have some, for example .*b.ct; give one .* into one"
    ):
        read_volume(tmp_path)


def test_a_series_that_goes_on_in_a_folder_within_is_not_cut_short(slices: list[Path]) -> None:
    """A copy of some slices may lie there."""
    folder = slices[0].parent
    more = folder / "more"
    more.mkdir()
    for file in slices[6:]:
        shutil.copyfile(file, more / file.name)
    assert read_volume(folder).shape == (10, 4, 5)
    slices[9].unlink()
    with pytest.raises(ValueError, match=r"series 1\.2\.826\.2 lies in 2 folders \(.*ct, .*more\); put its"):
        read_volume(folder)


def test_missing_dicom_slices_are_not_closed_up(dicom_dir: Path, tmp_path: Path) -> None:
    """SimpleITK would spread the slices that are there evenly over the whole height."""
    paths = sorted(
        (dicom_dir / "ibsi_STS_012_PET").glob("*.dcm"),
        key=lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]),
    )
    for path in paths[:20] + paths[23:]:
        shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(ValueError, match="missing or uneven"):
        read_volume(tmp_path)


def test_one_dicom_slice_is_no_volume(dicom_dir: Path, tmp_path: Path) -> None:
    (path, *_) = (dicom_dir / "ibsi_STS_012_PET").glob("*.dcm")
    with pytest.raises(ValueError, match="give the folder of its series"):
        read_volume(path)
    shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(ValueError, match=r"its series has a single slice, .*; add the others"):
        read_volume(tmp_path)


def test_a_truncated_dicom_slice_is_noticed(dicom_dir: Path, tmp_path: Path) -> None:
    for path in (dicom_dir / "ibsi_STS_012_PET").glob("*.dcm"):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:-900] if path.name == "000010.dcm" else content)
    with pytest.raises(ValueError, match=r"000010\.dcm: this slice is damaged or empty"):
        read_volume(tmp_path)


@pytest.mark.parametrize("form", ["{:03}", "IM{}", "1.2.3.{}", "slice{}.dcm"])
def test_what_is_no_slice_may_lie_beside_slices(slices: list[Path], form: str) -> None:
    """Of slices without a preface nothing says of what kind they are, so others are not compared by it."""
    folder = slices[0].parent
    files = [file.rename(folder / form.format(k + 1)) for k, file in enumerate(slices)]
    for preface in (True, False):
        for file in files if not preface else ():
            without_preface(file)
        for name in ("_SUCCESS", "readme.txt"):
            (folder / name).write_text("" if name == "_SUCCESS" else "of the scanner", encoding="utf-8")
        assert read_volume(folder).shape == (10, 4, 5)
        for name in ("_SUCCESS", "readme.txt"):
            (folder / name).unlink()
    (folder / form.format(11)).touch()
    with pytest.raises(ValueError, match="this slice is damaged or empty"):
        read_volume(folder)


@pytest.mark.parametrize("k", [0, 5, 9])
@pytest.mark.parametrize("kept", [0, 400, "zeros"])
def test_a_slice_that_cannot_be_read_is_named(slices: list[Path], k: int, kept: int | str) -> None:
    """Empty, zeros, or cut off in its header: passed over, the stack would lose its end without a word."""
    content = slices[k].read_bytes()
    slices[k].write_bytes(content[:kept] if isinstance(kept, int) else bytes(len(content)))
    other = slices[1].read_bytes()[:400].replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.9")
    (slices[0].parent / "a report.dcm").write_bytes(other)
    (slices[0].parent / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"{k:03}\.dcm: this slice is damaged or empty; copy it again"):
        read_volume(slices[0].parent)
    slices[k].unlink()
    if k != 5:
        assert len(read_volume(slices[0].parent).array) == 9


def without_preface(file: Path) -> None:
    """Written as DICOM was before it was kept in files: the elements alone."""
    image = pydicom.dcmread(file)
    image.preamble, image.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(file, image, implicit_vr=True, little_endian=True)


def test_frames_of_one_file_lie_where_it_says(slices: list[Path], tmp_path: Path) -> None:
    """As the slices do; unevenly apart or out of order they are refused."""
    even = [2.4 * k for k in range(10)]
    volume = read_volume(enhanced(slices, tmp_path / "even.dcm", even))
    series = read_volume(slices[0].parent)
    np.testing.assert_array_equal(volume.array, series.array)
    np.testing.assert_allclose(volume.ijk_to_ras, series.ijk_to_ras, atol=1e-4)
    for odd, first in ((even[:6] + [mm + 10 for mm in even[6:]], 2), ([*even[1:], 0.0], 2)):
        file = enhanced(slices, tmp_path / "odd.dcm", odd)
        with pytest.raises(ValueError, match=rf"no even stack \(frame {first} is the first elsewhere"):
            read_volume(file)


@pytest.mark.parametrize(
    ("order", "first"), [("0123401234", 6), ("0011223344", 2), ("0123443210", 6), ("0101010123", 3)]
)
def test_several_volumes_in_one_file_are_refused(
    slices: list[Path], tmp_path: Path, order: str, first: int
) -> None:
    """Echoes or times: ITK goes by the first two places, and would make one tall stack of them."""
    file = enhanced(slices, tmp_path / "several.dcm", [2.4 * int(k) for k in order])
    with pytest.raises(ValueError, match=rf"no even stack \(frame {first} is the first elsewhere"):
        read_volume(file)


@pytest.mark.parametrize("lacking", ["place", "value", "frames"])
def test_frames_without_a_place_are_refused(slices: list[Path], tmp_path: Path, lacking: str) -> None:
    file = enhanced(slices, tmp_path / "film.dcm", [2.4 * k for k in range(10)])
    film = pydicom.dcmread(file)
    frames = film.PerFrameFunctionalGroupsSequence
    if lacking == "place":
        film.SharedFunctionalGroupsSequence[0].PlanePositionSequence = frames[0].PlanePositionSequence
        for frame in frames:
            del frame.PlanePositionSequence
    elif lacking == "value":
        frames[0].PlanePositionSequence[0].ImagePositionPatient = None
    else:
        del film.PerFrameFunctionalGroupsSequence
    film.save_as(file)
    with pytest.raises(ValueError, match="nothing says where frame 1 lies"):
        read_volume(file)


def test_a_file_of_frames_may_lack_its_preface(slices: list[Path], tmp_path: Path) -> None:
    file = enhanced(slices, tmp_path / "even.dcm", [2.4 * k for k in range(10)])
    without_preface(file)
    assert read_volume(file).shape == (10, 4, 5)


def test_frames_that_nobody_can_check_are_refused(
    slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = enhanced(slices, tmp_path / "odd.dcm", [0.0, *(2.4 * k + 5 for k in range(1, 10))])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match="cannot be seen without pydicom"):
        read_volume(file)


def test_slices_have_a_scale_each(slices: list[Path]) -> None:
    """As in PET: the first slice's type, 16 bits, would hold neither 199 × 1000.5 nor any fraction."""
    for k, file in enumerate(slices):
        slice_ = pydicom.dcmread(file)
        slice_.RescaleSlope, slice_.RescaleIntercept = ("1", "0") if k == 0 else ("1000.5", "-3")
        slice_.save_as(file)
    volume = read_volume(slices[0].parent)
    stored = np.arange(10 * 4 * 5).reshape(10, 4, 5)
    np.testing.assert_array_equal(volume.array[0], stored[0])
    np.testing.assert_array_equal(volume.array[1:], stored[1:] * 1000.5 - 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(slices: list[Path], tmp_path: Path) -> None:
    """SimpleITK would end the process."""
    word = os.fsdecode(b"caf\xe9")
    write_volume(tmp_path / "image.nrrd", LABELS, np.eye(4))
    image = (tmp_path / "image.nrrd").rename(tmp_path / f"{word}.nrrd")
    slices[3].rename(slices[3].with_name(f"{word}.dcm"))
    inner = tmp_path / word
    inner.mkdir()
    for path in (image, slices[0].parent, inner):
        with pytest.raises(ValueError, match=r"caf\\udce9.*: the name is not text in UTF-8; rename"):
            read_volume(path)
    with pytest.raises(ValueError, match="the name is not text in UTF-8"):
        write_labelmap(tmp_path / f"{word}.nii.gz", LABELS, np.eye(4))


def test_a_folder_without_images(dicom_dir: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, dicom_dir / "ibsi_STS_012_CT_RTSTRUCT"):
        with pytest.raises(ValueError, match="no DICOM images in this folder"):
            read_volume(folder)


@pytest.mark.parametrize("frames", ["files", "one file"])
def test_a_film_has_no_voxel_size(frames: str, tmp_path: Path) -> None:
    """DICOM's screenshots and films often have no spacing; a series of them can still be opened."""
    files = write_series(LABELS.astype(np.int16), tmp_path / "series")
    if frames == "one file":
        film = pydicom.dcmread(files[0])
        film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.3.1"  # ultrasound
        )
        film.NumberOfFrames = len(files)
        film.PixelData = LABELS.astype(np.int16).tobytes()
        files = [tmp_path / "film.dcm"]
        film.save_as(files[0])
    where = files[0].parent if frames == "files" else files[0]
    assert read_volume(where).has_voxel_size
    for file in files:
        one = pydicom.dcmread(file)
        del one.PixelSpacing
        one.save_as(file)
    volume = read_volume(where)
    assert volume.spacing_kji_mm[1:] == (1, 1)
    assert not volume.has_voxel_size
