"""Volumes on disk: NIfTI, NRRD, MetaImage and DICOM in; label maps out, on the grid of the image.

SimpleITK reads and writes. What it would do wrong in silence is checked here and in `nifti`: missing DICOM
slices are closed up, a NIfTI file cut short passes, its NaN become 0, a geometry that a format cannot hold is
bent until it fits.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.atomic import atomic_path, check_target
from GSMedSegLib.geometry import (
    FloatArray,
    as_ijk_to_ras,
    grid_distance_mm,
    ijk_to_ras_from_lps,
    lps_from_ijk_to_ras,
    spacing_kji_mm,
)
from GSMedSegLib.labels import as_labels
from GSMedSegLib.nifti import check_forms_agree, check_voxels

READ_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")

_IMAGE_POSITION = "0020|0032"
_UNEVEN_SLICES = 0.1
"""How far from an even grid a DICOM slice may lie, in slice distances; scanners round positions."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Volume:
    """A 3D image and where it lies.

    Attributes:
        array: (K, J, I), real numbers, no NaN or infinity.
        ijk_to_ras: (4, 4) float64, mm.
        name: file or folder name without suffixes.

    Raises:
        ValueError: not 3D, no voxels, or a matrix that is no voxel grid.
    """

    array: NDArray[Any]
    ijk_to_ras: FloatArray
    name: str

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.size == 0:
            raise ValueError(
                f"{self.name}: a volume is 3D (K, J, I) with voxels, got shape {self.array.shape}"
            )
        object.__setattr__(self, "ijk_to_ras", as_ijk_to_ras(self.ijk_to_ras))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, J, I)."""
        k, j, i = self.array.shape
        return k, j, i

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Voxel size along k, j, i, mm."""
        return spacing_kji_mm(self.ijk_to_ras)


def read_volume(path: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Reads a 3D image.

    Args:
        path: a NIfTI, NRRD, MetaImage or multi-frame DICOM file, or a folder with the slices of a DICOM
            series.
        series: UID of the series, for a folder with several.

    Returns:
        The volume, voxels in the type of the file (DICOM and NIfTI rescaling applied).

    Raises:
        ValueError: not such a file, damaged or incomplete, not 3D, several values a voxel, NaN or infinite
            voxels, sheared NIfTI axes, several DICOM series and no choice, or uneven or missing slices.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.is_dir():
        image = _read_series(path, series)
    elif series is not None:
        raise ValueError(f"{path} is a file; a series is chosen in a folder of DICOM files")
    else:
        image = _read_file(path)
    array = sitk.GetArrayFromImage(image)
    # The extremes are NaN where any voxel is: no mask of the size of the image is needed.
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(f"{path}: the image has NaN or infinite voxels; replace them")
    return Volume(array, _ijk_to_ras(image), _name(path))


def read_labelmap(path: str | os.PathLike[str]) -> Volume:
    """Reads a label map: whole numbers, 0 for background.

    Returns:
        The volume, voxels in the smallest of uint8, uint16 and uint32 that holds them.

    Raises:
        ValueError: as `read_volume`, or negative or fractional voxels.
        OSError: the file cannot be opened.
    """
    volume = read_volume(path)
    return Volume(as_labels(volume.array, str(path)), volume.ijk_to_ras, volume.name)


def write_labelmap(
    path: str | os.PathLike[str], labels: NDArray[Any], ijk_to_ras: ArrayLike, compress: bool = True
) -> None:
    """Writes a label map, whole or not at all.

    Args:
        path: ends in .nii, .nii.gz, .nrrd or .mha.
        labels: (K, J, I) whole numbers from 0; stored in the smallest of uint8, uint16 and uint32.
        ijk_to_ras: (4, 4), mm, of the image that was segmented.
        compress: for NRRD and MetaImage; NIfTI goes by its suffix.

    Raises:
        ValueError: unknown suffix, not a label map, or a geometry that the format cannot hold.
        OSError: the file cannot be written, for example because the disk is full.
    """
    write_volume(path, as_labels(labels, "the label map"), ijk_to_ras, compress)


def write_volume(
    path: str | os.PathLike[str], array: NDArray[Any], ijk_to_ras: ArrayLike, compress: bool = True
) -> None:
    """Writes an image in its own type, whole or not at all.

    Args:
        path: ends in .nii, .nii.gz, .nrrd or .mha.
        array: (K, J, I) real numbers.
        ijk_to_ras: (4, 4), mm.
        compress: for NRRD and MetaImage; NIfTI goes by its suffix.

    Raises:
        ValueError: unknown suffix, or a geometry that the format cannot hold.
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    check_volume_target(path)
    image = sitk.GetImageFromArray(array)
    origin, spacing, direction = lps_from_ijk_to_ras(ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    with atomic_path(path) as temporary, no_itk_warnings():
        try:
            sitk.WriteImage(image, os.fspath(temporary), compress)
            header = _read_header(temporary)
            if header.GetImageIO() == "NiftiImageIO":
                check_voxels(header, temporary)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, "not written; is the disk full or read-only?", str(path)) from error
        _check_same_grid(header, image, path)


def check_volume_target(path: str | os.PathLike[str]) -> None:
    """Raises when `write_volume` could not write there: worth knowing before a long computation.

    Raises:
        ValueError: unknown suffix.
        OSError: no such folder, or it cannot be written to.
    """
    if not Path(path).name.endswith(WRITE_SUFFIXES):
        raise ValueError(
            f"{path}: volumes are written as {', '.join(WRITE_SUFFIXES)}; choose one of these endings"
        )
    check_target(path)


def _read_file(path: Path) -> sitk.Image:
    with no_itk_warnings():
        reader = _read_header(path)
        if reader.GetDimension() != 3:
            raise ValueError(
                f"{path}: the image must be 3D, got {reader.GetDimension()}D; give one volume of it"
            )
        _check_scalar(reader, path)
        if reader.GetImageIO() == "GDCMImageIO" and reader.GetSize()[2] == 1:
            raise ValueError(f"{path}: this is a single DICOM slice; give the folder of its series")
        if reader.GetImageIO() == "NiftiImageIO":
            check_voxels(reader, path)
            check_forms_agree(reader, _ijk_to_ras(reader), path)
        try:
            image: sitk.Image = reader.Execute()
        except RuntimeError as error:
            raise ValueError(
                f"{path}: the image is damaged or incomplete; copy or export it again"
            ) from error
    return image


def _read_series(folder: Path, series: str | None) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    with no_itk_warnings():
        found = reader.GetGDCMSeriesIDs(os.fspath(folder))
        if not found:
            raise ValueError(
                f"{folder}: no DICOM images in this folder; give the folder that holds the slices"
            )
        if series is None and len(found) > 1:
            raise ValueError(f"{folder} holds {len(found)} DICOM series; choose one of: {', '.join(found)}")
        if series is not None and series not in found:
            raise ValueError(f"{folder} has no DICOM series {series}; it has: {', '.join(found)}")
        files = reader.GetGDCMSeriesFileNames(os.fspath(folder), series or found[0])
        if len(files) == 1:
            return _read_file(Path(files[0]))
        reader.SetFileNames(files)
        reader.MetaDataDictionaryArrayUpdateOn()
        try:
            image: sitk.Image = reader.Execute()
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: the series is not one volume (a damaged slice, or slices of several sizes)"
            ) from error
    _check_scalar(image, folder)
    _check_even_slices(reader, image, folder)
    return image


def _read_header(path: Path) -> sitk.ImageFileReader:
    """Geometry and type; no voxels yet."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    image_io = reader.GetImageIOFromFileName(os.fspath(path))
    if not image_io:
        raise ValueError(
            f"{path}: not a readable image (empty, damaged or of another kind); "
            f"known are {', '.join(READ_SUFFIXES)} and DICOM folders"
        )
    reader.SetImageIO(image_io)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ValueError(
                f"{path}: the axes are sheared (not at right angles); resample the image first"
            ) from error
        raise ValueError(f"{path}: the header of the image is damaged; copy or export it again") from error
    return reader


def _check_scalar(image: sitk.Image | sitk.ImageFileReader, path: Path) -> None:
    pixel_type = sitk.GetPixelIDValueAsString(image.GetPixelIDValue())
    if "vector" in pixel_type or "complex" in pixel_type:
        raise ValueError(f"{path}: one number a voxel is needed, got {pixel_type}; convert it to grey values")


def _check_even_slices(reader: sitk.ImageSeriesReader, image: sitk.Image, folder: Path) -> None:
    distance_mm = image.GetSpacing()[2]
    for k in range(image.GetSize()[2]):
        if not reader.HasMetaDataKey(k, _IMAGE_POSITION):
            continue
        position_lps = [float(number) for number in reader.GetMetaData(k, _IMAGE_POSITION).split("\\")]
        expected_lps = image.TransformIndexToPhysicalPoint((0, 0, k))
        if math.dist(position_lps, expected_lps) > _UNEVEN_SLICES * distance_mm:
            raise ValueError(f"{folder}: slices are missing or uneven, at slice {k}; export the series again")


def _check_same_grid(header: sitk.ImageFileReader, image: sitk.Image, path: Path) -> None:
    wanted = _ijk_to_ras(image)
    offset_mm = grid_distance_mm(_ijk_to_ras(header), wanted, image.GetSize()[::-1])
    # The second term: NIfTI keeps positions as float32.
    if offset_mm > 1e-4 * min(image.GetSpacing()) + 1e-6 * np.abs(wanted[:3, 3]).max():
        raise ValueError(
            f"{path}: the format cannot hold this geometry (sheared axes; off by {offset_mm:.3g} mm); "
            "write .nrrd or .mha"
        )


def _ijk_to_ras(image: sitk.Image | sitk.ImageFileReader) -> FloatArray:
    return ijk_to_ras_from_lps(image.GetOrigin(), image.GetSpacing(), image.GetDirection())


def _name(path: Path) -> str:
    for suffix in (".nii.gz", *READ_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


@contextlib.contextmanager
def no_itk_warnings() -> Iterator[None]:
    """What ITK would print as a warning is an error here, or of no concern to the user."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
