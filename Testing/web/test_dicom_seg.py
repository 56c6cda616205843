"""DICOM segmentations, read back by pydicom and highdicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib import __version__
from GSMedSegLib.cropped import Cropped, crop
from GSMedSegLib.volume_io import Volume, read_volume
from GSMedSegLib.web.dicom_seg import MAY_BE_EMPTY, TISSUE, codes_of, write_dicom
from GSMedSegLib.web.opening import open_path
from Testing.dicom_series import DIRECTION, ORIGIN_LPS_MM, SPACING_IJK_MM, enhanced, write_series

highdicom = pytest.importorskip("highdicom", reason="pip install 'gsmedseg[dicom]'")
pydicom = pytest.importorskip("pydicom")


def two_masks(shape: tuple[int, int, int]) -> list[tuple[str, str, Cropped]]:
    """A liver and something without a known name, overlapping in one voxel."""
    liver, other = np.zeros(shape, bool), np.zeros(shape, bool)
    liver[1:4, 2:6, 3:7] = True
    other[3:5, 5:8, 6:9] = True
    return [("Liver", "#dd8265", crop(liver)), ("Finding 7 (left)", "#56b4e9", crop(other))]


@pytest.fixture
def series(tmp_path: Path, rng: np.random.Generator) -> tuple[Volume, list[Path]]:
    """An oblique series of 6 slices of 10×12 voxels."""
    image = rng.integers(0, 200, (6, 10, 12)).astype(np.int16)
    files = write_series(image, tmp_path / "series")
    opened = open_path(tmp_path / "series")
    assert sorted(opened.dicom_files) == sorted(files)
    return opened.volume, list(opened.dicom_files)


def test_voxels_names_and_codes_come_back(series: tuple[Volume, list[Path]], tmp_path: Path):
    image, files = series
    masks = two_masks(image.shape)
    path = tmp_path / "seg.dcm"
    write_dicom(path, image, masks, files)
    dataset = pydicom.dcmread(path)
    source = pydicom.dcmread(files[0])
    assert dataset.Modality == "SEG"
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    first, second = dataset.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("Liver", "Finding 7 (left)")
    liver = first.SegmentedPropertyTypeCodeSequence[0]
    assert (liver.CodingSchemeDesignator, liver.CodeMeaning) == ("SCT", "Liver")
    unknown = second.SegmentedPropertyTypeCodeSequence[0]
    assert (unknown.CodeValue, unknown.CodingSchemeDesignator, unknown.CodeMeaning) == TISSUE
    assert first.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert first.SegmentAlgorithmName == "GSMedSeg"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == __version__
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert len(first.RecommendedDisplayCIELabValue) == 3

    segmentation = highdicom.seg.segread(path)
    for number, (_, _, mask) in enumerate(masks, start=1):
        read = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        for (k, j, i), value in np.ndenumerate(read.array[..., 0]):
            at_lps = read.map_indices_to_reference(np.array([[k, j, i]]))[0]
            a, b, c = voxel_of(at_lps)
            assert bool(value) == bool(mask.whole()[a, b, c])
        assert int(read.array.sum()) == int(mask.array.sum())


def voxel_of(at_lps: np.ndarray) -> tuple[int, int, int]:
    """(k, j, i) of a point (mm), by the numbers that the series was written with."""
    ijk = DIRECTION.T @ (at_lps - ORIGIN_LPS_MM) / SPACING_IJK_MM
    i, j, k = np.round(ijk).astype(int)
    assert np.allclose(ijk, (i, j, k), atol=1e-3)
    return k, j, i


def test_every_frame_lies_on_its_slice(series: tuple[Volume, list[Path]], tmp_path: Path):
    image, files = series
    path = tmp_path / "seg.dcm"
    write_dicom(path, image, two_masks(image.shape), files)
    dataset = pydicom.dcmread(path)
    positions = {
        tuple(np.round(pydicom.dcmread(file).ImagePositionPatient, 3).tolist()): str(
            pydicom.dcmread(file).SOPInstanceUID
        )
        for file in files
    }
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        at = tuple(np.round(frame.PlanePositionSequence[0].ImagePositionPatient, 3).tolist())
        assert at in positions
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == positions[at]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert np.allclose(axes, DIRECTION.T[:2].ravel(), atol=1e-5)
    # Pixel spacing is that of rows first: along j, then along i.
    assert np.allclose(shared.PixelMeasuresSequence[0].PixelSpacing, (0.8, 0.5))


@pytest.mark.parametrize("aside_mm", [0.0, 0.01, 0.1])
def test_slices_are_referred_to_however_their_places_are_rounded(tmp_path: Path, aside_mm: float):
    """Every other slice, 2.4 mm from the last, is moved aside: as much as a series may be uneven."""
    files = write_series(np.zeros((6, 10, 12), np.int16), tmp_path / "series")
    for k, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        at_lps = np.array(dataset.ImagePositionPatient, float) + k % 2 * aside_mm * DIRECTION[:, 2]
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in at_lps]
        dataset.save_as(file)
    opened = open_path(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    write_dicom(path, opened.volume, two_masks(opened.volume.shape), opened.dicom_files)
    written = pydicom.dcmread(path)
    places = {str(d.SOPInstanceUID): d.ImagePositionPatient for d in map(pydicom.dcmread, files)}
    frames = written.PerFrameFunctionalGroupsSequence
    assert len(frames) == 5
    for frame in frames:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(at, places[reference.ReferencedSOPInstanceUID], atol=1e-4)
    measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(opened.volume.spacing_kji_mm[0], abs=1e-5)


def test_frames_of_one_file_are_referred_to_by_number(tmp_path: Path):
    files = write_series(np.zeros((6, 10, 12), np.int16), tmp_path / "series")
    file = enhanced(files, tmp_path / "frames.dcm", [2.4 * k for k in range(6)])
    dataset = pydicom.dcmread(file)
    dataset.FrameOfReferenceUID, dataset.InstanceNumber = "1.2.826.4", 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.save_as(file)
    opened = open_path(file)
    path = tmp_path / "seg.dcm"
    write_dicom(path, opened.volume, two_masks(opened.volume.shape)[:1], opened.dicom_files)
    numbers = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    ]
    assert sorted(map(int, numbers)) == [2, 3, 4], "the liver is in slices 1 to 3"


@pytest.mark.parametrize(
    ("character_set", "patient"),
    [
        (None, "Nobody^N"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Иванов^Иван"),
        ("GB18030", "王^小东"),
    ],
)
def test_names_come_back_in_all_letters(tmp_path: Path, character_set: str | None, patient: str):
    """Whatever letters the slices can hold; a backslash would make two names of one."""
    files = write_series(np.zeros((6, 10, 12), np.int16), tmp_path / "series")
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, patient
        dataset.save_as(file)
    before = [file.read_bytes() for file in files]
    opened = open_path(tmp_path / "series")
    mask = two_masks(opened.volume.shape)[0][2]
    names = ["Leber größe", "肝臓", "Опухоль", "GTV\\left", "a\tb\x07", "é" * 70]
    path = tmp_path / "seg.dcm"
    write_dicom(path, opened.volume, [(name, "#dd8265", mask) for name in names], opened.dicom_files)
    written = pydicom.dcmread(path)
    assert written.PatientName == patient
    labels = [segment.SegmentLabel for segment in written.SegmentSequence]
    assert labels == ["Leber größe", "肝臓", "Опухоль", "GTV_left", "a_b_", "é" * 64]
    assert [segment.TrackingID for segment in written.SegmentSequence] == labels
    assert [file.read_bytes() for file in files] == before


def test_a_real_series(data_dir: Path, tmp_path: Path):
    folder = data_dir / "unlabelled" / "dicom" / "ibsi_STS_012_PET"
    opened = open_path(folder)
    mask = np.zeros(opened.volume.shape, bool)
    mask[5:9, 10:20, 12:18] = True
    path = tmp_path / "seg.dcm"
    write_dicom(path, opened.volume, [("Tumour", "#ff0000", crop(mask))], opened.dicom_files)
    read = highdicom.seg.segread(path).get_volume(combine_segments=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ opened.volume.ijk_to_ras
    low, high = np.inf, -np.inf
    for kji in np.argwhere(read.array):
        at = read.map_indices_to_reference(kji[None])[0]
        i, j, k = (np.linalg.inv(lps) @ [*at, 1])[:3]
        low, high = np.minimum(low, (k, j, i)), np.maximum(high, (k, j, i))
    assert np.allclose(low, (5, 10, 12), atol=0.01)
    assert np.allclose(high, (8, 19, 17), atol=0.01)
    assert int((read.array > 0).sum()) == mask.sum()


def test_an_image_that_is_no_dicom_is_refused(tmp_path: Path):
    image = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4), "x")
    with pytest.raises(ValueError, match=r"refers to DICOM slices.*save"):
        write_dicom(tmp_path / "seg.dcm", image, [], [])
    assert list(tmp_path.iterdir()) == []


def test_anonymised_slices_need_not_say_everything(series: tuple[Volume, list[Path]], tmp_path: Path):
    image, files = series
    for file in files:
        dataset = pydicom.dcmread(file)
        for keyword in MAY_BE_EMPTY:
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.save_as(file)
    write_dicom(tmp_path / "seg.dcm", image, two_masks(image.shape), files)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert written.PatientID in (None, "")
    assert "PatientID" not in pydicom.dcmread(files[0]), "the slices stay as they are"


def test_slices_without_a_frame_of_reference_are_refused(series: tuple[Volume, list[Path]], tmp_path: Path):
    image, files = series
    for file in files:
        dataset = pydicom.dcmread(file)
        del dataset.FrameOfReferenceUID
        dataset.save_as(file)
    with pytest.raises(ValueError, match="do not allow a segmentation"):
        write_dicom(tmp_path / "seg.dcm", image, two_masks(image.shape), files)
    assert not (tmp_path / "seg.dcm").exists()


def test_codes_are_those_of_slicers_general_anatomy():
    category, kind = codes_of("  kidney ")
    assert kind[1:] == ("SCT", "Kidney")
    assert category[1] == "SCT"
    assert codes_of("Segment_1") == (TISSUE, TISSUE)


def test_the_volume_is_the_series(series: tuple[Volume, list[Path]], tmp_path: Path):
    """What the segmentation is compared with: the volume lies where the slices were written."""
    image, _ = series
    again = read_volume(tmp_path / "series")
    assert np.array_equal(image.array, again.array)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.ijk_to_ras
    assert np.allclose(lps[:3, 3], ORIGIN_LPS_MM, atol=1e-3)
    assert np.allclose(lps[:3, :3], DIRECTION * SPACING_IJK_MM, atol=1e-3)
