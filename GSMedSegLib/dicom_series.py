"""DICOM series: which ones lie in a folder, and whether the slices of one make a volume."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from GSMedSegLib.geometry import FloatArray
from GSMedSegLib.itk_warnings import no_itk_warnings
from GSMedSegLib.text_files import path_text

_TITLE_TAGS = ("0020|0011", "0008|0060", "0008|103e")
"""Number, modality and description of a series."""
_IMAGE_POSITION = "0020|0032"
_SLICE_TAGS = ("0008|0018", _IMAGE_POSITION)
"""UID and position: which slice it is, wherever a copy of it lies."""
_PREFACE = 1024
"""The first bytes of a file, with its class."""
_KIND = "0008|0016"
_ENHANCED = tuple(
    f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130")
)
"""Files with a whole volume, whose frames have places: CT, MR and PET."""
_NUMBER_TAGS = ("0028|1053", "0028|1052", "0028|0100", "0028|0103")
"""Slope, intercept, bits and sign: what a slice's numbers mean."""
_SIZE_TAGS = ("0028|0030", "0018|1164")
"""Pixel spacing, in the patient and at the detector."""
_DEPTH_TAGS = ("0018|0088", "0018|0050", "0020|0032")
"""Spacing between slices, their thickness, and the place of each."""
_DIGITS = re.compile(r"\d+")
_UNEVEN_SLICES = 0.1
"""How far from an even grid a slice may lie, in slice distances; scanners round positions."""
_SAME_PLACE = 1e-3
"""Slices closer than this part of the widest gap lie at one place."""


@dataclass(frozen=True)
class Series:
    """A DICOM series that can be opened.

    Attributes:
        uid: by which it is asked for.
        folder: with its slices.
        files: the slices, in order.
        elsewhere: folders with slices of it that this one lacks.
    """

    uid: str
    folder: Path
    files: tuple[Path, ...]
    elsewhere: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """What it is, as its first slice says, and how many slices there are; "" where it is no image."""
        reader = _header(self.files[0])
        if reader is None:  # reports and presentation states lie beside the images they are about
            return ""
        said = [reader.GetMetaData(tag).strip() for tag in _TITLE_TAGS if reader.HasMetaDataKey(tag)]
        size = "1 slice" if len(self.files) == 1 else f"{len(self.files)} slices"
        return " · ".join([*filter(None, said), size])

    def check_whole(self) -> None:
        """Raises when other folders have slices of it too: what is here may be a volume cut short.

        Raises:
            ValueError: names the folders.
        """
        if self.elsewhere:
            folders = ", ".join(str(part) for part in (self.folder, *self.elsewhere[:2]))
            more = ", …" if self.elsewhere[2:] else ""
            raise ValueError(
                f"series {self.uid} lies in {1 + len(self.elsewhere)} folders ({folders}{more}); "
                "put its files into one folder"
            )


def find_series(folder: Path) -> list[Series]:
    """The series in a folder and those within it; of one that lies in several, its largest part."""
    parts: dict[str, list[Series]] = {}
    for one in [*series_in(folder), *_series_within(folder)]:
        parts.setdefault(one.uid, []).append(one)
    largest = [max(several, key=lambda one: len(one.files)) for several in parts.values()]
    return [_among(one, [other for other in parts[one.uid] if other is not one]) for one in largest]


def _series_within(folder: Path) -> list[Series]:
    """The series in the folders within one."""
    inner = sorted(part for part in folder.rglob("*") if part.is_dir())
    return [one for part in inner for one in series_in(part)]


def _among(part: Series, others: Sequence[Series]) -> Series:
    """A part of a series that knows which of the other parts, each of another folder, are no copies of it."""
    if not others:
        return part
    known = _slices(part)
    return replace(part, elsewhere=tuple(one.folder for one in others if not _slices(one) <= known))


def _slices(series: Series) -> set[tuple[str, ...]]:
    """Which slices a series has, by UID and position; by file, where that is no image."""

    def which(file: Path) -> tuple[str, ...]:
        header = _header(file)
        if header is None:
            return (str(file),)
        return tuple(header.GetMetaData(tag) for tag in _SLICE_TAGS if header.HasMetaDataKey(tag))

    return {which(file) for file in series.files}


def _header(file: Path) -> sitk.ImageFileReader | None:
    """Of a DICOM file; None where it is no image."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(file))
    try:
        with no_itk_warnings():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def series_in(folder: Path) -> list[Series]:
    """The series in a folder itself.

    Raises:
        ValueError: the name of the folder or of a slice is not text.
    """
    reader, name = sitk.ImageSeriesReader, path_text(folder)
    with no_itk_warnings():
        slices = {uid: reader.GetGDCMSeriesFileNames(name, uid) for uid in reader.GetGDCMSeriesIDs(name)}
    return [Series(uid, folder, tuple(Path(path_text(f)) for f in files)) for uid, files in slices.items()]


def choose_series(folder: Path, uid: str | None) -> Series:
    """The series asked for in a folder itself, or the only one.

    Raises:
        ValueError: there is none, or several; they are listed. Or folders within it have more of its slices.
    """
    found = series_in(folder)
    if not found:
        raise ValueError(f"{folder}: no DICOM images in this folder; {_where_else(folder)}")
    wanted = [one for one in found if uid in (None, one.uid)]
    if len(wanted) == 1:
        _check_none_is_left_out(folder, found)
        chosen = _among(wanted[0], [one for one in _series_within(folder) if one.uid == wanted[0].uid])
        chosen.check_whole()
        return chosen
    listed = "".join(f"\n- {one.uid}: {one.title or 'no image'}" for one in found)
    if uid is None:
        raise ValueError(f"{folder} holds {len(found)} DICOM series; choose one of:{listed}")
    raise ValueError(f"{folder} has no DICOM series {uid}; it has:{listed}")


def _check_none_is_left_out(folder: Path, found: Sequence[Series]) -> None:
    """Raises where a file of the folder should be a slice and cannot be read: ITK passes over it.

    At an end of the stack nothing else would tell.
    """
    known = {file for one in found for file in one.files}
    names = {_DIGITS.sub("0", file.name) for file in known}
    endings = {file.suffix for file in known if not file.suffix[1:].isdecimal()} - {""}
    kinds = {_kind(one.files[0]) for one in found} - {b""}
    for file in sorted(folder.iterdir()):
        if file in known or not file.is_file() or file.name.startswith("."):
            continue
        is_named_so = file.suffix in endings or _DIGITS.sub("0", file.name) in names
        try:
            empty = is_named_so and not any(_start(file))  # zeros are what a copy broken off may leave
            damaged = _kind(file) in kinds  # reports and contours are of other kinds
        except OSError as error:
            if not is_named_so:
                continue
            raise ValueError(
                f"{file}: {error.strerror}; it may be a slice: see to it, or move it away"
            ) from None
        if empty or damaged:
            raise ValueError(
                f"{file}: this slice is damaged or empty; copy it again, or move it away if it is none"
            )


def _kind(path: Path) -> bytes:
    """What is in a DICOM file, its SOP class, as the first part of it says; b"" where nothing does.

    Raises:
        OSError: it cannot be read.
    """
    start = _start(path)
    if start[128:132] != b"DICM":
        return b""
    found = re.search(rb"\x02\x00\x02\x00UI(..)", start, re.DOTALL)
    size = int.from_bytes(found[1], "little") if found else 0
    return start[found.end() : found.end() + size].rstrip(b"\0") if found else b""


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_PREFACE)


def _where_else(folder: Path) -> str:
    """What to do about a folder without DICOM images: perhaps they are in one within it."""
    inner = sorted({file.parent for file in folder.rglob("*") if file.is_file() and is_dicom(file)})
    if not inner:
        return "give the folder that holds the slices"
    if len(inner) == 1:
        return f"they are in {inner[0]}, give that one"
    return (
        f"{len(inner)} folders within it have some, for example {inner[0]}; give one of them, "
        "or put the files of a series into one folder"
    )


def is_dicom(path: Path) -> bool:
    """Whether a file calls itself one."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def check_even_frames(path: Path, image: sitk.Image | sitk.ImageFileReader) -> None:
    """Raises when the frames of an enhanced CT, MR or PET file are not where ITK says they are.

    It goes by the first frames, and takes those of no even distance for 1 mm apart.

    Args:
        path: of the file.
        image: what ITK makes of it.

    Raises:
        ValueError: they are elsewhere, or nobody can tell.
    """
    kind = image.GetMetaData(_KIND).strip(" \0") if image.HasMetaDataKey(_KIND) else ""
    if kind not in _ENHANCED:
        return
    try:
        import pydicom
    except ImportError:
        if image.GetSpacing() != (1.0, 1.0, 1.0):
            return
        raise ValueError(
            f"{path}: whether its frames are evenly apart cannot be seen without pydicom; "
            "pip install 'gsmedseg[dicom]', or export single slices"
        ) from None
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    frames = header.get("PerFrameFunctionalGroupsSequence") or (pydicom.Dataset(),)
    for k, frame in enumerate(frames):
        try:
            place_lps = [float(x) for x in frame.PlanePositionSequence[0].ImagePositionPatient]
        except (AttributeError, IndexError, TypeError):
            raise ValueError(
                f"{path}: nothing says where frame {k + 1} lies; export single slices, or a volume"
            ) from None
        away_mm = math.dist(place_lps, image.TransformIndexToPhysicalPoint((0, 0, k)))
        if away_mm > _UNEVEN_SLICES * image.GetSpacing()[2]:
            raise ValueError(
                f"{path}: its frames are no even stack (frame {k + 1} is the first elsewhere: several "
                "volumes, missing or uneven frames, or places rounded too far); export single slices, or "
                "convert it, for example with dcm2niix"
            )


def says_voxel_size(has_tag: Callable[[str], bool], image: sitk.Image | sitk.ImageFileReader) -> bool:
    """Whether a file or series says how large its voxels are; screenshots and many films do not.

    Args:
        has_tag: whether a tag is in the header.
        image: what ITK makes of it: 1 mm may be made up, unless frames have their own sizes.
    """
    if image.HasMetaDataKey(_KIND) and image.GetMetaData(_KIND).strip(" \0") in _ENHANCED:
        return True
    *plane, depth = image.GetSpacing()
    says_plane = plane != [1.0, 1.0] or any(has_tag(tag) for tag in _SIZE_TAGS)
    return says_plane and (depth != 1.0 or any(has_tag(tag) for tag in _DEPTH_TAGS))


def has_one_scale(reader: sitk.ImageSeriesReader, slices: int) -> bool:
    """Whether the numbers of all slices mean the same; those of PET often have a slope each.

    Args:
        reader: that has read the series, with the headers of all slices.
        slices: how many there are.
    """

    def scale(k: int) -> list[str]:
        known = (tag for tag in _NUMBER_TAGS if reader.HasMetaDataKey(k, tag))
        return [f"{tag} {reader.GetMetaData(k, tag).strip()}" for tag in known]

    return all(scale(k) == scale(0) for k in range(1, slices))


def check_even_slices(
    reader: sitk.ImageSeriesReader, image: sitk.Image, files: Sequence[Path], folder: Path
) -> None:
    """Raises when the slices of a series make no even grid, which ITK would say they do.

    Args:
        reader: that has read the series, with the headers of all slices.
        image: what came of it.
        files: the slices, in order.
        folder: for the message.

    Raises:
        ValueError: says what is wrong with them, and what to do.
    """
    distance_mm = image.GetSpacing()[2]
    names, positions_lps, uneven = [], [], False
    for k, file in enumerate(files):
        if not reader.HasMetaDataKey(k, _IMAGE_POSITION):
            continue
        names.append(file.name)
        positions_lps.append([float(x) for x in reader.GetMetaData(k, _IMAGE_POSITION).split("\\")])
        expected_lps = image.TransformIndexToPhysicalPoint((0, 0, k))
        uneven |= math.dist(positions_lps[-1], expected_lps) > _UNEVEN_SLICES * distance_mm
    if uneven:
        along_i, along_j = np.reshape(image.GetDirection(), (3, 3)).T[:2]
        why = _why_uneven(names, np.array(positions_lps), np.cross(along_i, along_j))
        raise ValueError(f"{folder}: {why}")


def _why_uneven(names: Sequence[str], positions_lps: FloatArray, normal_lps: FloatArray) -> str:
    """What is wrong with slices that make no even grid, and what to do.

    Args:
        names: of the N files.
        positions_lps: (N, 3), mm.
        normal_lps: unit vector across the slices.
    """
    order = np.argsort(positions_lps @ normal_lps, kind="stable")
    places = positions_lps[order]
    heights_mm = places @ normal_lps
    gaps_mm = np.diff(heights_mm)
    distinct = 1 + int((gaps_mm > _SAME_PLACE * gaps_mm.max()).sum())
    if distinct < len(places):
        several, over = divmod(len(places), distinct)
        what = "more than one volume" if over else f"{several} volumes"
        return (
            f"{len(places)} slices lie at {distinct} places: {what} in one series (times, echoes or copies); "
            "put the files of one volume in a folder of their own"
        )
    step_mm = float(np.median(gaps_mm))
    odd = np.flatnonzero(np.abs(gaps_mm - step_mm) > _UNEVEN_SLICES * step_mm)
    if odd.size:
        below, above = (names[order[odd[0] + n]] for n in (0, 1))
        return (
            f"slices are missing or uneven: {gaps_mm[odd[0]]:.4g} mm from {below} to {above}, elsewhere "
            f"{step_mm:.4g} mm; export the series again"
        )
    way = places[-1] - places[0]
    aside_mm = float(np.linalg.norm(way - (way @ normal_lps) * normal_lps))
    if aside_mm > _UNEVEN_SLICES * step_mm:
        degrees = math.degrees(math.atan2(aside_mm, heights_mm[-1] - heights_mm[0]))
        return (
            f"the slices are tilted by {degrees:.3g}° against the way they are stacked (gantry tilt); "
            "resample the series first, for example with dcm2niix"
        )
    return "the slices are uneven; export the series again, or resample it"
