"""What a segmentation takes: the two images that were measured, and what lies between."""

from __future__ import annotations

import pytest

from GSMedSegLib.memory_need import (
    COMPACT_GIB,
    LARGE_CT_VOXELS,
    LARGE_GIB,
    SMALL_GIB,
    SMALL_VOXELS,
    needed_gib,
)


def test_the_images_that_were_measured():
    assert needed_gib(SMALL_VOXELS) == SMALL_GIB
    assert needed_gib(LARGE_CT_VOXELS) == pytest.approx(COMPACT_GIB)
    assert needed_gib(LARGE_CT_VOXELS, weights_bytes=872_000_000) == pytest.approx(LARGE_GIB)


def test_half_way_lies_in_the_middle():
    middle = (SMALL_VOXELS + LARGE_CT_VOXELS) // 2
    assert needed_gib(middle, 15_000_000) == pytest.approx((SMALL_GIB + COMPACT_GIB) / 2, abs=1e-6)


def test_a_tiny_image_takes_what_the_program_takes():
    assert needed_gib(1) == SMALL_GIB
