"""What a user did, kept on this computer, so that it is there again when the same image is opened."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from filelock import FileLock, Timeout

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.mrml.ledgers import store_ledger
from GSMedSegLib.prompts import ClickLedger
from GSMedSegLib.volume_io import Volume

KEPT_DAYS = 30
"""After so long without a change what was kept is deleted."""

KEPT_IMAGES = 200
"""Of so many images work is kept, the latest; masks of one take some 100 kB."""

_ABOUT, _SEGMENTS, _LOCK = "clicks.json", "segments-*.seg.nrrd", "lock"


@dataclass(frozen=True)
class Kept:
    """Segments and clicks on an image, as they were kept.

    Attributes:
        segmentation: a node that was added to the scene, its clicks beside it.
        segment_id: that was clicked for last.
        saved_at: in seconds since 1970.
    """

    segmentation: Any
    segment_id: str
    saved_at: float


def digest_of(image: Volume) -> str:
    """Names an image by its voxels and place; the same file gives the same again."""
    digest = hashlib.sha256(f"{image.shape} {image.array.dtype.str} {image.ijk_to_ras.tolist()}".encode())
    for part in image.array:  # a slice at a time: the whole would be copied where it is not in one piece
        digest.update(part.tobytes())
    return digest.hexdigest()[:32]


class Autosave:
    """A folder with a folder for each image. It has masks and clicks, no voxels of the image.

    Args:
        folder: made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / _LOCK)

    def claim(self) -> bool:
        """Have the folder for this process alone, up to its end; False when another one has it.

        The operating system holds the lock and lets go of it with the process, however that ends. On a file
        system without locks everybody gets True.

        Raises:
            OSError: the folder cannot be made.
        """
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except NotImplementedError:  # a file system without locks
            return True
        return True

    def save(self, digest: str, segmentation: Any, ledger: ClickLedger, segment_id: str) -> None:
        """Keep segments and clicks in place of those kept before.

        Args:
            digest: of the image.
            segmentation: its node.
            ledger: its clicks, objects named by segment ID.
            segment_id: that is clicked for.

        Raises:
            OSError: it cannot be written.
        """
        folder = self._folder / digest
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        folder.mkdir(0o700, exist_ok=True)  # for the owner alone, but on Windows, where the home folder is
        segments = folder / _SEGMENTS.replace("*", secrets.token_hex(4))
        write_segmentation(segmentation, segments)
        about = {
            "segments": segments.name,
            "segment_id": segment_id,
            "saved_at": time.time(),
            "ledger": json.loads(ledger.to_json()),
        }
        with atomic_path(folder / _ABOUT) as path:  # from here on the new segments and clicks count, together
            path.write_text(json.dumps(about), encoding="utf-8")
        for old in folder.glob(_SEGMENTS):
            if old != segments:
                old.unlink(missing_ok=True)

    def load(self, digest: str, volume: Any) -> Kept | None:
        """Bring back what was kept for an image; None when there is nothing.

        Args:
            digest: of the image.
            volume: its node.

        Raises:
            ValueError: what was kept is damaged; it is set aside, and the text says where.
        """
        folder = self._folder / digest
        if not (folder / _ABOUT).is_file():
            return None
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            ledger = ClickLedger.from_json(json.dumps(about["ledger"]))
            segment_id, saved_at = str(about["segment_id"]), float(about["saved_at"])
            segmentation = read_segmentation(folder / Path(about["segments"]).name, volume)
        except (ValueError, KeyError, TypeError, OSError) as error:
            aside = folder.with_name(f"{digest}-damaged-{secrets.token_hex(2)}")
            folder.rename(aside)
            raise ValueError(f"earlier work on this image cannot be read; it was put into {aside}") from error
        store_ledger(ledger, segmentation, volume)
        return Kept(segmentation, segment_id, saved_at)

    def forget(self, digest: str) -> None:
        """Delete what is kept for an image."""
        shutil.rmtree(self._folder / digest, ignore_errors=True)

    def tidy(self) -> None:
        """Delete what was kept longer than `KEPT_DAYS` ago, and all but the latest `KEPT_IMAGES`."""
        folders = [folder for folder in self._folder.glob("*") if folder.is_dir()]
        folders.sort(key=_changed_s, reverse=True)
        oldest = time.time() - KEPT_DAYS * 86400
        for number, folder in enumerate(folders):
            if number >= KEPT_IMAGES or _changed_s(folder) < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _changed_s(folder: Path) -> float:
    about = folder / _ABOUT
    return (about if about.is_file() else folder).stat().st_mtime


def write_segmentation(segmentation: Any, path: Path) -> None:
    """Writes a segmentation node as .seg.nrrd, names, colours, codes and tags with it; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    storage = slicer.vtkMRMLSegmentationStorageNode()
    with atomic_path(path) as temporary:
        storage.SetFileName(str(temporary))
        if not storage.WriteData(segmentation) or not temporary.is_file():
            raise OSError(f"{path.name}: the segmentation could not be written; is the disk full?")


def read_segmentation(path: Path, volume: Any) -> Any:
    """Reads what `write_segmentation` wrote into a new node of a volume's scene, in the volume's place.

    Raises:
        OSError: not such a file.
    """
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    node = volume.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", volume.GetName())
    if not storage.ReadData(node):
        volume.GetScene().RemoveNode(node)
        raise OSError(f"{path.name}: a damaged segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return node
