"""Masks cut to their box, packed and unpacked."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from GSMedSegLib.cropped import Cropped, crop, from_text, inflate, pack, to_text, unpack


def test_a_mask_is_cut_to_its_voxels():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2:4, 3] = True
    cropped = crop(mask)
    assert cropped.start_kji == (1, 2, 3)
    assert cropped.array.shape == (1, 2, 1)
    assert np.array_equal(cropped.whole(), mask)


def test_what_was_cropped_is_a_copy():
    """The caller may use his array again: a ledger's history must not change with it."""
    mask = np.ones((4, 5, 6), bool)
    cropped = crop(mask)
    mask[:] = False
    assert cropped.array.all()


def test_a_part_of_the_whole_keeps_its_place():
    part = np.zeros((3, 3, 3), bool)
    part[1, 1, 1] = True
    assert crop(part, (10, 10, 10), (4, 5, 6)).start_kji == (5, 6, 7)


def test_an_empty_mask_has_no_box():
    cropped = crop(np.zeros((4, 5, 6), bool))
    assert cropped.array.size == 0
    assert not cropped.whole().any()
    assert not unpack(*pack(cropped), cropped.shape).whole().any()


def test_a_mask_costs_one_bit_a_voxel():
    noise = np.random.default_rng(0).random((32, 32, 32)) > 0.5
    assert len(pack(crop(noise))[1]) < 32**3 / 8 * 1.01


@given(
    arrays(st.sampled_from([np.bool_, np.uint8, np.uint16, np.uint32]), array_shapes(min_dims=3, max_dims=3))
)
def test_nothing_changes_on_the_way(array: np.ndarray):
    cropped = crop(array)
    back = unpack(*pack(cropped), cropped.shape)
    assert back.array.dtype == array.dtype
    assert np.array_equal(back.whole(), array)
    assert back == cropped
    assert hash(back) == hash(cropped)
    assert from_text(to_text(cropped), cropped.shape) == cropped


def test_equal_means_the_same_whole():
    mask = np.ones((2, 2, 2), bool)
    here, there = crop(mask, (4, 4, 4), (0, 0, 0)), crop(mask, (4, 4, 4), (0, 0, 1))
    assert here == crop(mask.copy(), (4, 4, 4))
    assert here != there
    assert here != crop(mask, (5, 4, 4))
    assert here != crop(mask.astype(np.uint8), (4, 4, 4))
    assert here != "a mask"


def test_only_masks_and_labels_are_packed():
    with pytest.raises(ValueError, match="got float64"):
        pack(Cropped((1, 1, 1), (0, 0, 0), np.ones((1, 1, 1))))


HEADER, DATA = pack(crop(np.ones((2, 3, 4), bool), (4, 4, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [9, 9, 9]}, "not inside an image"),
        ({"start_kji": [3, 0, 0]}, "not inside an image"),
        ({"start_kji": [-1, 0, 0]}, "three whole numbers"),
        ({"size": [2, 3]}, "three whole numbers"),
        ({"size": [2, 3, True]}, "three whole numbers"),
        ({"size": "234"}, "three whole numbers"),
        ({"dtype": "f4"}, "got 'f4'"),
        ({"dtype": "u1"}, "24 bytes"),
        ({"crc32": 1}, "checksum"),
    ],
)
def test_headers_that_lie_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        unpack({**HEADER, **change}, DATA, (4, 4, 4))


@pytest.mark.parametrize("header", [None, [], "x", {}])
def test_what_is_no_header_is_refused(header: object):
    with pytest.raises(ValueError, match=r"described|three whole numbers"):
        unpack(header, DATA, (4, 4, 4))


@pytest.mark.parametrize(
    "entry", [None, {}, {**HEADER, "data": 1}, {**HEADER, "data": "§"}, {**HEADER, "data": "AA=="}]
)
def test_what_is_no_text_of_a_mask_is_refused(entry: object):
    with pytest.raises(ValueError, match=r"base64|damaged|bytes"):
        from_text(entry, (4, 4, 4))


def test_a_bomb_is_not_let_go_off():
    """A gigabyte of zeros, compressed, is refused after as many bytes as were announced."""
    bomb = zlib.compress(bytes(2**24))
    with pytest.raises(ValueError, match="is not the 100 bytes"):
        inflate(bomb, 100)
    for damaged in (b"", b"x", bomb[:-1], zlib.compress(bytes(100)) + b"x", zlib.compress(bytes(99))):
        with pytest.raises(ValueError, match=r"damaged|is not the 100 bytes"):
            inflate(damaged, 100)
