"""Outputs that are whole or absent: written under a temporary name, renamed when complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def check_target(target: str | os.PathLike[str]) -> None:
    """Raises when a file cannot be written there: worth knowing before a long computation.

    Args:
        target: the file wanted in the end.

    Raises:
        FileNotFoundError: the folder of `target` does not exist.
        IsADirectoryError: `target` is a folder.
        PermissionError: its folder is not ours to write to.
    """
    target = Path(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder to write to does not exist", str(target.parent))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a file name is needed, this is a folder", str(target))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "no permission to write to this folder", str(target.parent))


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to, which becomes `target` when the block ends well and vanishes otherwise.

    The path lies in the target's folder (a rename within one file system is atomic), does not exist yet, and
    ends as the target does, in .gz as in .nii.gz; it has no other dots, of which writers of images make
    endings of their own. An older file at `target` stays as it was until the new one is complete.

    Args:
        target: the file wanted in the end.

    Raises:
        OSError: as `check_target`.
    """
    target = Path(target)
    check_target(target)
    ending = "".join(target.suffixes[-2:] if target.suffix == ".gz" else target.suffixes[-1:])
    stem = target.name.removesuffix(ending).replace(".", "_")
    temporary = target.with_name(f".{secrets.token_hex(4)}-{stem}{ending}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # a power cut must not come between the new name and the new bytes
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
