"""Text that people write, with whatever program: files, and their names."""

from __future__ import annotations

import os
from pathlib import Path


def read_text(path: Path) -> str:
    """A file's text, in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: another encoding, such as PowerShell's `>` writes.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it with this encoding") from None


def path_text(path: str | os.PathLike[str]) -> str:
    """A path for SimpleITK, which ends the process over a name that is not text.

    Raises:
        ValueError: bytes of another encoding in it, such as old archives leave.
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        readable = text.encode(errors="backslashreplace").decode()
        raise ValueError(f"{readable}: the name is not text in UTF-8; rename the file or folder") from None
    return text
