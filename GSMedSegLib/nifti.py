"""NIfTI: what SimpleITK lets pass without a word, looked for before any voxel is read."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib.geometry import FloatArray, grid_distance_mm

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
_LITTLE_ENDIAN_START = (348).to_bytes(4, "little")
_NIFTI2_STARTS = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
_FLOAT_TYPES = {"16": "f4", "64": "f8"}
"""Header start (its own size) and codes of the types that can be NaN. Source: nifti1.h."""
_FORM_CODES = ("qform_code", "sform_code")
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
"""The spatial part of xyzt_units: metre, millimetre, micrometre. Source: the NIfTI-1 header, nifti1.h."""


def check_voxels(reader: sitk.ImageFileReader, path: Path) -> None:
    """Raises when voxels are missing, NaN or infinite; SimpleITK would make up the first and zero the others.

    Args:
        reader: has read the header of `path`.
        path: plain or packed by gzip, whatever its name says.

    Raises:
        ValueError: incomplete, damaged or not finite, or voxels in a file of their own (.hdr and .img).
        OSError: the file cannot be opened.
    """
    if path.suffix.lower() in (".hdr", ".img"):
        raise ValueError(f"{path}: NIfTI and Analyze in two files are not read; save as .nii or .nii.gz")
    number = _FLOAT_TYPES.get(reader.GetMetaData("datatype"))
    left_bytes = math.prod(reader.GetSize()) * int(reader.GetMetaData("bitpix")) // 8
    try:
        with _unpacked(path) as stream:
            header = stream.read(int(float(reader.GetMetaData("vox_offset"))))
            byte_order = "<" if header[:4] == _LITTLE_ENDIAN_START else ">"
            while left_bytes and (chunk := stream.read(min(left_bytes, _CHUNK_BYTES))):
                left_bytes -= len(chunk)
                if number and not np.isfinite(_whole_numbers(chunk, np.dtype(byte_order + number))).all():
                    raise ValueError(f"{path}: the image has NaN or infinite voxels; replace them")
            stream.read(1)  # the end of a packed file: its sum is checked here
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the file is damaged or incomplete; copy or export it again") from error
    if left_bytes:
        raise ValueError(f"{path}: the file is incomplete, {left_bytes} bytes are missing; copy it again")


def is_nifti2(path: Path) -> bool:
    """Whether a file is of the second version of NIfTI, plain or packed, which SimpleITK does not know."""
    try:
        with _unpacked(path) as stream:
            return stream.read(4) in _NIFTI2_STARTS
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def has_position(image: sitk.Image) -> bool:
    """Whether the file says where the image lies; a NIfTI file need not, and then programs make it up."""
    codes = [int(image.GetMetaData(key)) for key in _FORM_CODES if image.HasMetaDataKey(key)]
    return not codes or any(code > 0 for code in codes)


def check_forms_agree(reader: sitk.ImageFileReader, ijk_to_ras: FloatArray, path: Path) -> None:
    """Raises when the header holds two positions: SimpleITK may take the qform, nibabel takes the sform.

    Args:
        reader: has read the header of `path`.
        ijk_to_ras: (4, 4), mm, as SimpleITK understood the header.
        path: for the error.

    Raises:
        ValueError: the sform is set and is off by more than a twentieth of a voxel.
    """
    if int(reader.GetMetaData("sform_code")) <= 0:
        return
    sform = np.eye(4)
    sform[:3] = [[float(number) for number in reader.GetMetaData(f"srow_{row}").split()] for row in "xyz"]
    sform[:3] *= _MM_PER_UNIT.get(int(reader.GetMetaData("xyzt_units")) & 7, 1.0)
    offset_mm = grid_distance_mm(sform, ijk_to_ras, reader.GetSize()[::-1])
    # The second term: SimpleITK hands out the sform with six digits.
    if offset_mm > 0.05 * min(reader.GetSpacing()) + 1e-5 * np.abs(ijk_to_ras[:3, 3]).max():
        raise ValueError(
            f"{path}: sform and qform of the NIfTI header disagree by {offset_mm:.3g} mm, so programs would "
            "show the result in different places; make them equal"
        )


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    with path.open("rb") as raw:
        is_packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        if not is_packed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream


def _whole_numbers(chunk: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
