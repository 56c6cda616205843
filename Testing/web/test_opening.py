"""Images as a browser sends them."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from GSMedSegLib.dicom_series import Series
from GSMedSegLib.web import opening
from GSMedSegLib.web.opening import open_example, open_path, unpack
from Testing.dicom_series import write_series

IMAGE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def write(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE), str(path))
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_a_file_alone_or_in_a_folder(tmp_path: Path, name: str):
    file = write(tmp_path / name)
    assert np.array_equal(open_path(file).volume.array, IMAGE)
    assert np.array_equal(open_path(tmp_path).volume.array, IMAGE)
    assert open_path(file).dicom_files == ()


def test_a_header_brings_its_data_along(tmp_path: Path):
    write(tmp_path / "a.mhd")
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(open_path(tmp_path).volume.array, IMAGE)


def test_two_images_at_once_are_a_question(tmp_path: Path):
    write(tmp_path / "a.nrrd")
    write(tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match=r"2 images at once \(a.nrrd, b.nii.gz"):
        open_path(tmp_path)


def test_an_image_beside_slices_is_a_question(tmp_path: Path):
    """A label map, for example; with a UID it is clear what is meant."""
    files = write_series(IMAGE, tmp_path / "study")
    write(tmp_path / "study" / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"at once \(mask\.nii\.gz, 000\.dcm, …\); open one of them"):
        open_path(tmp_path)
    assert sorted(open_path(tmp_path, "1.2.826.2").dicom_files) == sorted(files)


def test_a_file_is_no_place_for_a_series(tmp_path: Path):
    file = write(tmp_path / "a.nrrd")
    with pytest.raises(ValueError, match="is a file; a series is chosen in a folder"):
        open_path(file, "1.2.826.2")
    with pytest.raises(ValueError, match=r"no DICOM series 1\.2\.826\.2"):
        open_path(tmp_path, "1.2.826.2")


def test_a_folder_of_slices_and_the_larger_of_two_series(tmp_path: Path):
    files = write_series(IMAGE, tmp_path / "one")
    opened = open_path(tmp_path)
    assert np.array_equal(opened.volume.array, IMAGE)
    assert sorted(opened.dicom_files) == sorted(files)
    assert opened.series == (("1.2.826.2", "CT · 4 slices"),)
    import pydicom

    for file in write_series(IMAGE[:2], tmp_path / "two"):
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = "1.2.826.99"
        dataset.SeriesNumber, dataset.SeriesDescription = 7, "late phase"
        dataset.save_as(file)
    opened = open_path(tmp_path)
    assert opened.volume.shape == (4, 5, 6)
    assert opened.series_uid == "1.2.826.2"
    assert opened.folder == tmp_path
    assert dict(opened.series) == {
        "1.2.826.2": "CT · 4 slices",
        "1.2.826.99": "7 · CT · late phase · 2 slices",
    }
    assert open_path(tmp_path, "1.2.826.99").volume.shape == (2, 5, 6)
    with pytest.raises(ValueError, match=r"no DICOM series 1\.2\.3"):
        open_path(tmp_path, "1.2.3")


@pytest.mark.parametrize("uids", ["own", "all the same"])
def test_a_series_in_several_folders_is_not_opened_in_part(tmp_path: Path, uids: str):
    """Where the UIDs of the slices are lost, their places tell them apart."""
    import pydicom

    files = write_series(IMAGE, tmp_path / "one")
    for file in files if uids == "all the same" else ():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = "1.2.826.3"
        dataset.save_as(file)
    (tmp_path / "two").mkdir()
    files[3].rename(tmp_path / "two" / "003.dcm")
    with pytest.raises(
        ValueError, match=r"lies in 2 folders \(.*one, .*two\); put its files into one folder"
    ):
        open_path(tmp_path)


@pytest.mark.parametrize("copied", [1, 4])
def test_a_copy_of_slices_does_not_matter(tmp_path: Path, copied: int):
    files = write_series(IMAGE, tmp_path / "one")
    (tmp_path / "a copy").mkdir()
    for file in files[:copied]:
        shutil.copyfile(file, tmp_path / "a copy" / file.name)
    opened = open_path(tmp_path)
    assert np.array_equal(opened.volume.array, IMAGE)
    assert opened.series == (("1.2.826.2", "CT · 4 slices"),)


def test_a_report_beside_the_slices_does_not_matter(tmp_path: Path):
    """Hospitals send reports and presentation states in the same folder."""
    import pydicom

    files = write_series(IMAGE, tmp_path / "study")
    dataset = pydicom.dcmread(files[0])
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "SR", "1.2.826.77", "1.2.826.78"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    dataset.save_as(tmp_path / "study" / "report.dcm")
    opened = open_path(tmp_path)
    assert np.array_equal(opened.volume.array, IMAGE)
    assert opened.series == (("1.2.826.2", "CT · 4 slices"),)


def test_a_series_whose_slices_cannot_be_read_is_not_offered(tmp_path: Path):
    files = write_series(IMAGE, tmp_path / "study")
    broken = tmp_path / "study" / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    series = Series("1.2.826.77", tmp_path, (broken,))
    assert series.title == ""
    assert Series("1.2.826.2", tmp_path, tuple(files)).title == "CT · 4 slices"


@pytest.mark.parametrize("name", ["study.zip", "STUDY.ZIP"])
def test_a_zip_archive_of_slices(tmp_path: Path, name: str):
    files = write_series(IMAGE, tmp_path / "series")
    sent = tmp_path / "sent"
    sent.mkdir()
    with zipfile.ZipFile(sent / name, "w") as archive:
        for file in files:
            archive.write(file, f"deep/er/{file.name}")
    unpack(sent)
    assert np.array_equal(open_path(sent).volume.array, IMAGE)
    assert not (sent / name).exists()


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str):
    sent = tmp_path / "sent"
    sent.mkdir()
    with zipfile.ZipFile(sent / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(ValueError, match="lead out of it"):
        unpack(sent)
    assert not (tmp_path / "out.txt").exists()


def test_what_several_archives_hold_counts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "ARCHIVE_BYTES", 10_000)
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("zeros", bytes(6_000))
    with pytest.raises(ValueError, match="holds more than"):
        unpack(tmp_path)


def test_a_colour_image_is_refused(tmp_path: Path):
    image = sitk.GetImageFromArray(np.zeros((3, 8, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "colour.nrrd"))
    with pytest.raises(ValueError, match=r"colour\.nrrd"):
        open_path(tmp_path)


def test_an_image_over_time_is_refused(tmp_path: Path):
    frames = [sitk.GetImageFromArray(IMAGE) for _ in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), str(tmp_path / "beat.nii.gz"))
    with pytest.raises(ValueError, match=r"beat.nii.gz"):
        open_path(tmp_path)


def test_empty_files_are_told(tmp_path: Path):
    for name in ("a.nii.gz", "b.dcm"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(ValueError, match=name):
            open_path(folder)


def test_an_archive_that_grows_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "ARCHIVE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(20_000))
    assert (tmp_path / "bomb.zip").stat().st_size < 1000
    with pytest.raises(ValueError, match="open a part of it"):
        unpack(tmp_path)


def test_what_is_no_archive_is_told(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(ValueError, match=r"a.zip: a damaged or locked zip archive"):
        unpack(tmp_path)


def test_what_is_no_image_is_told(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x", encoding="utf-8")
    (tmp_path / "notes" / "b.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="no image in this folder; known are"):
        open_path(tmp_path / "notes")
    (tmp_path / "cut.nii.gz").write_bytes(write(tmp_path / "whole.nii.gz").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.nii.gz"):
        open_path(tmp_path / "cut.nii.gz")


def test_the_example_is_there():
    opened = open_example()
    assert opened.volume.name == "example"
    assert opened.volume.array.std() > 0
