"""The memory allocator: keep freed blocks instead of handing them back after every layer."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
TOP_PAD_BYTES = 64 * 2**20

LARGEST_KEPT_BYTES = 32 * 2**20
"""The most that glibc allows. Larger blocks, the full-resolution features of a wide network, go back to the
system: kept, they would leave holes that no other layer fits into, and half as much memory again in use."""


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory within the process: no page fault per 4 KiB of every activation.

    Optional, for a process that only runs the engine: small blocks once used are not returned to the system
    before it ends. A no-op where the C library is not glibc.

    Returns:
        whether the allocator took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(option, value) == 1 for option, value in settings)
