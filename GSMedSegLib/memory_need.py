"""How much memory a segmentation takes on a processor, told before it is begun."""

from __future__ import annotations

LEAST_GIB = 1.0
"""With less free memory nothing but small images can be segmented."""

LARGE_CT_VOXELS = 512 * 512 * 300

COMPACT_GIB, LARGE_GIB = 3.5, 7.0
"""For an image of `LARGE_CT_VOXELS` with the compact weights (`gsmedseg segment` took 3.5), and with
`vista3d132`, whose network takes 3.6 more (docs/performance.md)."""

SMALL_GIB, SMALL_VOXELS = 0.7, 128 * 112 * 72
"""What `gsmedseg demo` took, and the voxels of its image."""

LARGE_FILE_BYTES = 200e6
"""Weights in a larger file count as those of the large network."""


def needed_gib(voxels: int, weights_bytes: int = 0) -> float:
    """GiB that an image of so many voxels takes: a line through what was measured on two images.

    Args:
        voxels: of the image.
        weights_bytes: size of the weights' file.
    """
    slope = (COMPACT_GIB - SMALL_GIB) / (LARGE_CT_VOXELS - SMALL_VOXELS)
    compact = SMALL_GIB + slope * max(0, voxels - SMALL_VOXELS)
    return compact + (LARGE_GIB - COMPACT_GIB if weights_bytes > LARGE_FILE_BYTES else 0.0)
