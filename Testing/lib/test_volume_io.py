"""Volumes in, label maps out: geometry kept, damage noticed, nothing left half-written."""

from __future__ import annotations

import errno
import gzip
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib import volume_io
from GSMedSegLib.geometry import grid_distance_mm, kji_to_ras, lps_from_ijk_to_ras
from GSMedSegLib.volume_io import Volume, read_labelmap, read_volume, write_labelmap

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]


def grid(
    angles_deg: tuple[float, float, float], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """A matrix whose axes are turned about z, y, x; a negative spacing mirrors one."""
    turned = np.eye(3)
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), np.radians(angles_deg)):
        turn = np.eye(3)
        turn[[a, b], [a, b]] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        turned = turned @ turn
    matrix = np.eye(4)
    matrix[:3, :3] = turned * spacing_mm
    matrix[:3, 3] = -123.456789, 87.654321, 345.678912
    return matrix


GRIDS = {
    "axial CT": grid((180, 0, 0), (0.9765625, 0.9765625, 3.27)),
    "oblique": grid((12.3, -45.6, 78.9), (0.7, 0.8, 1.9)),
    "left-handed": grid((0, 0, 0), (1.1, 1.2, -1.3)),
    "oblique left-handed": grid((33, 21, -170), (-0.51, 0.52, 4.75)),
    "anisotropic": grid((0, 90, 0), (0.2, 0.2, 9.0)),
    "ten nanometres": grid((5, 6, 7), (1e-5, 1e-5, 3e-5)) * np.array([[1], [1], [1], [1]]),
}
GRIDS["ten nanometres"][:3, 3] = 0.001, -0.002, 0.0005
SHEARED = GRIDS["oblique"].copy()
SHEARED[:3, 1] += 0.2 * SHEARED[:3, 0]

LABELS = np.zeros((7, 6, 5), np.uint8)
LABELS[1:3, 2:5, 3] = 1
LABELS[4, 0, 0] = 2


def write_image(
    path: Path, array: NDArray[Any], ijk_to_ras: NDArray[np.float64], compress: bool = True
) -> Path:
    """As other programs write images, with SimpleITK."""
    image = sitk.GetImageFromArray(array)
    origin, spacing, direction = lps_from_ijk_to_ras(ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), compress)
    return path


def write_nibabel(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", GRIDS)
def test_output_lies_where_the_input_lies(name: str, suffix: str, tmp_path: Path) -> None:
    """To 1e-4 mm at every corner, for us, for SimpleITK and (NIfTI) for nibabel; voxels in place."""
    image_path = write_image(tmp_path / f"image{suffix}", LABELS * 50.0, GRIDS[name])
    volume = read_volume(image_path)
    label_path = tmp_path / f"label{suffix}"
    write_labelmap(label_path, LABELS, volume.ijk_to_ras)

    tolerance_mm = min(1e-4, 1e-2 * min(volume.spacing_kji_mm))
    assert grid_distance_mm(volume.ijk_to_ras, GRIDS[name], LABELS.shape) < tolerance_mm
    again = read_labelmap(label_path)
    assert grid_distance_mm(again.ijk_to_ras, GRIDS[name], LABELS.shape) < tolerance_mm
    np.testing.assert_array_equal(again.array, LABELS)
    theirs, original = sitk.ReadImage(str(label_path)), sitk.ReadImage(str(image_path))
    for index in ((0, 0, 0), (4, 5, 6)):
        distance_mm = math.dist(*(x.TransformIndexToPhysicalPoint(index) for x in (theirs, original)))
        assert distance_mm < tolerance_mm
    if suffix.startswith(".nii"):
        nifti = nibabel.load(label_path)
        assert grid_distance_mm(nifti.affine, GRIDS[name], LABELS.shape) < tolerance_mm
        np.testing.assert_array_equal(np.asarray(nifti.dataobj).T, LABELS)


@pytest.mark.parametrize("name", GRIDS)
def test_a_nibabel_image_is_read_at_its_affine(name: str, tmp_path: Path) -> None:
    affine = GRIDS[name]
    volume = read_volume(write_nibabel(tmp_path / "image.nii.gz", LABELS.T.astype(np.int16), affine))
    assert grid_distance_mm(volume.ijk_to_ras, affine, LABELS.shape) < min(
        1e-4, 1e-2 * min(volume.spacing_kji_mm)
    )
    np.testing.assert_array_equal(volume.array, LABELS)


def test_a_landmark_keeps_its_millimetres(tmp_path: Path) -> None:
    """The label-2 voxel (4, 0, 0) is where nibabel, asked in its own way, says it is."""
    path = tmp_path / "label.nii.gz"
    write_labelmap(path, LABELS, GRIDS["oblique left-handed"])
    nifti = nibabel.load(path)
    ijk = np.argwhere(np.asarray(nifti.dataobj) == 2)[0]
    expected_ras = kji_to_ras([[4, 0, 0]], GRIDS["oblique left-handed"])[0]
    np.testing.assert_allclose(nibabel.affines.apply_affine(nifti.affine, ijk), expected_ras, atol=1e-4)


def test_micrometres_are_read_as_millimetres(tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(LABELS.T, np.diag([2.0, 3, 4, 1]))
    nifti.header.set_xyzt_units("micron")
    nibabel.save(nifti, tmp_path / "cells.nii")
    assert read_volume(tmp_path / "cells.nii").spacing_kji_mm == pytest.approx((0.004, 0.003, 0.002))


@pytest.mark.parametrize(
    ("highest", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")]
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_take_the_smallest_type(highest: int, dtype: str, suffix: str, tmp_path: Path) -> None:
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1, 2, 3] = highest
    write_labelmap(tmp_path / f"label{suffix}", labels, np.eye(4), compress=False)
    again = read_labelmap(tmp_path / f"label{suffix}")
    np.testing.assert_array_equal(again.array, labels)
    assert again.array.dtype == dtype
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"label{suffix}"))).dtype == dtype


def test_a_segmentation_for_slicer_has_the_names(tmp_path: Path) -> None:
    """Voxels and place are those of a plain label map; other endings have no place for names."""
    for ending in (".seg.nrrd", ".nrrd"):
        write_labelmap(tmp_path / f"x{ending}", LABELS, GRIDS["oblique"], names=("Leber ✓", "a \\n\nb"))
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), LABELS)
    ijk_to_ras = read_volume(tmp_path / "x.seg.nrrd").ijk_to_ras
    assert grid_distance_mm(ijk_to_ras, GRIDS["oblique"], LABELS.shape) < 1e-4
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment1")}
    assert fields.pop("Segment1_Color") != image.GetMetaData("Segment0_Color")
    assert fields == {
        "Segment1_ID": "Segment_2",
        "Segment1_Name": "a \\n\nb",
        "Segment1_LabelValue": "2",
        "Segment1_Layer": "0",
        "Segment1_Extent": "0 4 0 5 0 6",
    }
    assert "Segment" not in " ".join(sitk.ReadImage(str(tmp_path / "x.nrrd")).GetMetaDataKeys())


def test_slicer_reads_the_names(tmp_path: Path) -> None:
    core = pytest.importorskip("trame_slicer.core", reason="Slicer's core needs the extra: gsmedseg[web]")
    slicer = pytest.importorskip("slicer")
    write_labelmap(tmp_path / "x.seg.nrrd", LABELS, GRIDS["oblique"], names=("Leber ✓", "b"))
    scene, storage = core.SlicerApp().scene, slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "x.seg.nrrd"))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert storage.ReadData(node)
    found = [node.GetSegmentation().GetNthSegment(n) for n in range(2)]
    assert [(one.GetName(), one.GetLabelValue()) for one in found] == [("Leber ✓", 1), ("b", 2)]


def test_labels_stored_as_floats_are_labels_and_probabilities_are_not(tmp_path: Path) -> None:
    path = write_image(tmp_path / "label.nii.gz", LABELS.astype(np.float32), np.eye(4))
    np.testing.assert_array_equal(read_labelmap(path).array, LABELS)
    write_image(path, LABELS * np.float32(0.5), np.eye(4))
    with pytest.raises(ValueError, match="probability map"):
        read_labelmap(path)
    write_image(path, LABELS.astype(np.int16) - 1, np.eye(4))
    with pytest.raises(ValueError, match=r"labels from 0 .* got -1"):
        read_labelmap(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 5), np.uint8), "3D label map"),
        (np.zeros((0, 4, 5), np.uint8), "3D label map"),
        (np.full((2, 2, 2), -1), "labels from 0"),
        (np.full((2, 2, 2), 2**33), "labels from 0"),
        (np.full((2, 2, 2), math.nan), "labels from 0"),
        (np.full((2, 2, 2), 0.5), "fractions"),
        (np.full((2, 2, 2), "liver"), "whole numbers"),
    ],
)
def test_what_is_no_label_map_is_not_written(labels: NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_labelmap(tmp_path / "label.nii.gz", labels, np.eye(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["label.png", "label", "label.mhd", "label.NII", "label.nii.gz.txt"])
def test_unknown_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.nii, \.nii\.gz, \.nrrd, \.mha"):
        write_labelmap(tmp_path / name, LABELS, np.eye(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", FORMATS)
def test_sheared_axes_are_kept_or_refused_never_bent(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"label{suffix}"
    if suffix.startswith(".nii"):
        with pytest.raises(ValueError, match=r"cannot hold this geometry .* write \.nrrd or \.mha"):
            write_labelmap(path, LABELS, SHEARED)
        assert not list(tmp_path.iterdir())
    else:
        write_labelmap(path, LABELS, SHEARED)
        assert grid_distance_mm(read_labelmap(path).ijk_to_ras, SHEARED, LABELS.shape) < 1e-4


def test_a_sheared_sform_is_explained(tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(LABELS.T, None)
    nifti.set_sform(SHEARED, 1)
    nibabel.save(nifti, tmp_path / "image.nii")
    with pytest.raises(ValueError, match="axes are sheared") as caught:
        read_volume(tmp_path / "image.nii")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sform", [SHEARED, GRIDS["left-handed"]])
def test_a_header_with_two_positions_is_refused(sform: NDArray[np.float64], tmp_path: Path) -> None:
    """SimpleITK would take the qform, nibabel the sform: in one the result would lie beside the image."""
    nifti = nibabel.Nifti1Image(LABELS.T, None)
    nifti.set_sform(sform, 4)
    nifti.set_qform(GRIDS["oblique"], 1)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    with pytest.raises(ValueError, match=r"sform and qform .* disagree"):
        read_volume(tmp_path / "image.nii.gz")
    nifti.set_sform(GRIDS["oblique"], 4)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    read_volume(tmp_path / "image.nii.gz")


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 2)])
def test_a_header_may_have_no_position(qform: int, sform: int, tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(LABELS.T, GRIDS["left-handed"])
    nifti.set_qform(GRIDS["left-handed"], qform)
    nifti.set_sform(GRIDS["left-handed"], sform)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    assert read_volume(tmp_path / "image.nii.gz").has_position == bool(qform or sform)
    assert read_labelmap(tmp_path / "image.nii.gz").has_position == bool(qform or sform)
    assert read_volume(write_image(tmp_path / "image.nrrd", LABELS, np.eye(4))).has_position


@pytest.mark.parametrize(
    ("name", "header", "size"),
    [
        (
            "image.nrrd",
            "NRRD0004\ndimension: 3\nsizes: 5 6 7\n{}type: uint8\nencoding: raw\n\n",
            "spacings: 1 1 1\n",
        ),
        (
            "image.mha",
            "NDims = 3\n{}DimSize = 5 6 7\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
            "ElementSpacing = 1 1 1\n",
        ),
    ],
    ids=["NRRD", "MetaImage"],
)
def test_a_header_may_have_no_voxel_size(name: str, header: str, size: str, tmp_path: Path) -> None:
    """Cubes of 1 mm that it names are no such header."""
    for given, known in ((size, True), ("", False)):
        (tmp_path / name).write_bytes(header.format(given).encode() + LABELS.tobytes())
        volume = read_volume(tmp_path / name)
        assert volume.spacing_kji_mm == (1, 1, 1)
        assert volume.has_voxel_size == known
        np.testing.assert_array_equal(volume.array, LABELS)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_2_is_called_that(suffix: str, tmp_path: Path) -> None:
    """It is not damaged."""
    path = tmp_path / f"image{suffix}"
    nibabel.save(nibabel.Nifti2Image(LABELS.T, np.eye(4)), path)
    with pytest.raises(ValueError, match="this is NIfTI-2; save it as NIfTI-1"):
        read_volume(path)


def test_only_3d_grey_images(tmp_path: Path) -> None:
    write_nibabel(tmp_path / "2d.nii", np.ones((4, 5), np.int16), np.eye(4))
    with pytest.raises(ValueError, match="must be 3D, got 2D; save it as a volume of one slice"):
        read_volume(tmp_path / "2d.nii")
    sitk.WriteImage(sitk.Image(4, 5, sitk.sitkUInt8), str(tmp_path / "photo.png"))
    with pytest.raises(ValueError, match="must be 3D, got 2D"):
        read_volume(tmp_path / "photo.png")
    write_nibabel(tmp_path / "4d.nii.gz", np.ones((4, 5, 6, 2), np.int16), np.eye(4))
    with pytest.raises(ValueError, match="must be 3D, got 4D; give one volume of it"):
        read_volume(tmp_path / "4d.nii.gz")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.nrrd"))
    with pytest.raises(ValueError, match="one number a voxel"):
        read_volume(tmp_path / "colour.nrrd")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), str(tmp_path / "complex.mha"))
    with pytest.raises(ValueError, match="one number a voxel"):
        read_volume(tmp_path / "complex.mha")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", FORMATS)
def test_nan_and_infinity_are_refused(bad: float, suffix: str, tmp_path: Path) -> None:
    array = LABELS.astype(np.float32)
    array[3, 3, 3] = bad
    path = write_image(tmp_path / f"image{suffix}", array, np.eye(4))
    with pytest.raises(ValueError, match="NaN or infinite voxels"):
        read_volume(path)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_noticed(
    suffix: str, compress: bool, keep: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    """SimpleITK alone reads a truncated NIfTI file without a word."""
    path = write_image(
        tmp_path / f"image{suffix}", rng.integers(0, 255, (30, 20, 10), np.uint8), np.eye(4), compress
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"empty|damaged|incomplete") as caught:
        read_volume(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_damaged_byte_in_a_packed_file_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_image(tmp_path / "image.nii.gz", rng.integers(0, 255, (30, 20, 10), np.uint8), np.eye(4))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_volume(path)


def test_a_nifti_bomb_is_left_at_what_its_header_promises(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a tiny volume is not unpacked: the volume is simply read."""
    path = write_nibabel(tmp_path / "image.nii", LABELS.T, np.eye(4))
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(path.read_bytes())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    np.testing.assert_array_equal(read_volume(tmp_path / "bomb.nii.gz").array, LABELS)


def test_a_plain_file_may_be_called_packed(tmp_path: Path) -> None:
    plain = write_nibabel(tmp_path / "image.nii", LABELS.T, np.eye(4))
    shutil.copy(plain, tmp_path / "renamed.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "renamed.nii.gz").array, LABELS)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4", "<f8", ">f8"])
def test_either_byte_order(dtype: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    nifti = nibabel.Nifti1Image(LABELS.T.astype(dtype), np.eye(4), header)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "image.nii.gz").array, LABELS)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.nii").write_text("not an image")
    with pytest.raises(ValueError, match=r"not a readable image .* known are \.nii"):
        read_volume(tmp_path / "notes.nii")
    with pytest.raises(FileNotFoundError, match="none"):
        read_volume(tmp_path / "none.nii")
    nibabel.save(nibabel.Nifti1Pair(LABELS.T, np.eye(4)), tmp_path / "pair.img")
    with pytest.raises(ValueError, match="two files"):
        read_volume(tmp_path / "pair.hdr")
    with pytest.raises(ValueError, match="chosen in a folder"):
        read_volume(write_nibabel(tmp_path / "image.nii", LABELS.T, np.eye(4)), series="1.2.3")


@pytest.mark.parametrize("name", ["case.1.nii.gz", "case.1.nii", "case.1.nrrd", "case.1.mhd"])
def test_the_name_has_no_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(path))
    assert read_volume(path).name == "case.1"


def test_a_volume_is_3d_on_a_grid() -> None:
    with pytest.raises(ValueError, match="cells: a volume is 3D"):
        Volume(np.zeros((3, 4)), np.eye(4), "cells")
    with pytest.raises(ValueError, match="do not span space"):
        Volume(np.zeros((3, 4, 5)), np.zeros((4, 4)) + np.diag([0, 0, 0, 1]), "cells")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"old")

    def write_half(image: sitk.Image, name: str, compress: bool) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(volume_io.sitk, "WriteImage", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_labelmap(path, LABELS, np.eye(4))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit the size of a file")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_cut_short_by_the_system_is_noticed(suffix: str, tmp_path: Path) -> None:
    """The real writers against a real limit (SimpleITK says nothing when a NIfTI file does not fit)."""
    script = """if True:
        import resource, signal, sys
        import numpy as np
        from GSMedSegLib.volume_io import write_labelmap
        labels = np.random.default_rng(0).integers(0, 255, (60, 60, 60))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            write_labelmap(sys.argv[1], labels, np.eye(4))
        except OSError as error:
            print(error)
    """
    root = Path(volume_io.__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path / f"label{suffix}")]
    result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=True)
    assert "is the disk full" in result.stdout
    assert not list(tmp_path.iterdir())


def test_warnings_of_other_code_are_switched_back_on(tmp_path: Path) -> None:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    write_labelmap(tmp_path / "label.nrrd", LABELS, np.eye(4))
    with pytest.raises(ValueError, match="no DICOM images"):
        read_volume(tmp_path)
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before


def test_real_cases_are_read_as_nibabel_reads_them(data_dir: Path) -> None:
    """A case of every data set: the same voxels at the same millimetres, labels on the grid of the image."""
    cases = [
        sorted(folder.iterdir())[0] for folder in sorted((data_dir / "dev").iterdir()) if folder.is_dir()
    ]
    assert cases
    for case in cases:
        image, label = read_volume(case / "image.nii.gz"), read_labelmap(case / "label.nii.gz")
        theirs = nibabel.load(case / "image.nii.gz")
        np.testing.assert_array_equal(image.array, np.asarray(theirs.dataobj).T)
        in_mm = {"micron": 1e-3, "meter": 1e3}.get(theirs.header.get_xyzt_units()[0], 1)
        affine = np.vstack([theirs.affine[:3] * in_mm, theirs.affine[3]])
        assert grid_distance_mm(image.ijk_to_ras, affine, image.shape) < 1e-3
        assert grid_distance_mm(image.ijk_to_ras, label.ijk_to_ras, image.shape) < 1e-4
        assert label.array.max() > 0


@pytest.mark.parametrize("name", ["a.nii.nii.gz", "a.nii.gz.nii.gz", "a.hdr.nii.gz", "a.nii.nii", "a.b.mha"])
def test_an_ending_twice_is_a_name_like_any_other(tmp_path: Path, name: str) -> None:
    """The NIfTI writer takes what lies before .nii.gz for an ending of its own."""
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_labelmap(tmp_path / name, labels, np.eye(4))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_labelmap(tmp_path / name).array, labels)
