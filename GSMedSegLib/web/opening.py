"""Images to begin with: files and folders on this computer, what a browser sent, and the example."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from GSMedSegLib.dicom_series import find_series, is_dicom
from GSMedSegLib.volume_io import READ_SUFFIXES, Volume, read_volume

ARCHIVE_BYTES = 16 * 2**30
"""What the zip archives sent together may hold, unpacked."""

_CHUNK_BYTES = 2**20

EXAMPLE = "example"


@dataclass(frozen=True)
class Opened:
    """An image that was read.

    Attributes:
        volume: its voxels and place.
        dicom_files: that it was read from; empty for other formats.
        folder: in which a DICOM series was looked for; None for other formats.
        series: UID and title of each image in the folder.
        series_uid: of the one that was read.
    """

    volume: Volume
    dicom_files: tuple[Path, ...] = ()
    folder: Path | None = None
    series: tuple[tuple[str, str], ...] = ()
    series_uid: str = ""


def open_path(path: str | os.PathLike[str], series: str | None = None) -> Opened:
    """Reads an image.

    Args:
        path: a NIfTI, NRRD, MetaImage or DICOM file, a folder with one of those or with DICOM slices, also in
            folders within, or a zip archive that was unpacked beforehand by `unpack`.
        series: UID of the DICOM series, in a folder; None takes the one with the most slices.

    Raises:
        ValueError: not such an image, or several; the text says why.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        volume = read_volume(path, series)
        return Opened(volume, (path,) if is_dicom(path) else ())
    if series is not None:
        return _open_series(path, series)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.name.lower().endswith(READ_SUFFIXES)]
    if len(images) > 1:
        headers = [file for file in images if file.name.lower().endswith((".nhdr", ".mhd"))]
        if len(headers) != 1:
            raise ValueError(
                f"{len(images)} images at once ({images[0].name}, {images[1].name}, …); open one of them"
            )
        images = headers
    slices = [file for file in files if is_dicom(file)] if images else []
    if slices:
        raise ValueError(
            f"an image and DICOM files at once ({images[0].name}, {slices[0].name}, …); open one of them"
        )
    if images:
        return Opened(read_volume(images[0]))
    if len(files) == 1:
        return open_path(files[0])
    return _open_series(path)


def open_example() -> Opened:
    """The made-up image of `gsmedseg demo`."""
    from GSMedSegLib.demo import ijk_to_ras, make_image

    image, _ = make_image()
    return Opened(Volume(image, ijk_to_ras(), EXAMPLE))


def unpack(folder: Path) -> None:
    """Unpacks the zip archives in a folder, each into a folder of its own in place of the archive.

    Raises:
        ValueError: a damaged archive, more than `ARCHIVE_BYTES` in all, or names that lead out of it.
    """
    left = ARCHIVE_BYTES
    for file in [file for file in folder.rglob("*") if file.suffix.lower() == ".zip" and file.is_file()]:
        try:
            with zipfile.ZipFile(file) as archive:
                left -= _extract(archive, file.with_name(f"{file.name} unpacked"), left)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{file.name}: a damaged or locked zip archive; unpack it yourself") from error
        file.unlink()


def _extract(archive: zipfile.ZipFile, target: Path, most: int) -> int:
    """Unpacks an archive; how many bytes came out, whatever the archive said of itself."""
    name = Path(archive.filename or "").name
    size = 0
    for entry in archive.infolist():
        path = (target / entry.filename).resolve()
        if not path.is_relative_to(target.resolve()):
            raise ValueError(f"{name} has files that lead out of it; unpack it yourself")
        if entry.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, path.open("wb") as file:
            while chunk := packed.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > most:
                    raise ValueError(
                        f"{name} holds more than {most / 2**30:.3g} GiB unpacked; open a part of it"
                    )
                file.write(chunk)
    return size


def _open_series(folder: Path, uid: str | None = None) -> Opened:
    """The series asked for, in a folder and those within it, or the one with the most slices."""
    found = find_series(folder)
    wanted = [one for one in found if uid in (None, one.uid)]
    if not wanted:
        what = f"no DICOM series {uid}" if uid else "no image"
        raise ValueError(f"{what} in this folder; known are {', '.join(READ_SUFFIXES)} and DICOM")
    chosen = max(wanted, key=lambda one: len(one.files))
    chosen.check_whole()
    volume = read_volume(chosen.folder, chosen.uid)
    titles = tuple((one.uid, title) for one in found if (title := one.title))
    return Opened(volume, chosen.files, folder, titles, chosen.uid)
