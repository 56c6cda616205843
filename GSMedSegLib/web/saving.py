"""Files that a segmentation is saved as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from GSMedSegLib.volume_io import write_labelmap
from GSMedSegLib.web.autosave import write_segmentation
from GSMedSegLib.web.dicom_seg import write_dicom
from GSMedSegLib.web.workspace import Workspace

FORMATS: dict[str, tuple[str, str]] = {
    "seg.nrrd": ("Segmentation for 3D Slicer (.seg.nrrd)", ".seg.nrrd"),
    "nii.gz": ("Label map (.nii.gz)", ".nii.gz"),
    "dcm": ("DICOM segmentation (.dcm)", ".dcm"),
    "json": ("Clicks, to be replayed (.json)", ".json"),
}
"""Title and ending by name."""

_NAME_BYTES = 150
"""Of an image's name: file systems take 255 bytes, of which the ending and a name while writing need some."""

_NOT_IN_NAMES = dict.fromkeys(map(ord, '<>:"/\\|?*\n\r\t'), "_")


def plan(
    workspace: Workspace, kind: str, folder: Path, dicom_files: tuple[Path, ...] = ()
) -> tuple[Path, Callable[[], Any]]:
    """What is to be written, taken from the scene now, and the work of writing it, for any thread.

    Args:
        workspace: with an image.
        kind: one of `FORMATS`.
        folder: to write to.
        dicom_files: that the image was read from.

    Returns:
        the file that there will be, and what writes it, which may raise OSError or ValueError.

    Raises:
        ValueError: unknown format, or nothing to be saved in it.
        RuntimeError: there is no image.
    """
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}; choose one of {', '.join(FORMATS)}")
    image = workspace.image
    if image is None:
        raise RuntimeError("open an image first")
    name = image.name.translate(_NOT_IN_NAMES).encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")
    name = name.strip(". ") or "segmentation"
    path = folder / f"{name}{FORMATS[kind][1]}"
    if kind == "json":
        ledger = workspace.ledger()
        return path, lambda: ledger.save(path)
    masks = [(row, workspace.mask(row.id)) for row in workspace.rows()]
    if not any(mask.array.size for _, mask in masks):
        raise ValueError("no segment has voxels yet; click on an object first")
    if kind == "seg.nrrd":
        write_segmentation(workspace.segmentation, path)  # Slicer's data model belongs to the main thread
        return path, lambda: None
    if kind == "dcm":
        named = [(row.name, row.color, mask) for row, mask in masks if mask.array.size]
        return path, lambda: write_dicom(path, image, named, dicom_files)
    labels, _ = workspace.labels()
    return path, lambda: write_labelmap(path, labels, image.ijk_to_ras)
