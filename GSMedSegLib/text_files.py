"""Text files that people write, with whatever program."""

from __future__ import annotations

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
