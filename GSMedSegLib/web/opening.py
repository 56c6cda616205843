"""Images to begin with: files and folders on this computer, what a browser sent, and the example."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from GSMedSegLib.volume_io import READ_SUFFIXES, Volume, read_volume

ARCHIVE_BYTES = 16 * 2**30
"""What a zip archive may hold, unpacked."""

EXAMPLE = "example"


@dataclass(frozen=True)
class Opened:
    """An image that was read.

    Attributes:
        volume: its voxels and place.
        dicom_files: that it was read from; empty for other formats.
        remark: what the user should know, or "".
    """

    volume: Volume
    dicom_files: tuple[Path, ...] = ()
    remark: str = ""


def open_path(path: str | os.PathLike[str], series: str | None = None) -> Opened:
    """Reads an image.

    Args:
        path: a NIfTI, NRRD, MetaImage or DICOM file, a folder with one of those or with DICOM slices, also in
            folders within, or a zip archive that was unpacked beforehand by `unpack`.
        series: UID of the DICOM series; None takes the one with the most slices.

    Raises:
        ValueError: not such an image; the text says why.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        volume = read_volume(path)
        return Opened(volume, (path,) if _is_dicom(path) else ())
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.name.lower().endswith(READ_SUFFIXES)]
    if len(images) > 1:
        headers = [file for file in images if file.name.lower().endswith((".nhdr", ".mhd"))]
        if len(headers) != 1:
            raise ValueError(
                f"{len(images)} images at once ({images[0].name}, {images[1].name}, …); open one of them"
            )
        images = headers
    if images:
        return Opened(read_volume(images[0]))
    if len(files) == 1:
        return open_path(files[0])
    return _open_series(path, series)


def open_example() -> Opened:
    """The made-up image of `gsmedseg demo`."""
    from GSMedSegLib.demo import ijk_to_ras, make_image

    image, _ = make_image()
    return Opened(Volume(image, ijk_to_ras(), EXAMPLE))


def unpack(folder: Path) -> None:
    """Unpacks the zip archives in a folder, each into a folder of its own in place of the archive.

    Raises:
        ValueError: a damaged archive, one that holds too much, or one with names that lead out of it.
    """
    for file in [file for file in folder.rglob("*.zip") if file.is_file()]:
        target = file.with_name(f"{file.name} unpacked")
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
                if size > ARCHIVE_BYTES:
                    raise ValueError(f"{file.name} holds {size / 2**30:.0f} GiB; open a part of it")
                for entry in archive.infolist():
                    inside = (target / entry.filename).resolve()
                    if not inside.is_relative_to(target.resolve()):
                        raise ValueError(f"{file.name} has files that lead out of it; unpack it yourself")
                archive.extractall(target)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{file.name}: a damaged or locked zip archive; unpack it yourself") from error
        file.unlink()


def _open_series(folder: Path, series: str | None) -> Opened:
    """The series in a folder and those within it that has the most slices, or the one asked for."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        found = [
            (inner, uid, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(os.fspath(inner), uid))
            for inner in [folder, *sorted(part for part in folder.rglob("*") if part.is_dir())]
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(os.fspath(inner))
        ]
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
    if series is not None:
        found = [one for one in found if one[1] == series]
    if not found:
        wanted = f"no DICOM series {series}" if series else "no image"
        raise ValueError(f"{wanted} in this folder; known are {', '.join(READ_SUFFIXES)} and DICOM")
    inner, uid, files = max(found, key=lambda one: len(one[2]))
    remark = f"the largest of {len(found)} DICOM series" if len(found) > 1 else ""
    return Opened(read_volume(inner, uid), tuple(map(Path, files)), remark)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
