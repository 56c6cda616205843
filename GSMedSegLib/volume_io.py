"""Volumes on disk: NIfTI, NRRD, MetaImage and DICOM in; label maps out, on the grid of the image.

SimpleITK reads and writes. What it would do wrong in silence is checked here and in `nifti`: missing DICOM
slices are closed up, a NIfTI file cut short passes, its NaN become 0, a geometry that a format cannot hold is
bent until it fits.
"""

from __future__ import annotations

import colorsys
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.atomic import atomic_path, check_target
from GSMedSegLib.dicom_series import (
    check_even_frames,
    check_even_slices,
    choose_series,
    has_one_scale,
    says_voxel_size,
)
from GSMedSegLib.geometry import (
    FloatArray,
    as_ijk_to_ras,
    grid_distance_mm,
    ijk_to_ras_from_lps,
    lps_from_ijk_to_ras,
    spacing_kji_mm,
)
from GSMedSegLib.itk_warnings import no_itk_warnings
from GSMedSegLib.labels import as_labels
from GSMedSegLib.nifti import check_forms_agree, check_voxels, has_position, is_nifti2
from GSMedSegLib.text_files import path_text

READ_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")

_SIZE_FIELDS = {
    "NrrdImageIO": (b"spacings:", b"space directions:"),
    "MetaImageIO": (b"elementspacing", b"elementsize"),
}
"""Of a header in words, those that say how large a voxel is."""
_WORDS_BYTES = 1 << 16
"""A header in words is no longer."""

_HUE_STEP = 0.618
"""Of the colour circle, from one object to the next: the golden ratio keeps them apart, however many."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Volume:
    """A 3D image and where it lies.

    Attributes:
        array: (K, J, I), real numbers, no NaN or infinity.
        ijk_to_ras: (4, 4) float64, mm.
        name: file or folder name without suffixes.
        has_position: whether the file says where the image lies; if not, `ijk_to_ras` is made up.
        has_voxel_size: whether it says how large a voxel is; if not, 1 mm is made up.

    Raises:
        ValueError: not 3D, no voxels, or a matrix that is no voxel grid.
    """

    array: NDArray[Any]
    ijk_to_ras: FloatArray
    name: str
    has_position: bool = True
    has_voxel_size: bool = True

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
        image, has_size = _read_series(path, series)
    elif series is not None:
        raise ValueError(f"{path} is a file; a series is chosen in a folder of DICOM files")
    else:
        image, has_size = _read_file(path)
    array = sitk.GetArrayFromImage(image)
    # The extremes are NaN where any voxel is: no mask of the size of the image is needed.
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(f"{path}: the image has NaN or infinite voxels; replace them")
    return Volume(array, _ijk_to_ras(image), _name(path), has_position(image), has_size)


def read_labelmap(path: str | os.PathLike[str]) -> Volume:
    """Reads a label map: whole numbers, 0 for background.

    Returns:
        The volume, voxels in the smallest of uint8, uint16 and uint32 that holds them.

    Raises:
        ValueError: as `read_volume`, or negative or fractional voxels.
        OSError: the file cannot be opened.
    """
    volume = read_volume(path)
    return replace(volume, array=as_labels(volume.array, str(path)))


def check_on_grid(labels: Volume, image: Volume, path: str | os.PathLike[str]) -> None:
    """Raises when a label map is not on its image's grid, voxel for voxel, to a hundredth of a voxel.

    Args:
        labels: the label map.
        image: the image.
        path: of the label map, for the message.

    Raises:
        ValueError: the shapes or the places differ.
    """
    if image.shape != labels.shape:
        raise ValueError(
            f"{path} has shape {labels.shape}, its image {image.shape}; they must be on one grid"
        )
    offset_mm = grid_distance_mm(image.ijk_to_ras, labels.ijk_to_ras, image.shape)
    if offset_mm > 0.01 * min(image.spacing_kji_mm):
        raise ValueError(
            f"{path} lies up to {offset_mm:.3g} mm off its image; resample it to the image's grid"
        )


def write_labelmap(
    path: str | os.PathLike[str],
    labels: NDArray[Any],
    ijk_to_ras: ArrayLike,
    compress: bool = True,
    names: Sequence[str] = (),
) -> None:
    """Writes a label map, whole or not at all.

    Args:
        path: ends in .nii, .nii.gz, .nrrd or .mha; with names, .seg.nrrd is a segmentation for Slicer.
        labels: (K, J, I) whole numbers from 0; stored in the smallest of uint8, uint16 and uint32.
        ijk_to_ras: (4, 4), mm, of the image that was segmented.
        compress: for NRRD and MetaImage; NIfTI goes by its suffix.
        names: of the objects with labels 1, 2, …; only .seg.nrrd has a place for them.

    Raises:
        ValueError: unknown suffix, not a label map, or a geometry that the format cannot hold.
        OSError: the file cannot be written, for example because the disk is full.
    """
    labels = as_labels(labels, "the label map")
    fields = _segment_fields(names, labels.shape) if Path(path).name.endswith(".seg.nrrd") else {}
    _write(Path(path), labels, ijk_to_ras, compress, fields)


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
    _write(Path(path), array, ijk_to_ras, compress, {})


def check_volume_target(path: str | os.PathLike[str]) -> None:
    """Raises when `write_volume` could not write there: worth knowing before a long computation.

    Raises:
        ValueError: unknown suffix, or a name that is not text.
        OSError: no such folder, or it cannot be written to.
    """
    path_text(path)
    if not Path(path).name.endswith(WRITE_SUFFIXES):
        raise ValueError(
            f"{path}: volumes are written as {', '.join(WRITE_SUFFIXES)}; choose one of these endings"
        )
    if Path(path).name in WRITE_SUFFIXES:
        raise ValueError(f"{path}: this is an ending without a name before it; give a name")
    check_target(path)


def _write(
    path: Path, array: NDArray[Any], ijk_to_ras: ArrayLike, compress: bool, fields: Mapping[str, str]
) -> None:
    check_volume_target(path)
    image = sitk.GetImageFromArray(array)
    origin, spacing, direction = lps_from_ijk_to_ras(ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    for key, value in fields.items():
        image.SetMetaData(key, value)
    with atomic_path(path) as temporary, no_itk_warnings():
        try:
            sitk.WriteImage(image, os.fspath(temporary), compress)
            header = _read_header(temporary)
            if header.GetImageIO() == "NiftiImageIO":
                check_voxels(header, temporary)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, "not written; is the disk full or read-only?", str(path)) from error
        _check_same_grid(header, image, path)


def _segment_fields(names: Sequence[str], shape: tuple[int, ...]) -> dict[str, str]:
    """What Slicer wants to know of the objects with labels 1, 2, … of a label map (K, J, I).

    Source: vtkMRMLSegmentationStorageNode.
    """
    extent = " ".join(f"0 {size - 1}" for size in reversed(shape))
    fields = {"Segmentation_ReferenceImageExtentOffset": "0 0 0"} if names else {}
    for n, name in enumerate(names):
        about = {
            "ID": f"Segment_{n + 1}",
            "Name": name,
            "Color": "{:.3f} {:.3f} {:.3f}".format(*colorsys.hsv_to_rgb(_HUE_STEP * n % 1, 0.7, 0.9)),
            "LabelValue": str(n + 1),
            "Layer": "0",
            "Extent": extent,
        }
        fields |= {f"Segment{n}_{key}": value for key, value in about.items()}
    return fields


def _read_file(path: Path, folder: Path | None = None) -> tuple[sitk.Image, bool]:
    """A volume from one file, which may be all that there is of a series in a folder.

    Returns:
        the image, and whether the file says how large a voxel is.
    """
    with no_itk_warnings():
        reader = _read_header(path)
        if reader.GetDimension() != 3:
            what = (
                "save it as a volume of one slice" if reader.GetDimension() < 3 else "give one volume of it"
            )
            raise ValueError(f"{path}: the image must be 3D, got {reader.GetDimension()}D; {what}")
        _check_scalar(reader, path)
        if reader.GetImageIO() == "GDCMImageIO" and reader.GetSize()[2] == 1:
            if folder is not None:
                raise ValueError(f"{folder}: its series has a single slice, {path.name}; add the others")
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
        if reader.GetImageIO() == "GDCMImageIO":
            check_even_frames(path, image)
    return image, _has_voxel_size(reader, path)


def _has_voxel_size(reader: sitk.ImageFileReader, path: Path) -> bool:
    """Whether a file says how large a voxel is; where it does not, SimpleITK says 1 mm."""
    if reader.GetImageIO() == "GDCMImageIO":
        return says_voxel_size(reader.HasMetaDataKey, reader)
    words = _SIZE_FIELDS.get(reader.GetImageIO())
    if words is None or reader.GetSpacing() != (1.0, 1.0, 1.0):
        return True
    with path.open("rb") as file:
        header = file.read(_WORDS_BYTES).lower()
    return any(word in header for word in words)


def _read_series(folder: Path, series: str | None) -> tuple[sitk.Image, bool]:
    reader = sitk.ImageSeriesReader()
    with no_itk_warnings():
        files = choose_series(folder, series).files
        if len(files) == 1:
            return _read_file(Path(files[0]), folder)
        reader.SetFileNames([os.fspath(file) for file in files])
        reader.MetaDataDictionaryArrayUpdateOn()
        try:
            image: sitk.Image = reader.Execute()
            _check_scalar(image, folder)
            if image.GetPixelID() != sitk.sitkFloat64 and not has_one_scale(reader, len(files)):
                reader.SetOutputPixelType(sitk.sitkFloat64)  # the first slice's type need not hold the others
                image = reader.Execute()
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: the series is not one volume (a damaged slice, or slices of several sizes)"
            ) from error
    check_even_slices(reader, image, files, folder)
    return image, says_voxel_size(lambda tag: reader.HasMetaDataKey(0, tag), image)


def _read_header(path: Path) -> sitk.ImageFileReader:
    """Geometry and type; no voxels yet."""
    reader, name = sitk.ImageFileReader(), path_text(path)
    reader.SetFileName(name)
    image_io = reader.GetImageIOFromFileName(name)
    if not image_io and is_nifti2(path):
        raise ValueError(f"{path}: this is NIfTI-2; save it as NIfTI-1, for example with nibabel.Nifti1Image")
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
