"""What travels between client and engine."""

from __future__ import annotations

import hashlib
import io
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from GSMedSegLib.cropped import crop
from GSMedSegLib.prompts import Box, Click, ObjectPrompts
from GSMedSegLib.service import wire
from GSMedSegLib.service.wire import (
    ImageBuffer,
    ImageBytes,
    Question,
    event,
    question_from_json,
    question_to_json,
    read_events,
)


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int16, ">i2", np.uint16, np.int32, np.float16, np.float32, ">f8"]
)
@pytest.mark.parametrize("compress", [False, True])
def test_an_image_arrives_as_it_was(dtype: object, compress: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "CHUNK_BYTES", 100)
    image = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)[:, ::-1]
    sent = ImageBytes(image)
    buffer = ImageBuffer(sent.shape, sent.dtype, sent.sha256())
    assert buffer.missing == sent.chunks > 1
    for number in reversed(range(sent.chunks)):
        buffer.put(number, sent.chunk(number, compress), compress)
    arrived = buffer.take()
    assert arrived.dtype.isnative
    assert np.array_equal(arrived, image)


def test_the_bytes_are_little_endian_in_c_order():
    sent = ImageBytes(np.array([[[1, 256]]], ">u2"))
    assert sent.chunk(0, False) == b"\x01\x00\x00\x01"
    assert sent.sha256() == hashlib.sha256(b"\x01\x00\x00\x01").hexdigest()


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((0, 2, 2)), np.zeros((2, 2, 2), complex)])
def test_what_is_no_image_is_refused(image: np.ndarray):
    with pytest.raises(ValueError, match="expected"):
        ImageBytes(image)


def test_chunks_that_do_not_fit_are_refused():
    buffer = ImageBuffer((2, 2, 2), "u1", "0" * 64)
    for number, data, compressed in [
        (1, bytes(8), False),
        (-1, bytes(8), False),
        (0, bytes(9), False),
        (0, b"nonsense", True),
        (0, zlib.compress(bytes(99)), True),
    ]:
        with pytest.raises(ValueError, match=r"chunk|bytes|damaged"):
            buffer.put(number, data, compressed)
    assert buffer.missing == 1
    buffer.put(0, bytes(8), False)
    with pytest.raises(ValueError, match="checksum"):
        buffer.take()


SHAPE = (8, 9, 10)
MASK = crop(np.ones((2, 2, 2), bool), SHAPE, (1, 1, 1))


@pytest.mark.parametrize(
    "prompts",
    [
        ObjectPrompts(),
        ObjectPrompts((Click((1, 2, 3), True), Click((7, 8, 9), False))),
        ObjectPrompts((), Box((0, 0, 0), (7, 8, 9), 3)),
        ObjectPrompts((), Box((0, 0, 0), (7, 8, 9)), MASK),
    ],
)
def test_prompts_arrive_as_they_were(prompts: ObjectPrompts):
    question = Question(prompts, 1.5, True)
    assert question_from_json(json.loads(json.dumps(question_to_json(question))), SHAPE) == question


@pytest.mark.parametrize(
    "entry",
    [
        None, [], {"clicks": 1}, {"clicks": [[1, 2, 3]]}, {"clicks": [[1, 2, 3, 1]]},
        {"clicks": [[1.0, 2, 3, True]]},
        {"clicks": [[8, 2, 3, True]]}, {"clicks": [[-1, 2, 3, True]]}, {"clicks": [[2**40, 2, 3, True]]},
        {"box": []}, {"box": {"min_kji": [1, 1, 1]}}, {"box": {"min_kji": [1, 1, 1], "max_kji": [0, 0, 0]}},
        {"box": {"min_kji": [1, 1, 1], "max_kji": [8, 8, 8]}},
        {"box": {"min_kji": [1, 1, 1], "max_kji": None}},
        {"box": {"min_kji": [1, 1, 1], "max_kji": [2, 2, 2], "mid_k": "x"}}, {"mask": {}}, {"lasso": 1},
        {"smoothing_mm": -1}, {"smoothing_mm": "1"}, {"smoothing_mm": float("nan")},
        {"smoothing_mm": 1e9}, {"hint": 1},
    ],
)  # fmt: skip
def test_prompts_that_make_no_sense_are_refused(entry: object):
    with pytest.raises(ValueError, match=r"."):
        question_from_json(entry, SHAPE)


def test_a_mask_of_labels_is_no_start():
    labels = crop(np.ones((2, 2, 2), np.uint8), SHAPE)
    with pytest.raises(ValueError, match="one bit"):
        question_from_json(question_to_json(Question(ObjectPrompts(mask=labels))), SHAPE)


def test_too_many_clicks_are_refused():
    with pytest.raises(ValueError, match="at most 10000"):
        question_from_json({"clicks": [[0, 0, 0, True]] * 10_001}, SHAPE)


def test_events_are_read_as_they_were_written():
    stream = io.BytesIO(event({"a": 1}) + event({"b": "ü\n"}, b"payload\n") + event({"c": None}))
    assert [(header, payload) for header, payload in read_events(stream, 100)] == [
        ({"a": 1, "bytes": 0}, b""),
        ({"b": "ü\n", "bytes": 8}, b"payload\n"),
        ({"c": None, "bytes": 0}, b""),
    ]


@given(st.binary(max_size=200))
def test_noise_is_no_stream_of_events(noise: bytes):
    """Either nothing, or an error that says so; never another one, never a payload larger than allowed."""
    try:
        for _, payload in read_events(io.BytesIO(noise), 10):
            assert len(payload) <= 10
    except ValueError as error:
        assert "stream of events" in str(error)  # noqa: PT017 - there need not be one


@given(st.integers(0, 60))
def test_a_stream_that_is_cut_off_is_noticed(length: int):
    whole = event({"event": "mask"}, b"1234567890")
    if 0 < length < len(whole):
        with pytest.raises(ValueError, match="cut off"):
            list(read_events(io.BytesIO(whole[:length]), 100))
