"""How images, prompts and answers travel between client and engine. Both ends use it; numpy alone is needed.

An image goes as little-endian bytes in C order, in chunks, each compressed or not. Prompts are JSON. An
answer that takes time is a stream of events: one line of JSON each, followed by as many bytes as its "bytes"
says. A mask is the box that holds it, one bit a voxel.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from GSMedSegLib.cropped import Cropped, Voxel, from_text, inflate, pack, to_text, unpack
from GSMedSegLib.prompts import Box, Click, ObjectPrompts

PROTOCOL = 1
"""Both ends must have the same."""

PROTOCOL_HEADER = "GSMedSeg-Protocol"
"""Is in every answer of an engine, and with it in no one else's."""

DEFAULT_PORT = 8731

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that only programs on it can mean."""

CHUNK_BYTES = 4 * 2**20
"""Bytes of an image, not compressed, that one request carries."""

HEARTBEAT_S = 1.0
"""An engine at work says so at least this often."""

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
"""Types of voxels, all little-endian, as numpy names them."""

LONGEST_EVENT = 2**16
"""Bytes of an event's line."""

MOST_CLICKS = 10_000
"""Clicks on one object that an engine takes."""

MOST_SMOOTHING_MM = 100.0

_LEVEL = 1


class ImageBytes:
    """An image as it is sent.

    Args:
        image: (K, J, I) real numbers.

    Raises:
        ValueError: not 3D, or of a type that cannot be sent.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        if image.ndim != 3 or image.size == 0:
            raise ValueError(f"expected a 3D image (k, j, i); got shape {image.shape}")
        if image.dtype == np.bool_:
            image = image.view(np.uint8)
        self.dtype = f"{image.dtype.kind}{image.dtype.itemsize}"
        if self.dtype not in DTYPES:
            raise ValueError(f"expected an image of whole or real numbers; got {image.dtype}")
        k, j, i = image.shape
        self.shape: Voxel = (k, j, i)
        array = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
        self._bytes = _bytes_of(array)

    @property
    def chunks(self) -> int:
        """How many requests it takes."""
        return count_chunks(len(self._bytes))

    def chunk(self, number: int, compress: bool) -> bytes:
        """The bytes of one request."""
        part = self._bytes[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        return zlib.compress(part, _LEVEL) if compress else bytes(part)

    def sha256(self) -> str:
        """Of all bytes, hexadecimal."""
        return hashlib.sha256(self._bytes).hexdigest()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def count_chunks(size: int) -> int:
    """How many chunks so many bytes are sent in."""
    return -(-size // CHUNK_BYTES)


class ImageBuffer:
    """An image as it arrives, chunk by chunk, in any order.

    Args:
        shape: (K, J, I).
        dtype: one of `DTYPES`.
        sha256: of all bytes, hexadecimal.
    """

    def __init__(self, shape: Voxel, dtype: str, sha256: str) -> None:
        self._array = np.empty(shape, f"<{dtype}")
        self._bytes = _bytes_of(self._array)
        self._sha256 = sha256
        self._missing = set(range(count_chunks(len(self._bytes))))

    @property
    def missing(self) -> int:
        """Chunks that have not arrived."""
        return len(self._missing)

    def size_of(self, number: int) -> int:
        """Bytes of a chunk.

        Raises:
            ValueError: no such chunk.
        """
        chunks = count_chunks(len(self._bytes))
        if not 0 <= number < chunks:
            raise ValueError(f"the image has chunks 0..{chunks - 1}, got {number}")
        return min(CHUNK_BYTES, len(self._bytes) - number * CHUNK_BYTES)

    def put(self, number: int, data: bytes, compressed: bool) -> None:
        """Take a chunk; one that is there already is replaced.

        Raises:
            ValueError: no such chunk, or not of its size.
        """
        size = self.size_of(number)
        raw = inflate(data, size) if compressed else data
        if len(raw) != size:
            raise ValueError(f"chunk {number} has {size} bytes, got {len(raw)}")
        start = number * CHUNK_BYTES
        self._bytes[start : start + size] = raw
        self._missing.discard(number)

    def take(self) -> NDArray[Any]:
        """The image in this machine's byte order.

        Raises:
            ValueError: the checksum is another one.
        """
        assert not self._missing
        if hashlib.sha256(self._bytes).hexdigest() != self._sha256:
            raise ValueError("the image was damaged on the way: its checksum is another one; send it again")
        return self._array.astype(self._array.dtype.newbyteorder("="), copy=False)


def image_bytes(shape: Voxel, dtype: str) -> int:
    """Bytes of an image."""
    return math.prod(shape) * int(dtype[1:])


@dataclass(frozen=True)
class Question:
    """What a client asks of an object.

    Attributes:
        prompts: all that was said of it.
        smoothing_mm: how much its border is to be smoothed, a standard deviation.
        hint: whether to say where a next click would help.
    """

    prompts: ObjectPrompts
    smoothing_mm: float = 0.0
    hint: bool = False


@dataclass(frozen=True)
class Answer:
    """What an engine answers.

    Attributes:
        mask: of the object.
        hint_kji: where a next click would help, or None.
        hint_positive: whether it would be a foreground click, if the mask is wrong there.
    """

    mask: Cropped
    hint_kji: Voxel | None = None
    hint_positive: bool = False


def answer_to_event(answer: Answer) -> tuple[dict[str, Any], bytes]:
    """An answer's header and payload."""
    header, data = pack(answer.mask)
    hint = None if answer.hint_kji is None else [*answer.hint_kji, answer.hint_positive]
    return {"event": "answer", **header, "hint": hint}, data


def answer_from_event(header: Mapping[str, Any], payload: bytes, shape: Voxel) -> Answer:
    """What `answer_to_event` made.

    Raises:
        ValueError: something else.
    """
    mask = unpack(dict(header), payload, shape)
    if header.get("hint") is None:
        return Answer(mask)
    click = _click(header["hint"])
    return Answer(mask, click.kji, click.positive)


def question_to_json(question: Question) -> dict[str, Any]:
    """A question."""
    prompts = question.prompts
    entry: dict[str, Any] = {"clicks": [[*click.kji, click.positive] for click in prompts.clicks]}
    entry |= {"smoothing_mm": question.smoothing_mm, "hint": question.hint}
    if prompts.box is not None:
        box = prompts.box
        entry["box"] = {"min_kji": box.min_kji, "max_kji": box.max_kji, "mid_k": box.mid_k}
    if prompts.mask is not None:
        entry["mask"] = to_text(prompts.mask)
    return entry


def question_from_json(entry: Any, shape: Voxel) -> Question:
    """What `question_to_json` made.

    Args:
        entry: from JSON, of an unknown sender.
        shape: (K, J, I) of the image.

    Raises:
        ValueError: something else, or prompts outside the image.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("clicks", []), list):
        raise ValueError(
            'prompts have "clicks", a list of [k, j, i, positive], and may have "box" and "mask"'
        )
    unknown = set(entry) - {"clicks", "box", "mask", "smoothing_mm", "hint"}
    if unknown:
        raise ValueError(f"a question has clicks, box, mask, smoothing_mm and hint; got {sorted(unknown)}")
    smoothing_mm, hint = entry.get("smoothing_mm", 0.0), entry.get("hint", False)
    if type(smoothing_mm) not in (int, float) or not 0 <= smoothing_mm <= MOST_SMOOTHING_MM:
        raise ValueError(
            f"smoothing_mm is a number from 0 to {MOST_SMOOTHING_MM:g}, got {smoothing_mm!r:.40}"
        )
    if type(hint) is not bool:
        raise ValueError(f"hint is true or false, got {hint!r:.40}")
    clicks = entry.get("clicks", [])
    if len(clicks) > MOST_CLICKS:
        raise ValueError(f"an object has at most {MOST_CLICKS} clicks, got {len(clicks)}")
    box, mask = entry.get("box"), entry.get("mask")
    prompts = ObjectPrompts(
        tuple(_click(values) for values in clicks),
        None if box is None else _box(box),
        None if mask is None else from_text(mask, shape),
    )
    if prompts.mask is not None and prompts.mask.array.dtype != np.bool_:
        raise ValueError("a mask to start from has one bit a voxel")
    prompts.check_image(shape)
    return Question(prompts, float(smoothing_mm), hint)


def _click(values: Any) -> Click:
    if not isinstance(values, list) or len(values) != 4 or not all(_is_index(v) for v in values[:3]):
        raise ValueError(f"a click is [k, j, i, positive], got {values!r:.100}")
    return Click((values[0], values[1], values[2]), values[3])


def _box(entry: Any) -> Box:
    corners: list[Any] = [entry.get(key) for key in ("min_kji", "max_kji")] if isinstance(entry, dict) else []
    sound = corners and all(isinstance(c, list) and len(c) == 3 and all(map(_is_index, c)) for c in corners)
    if not sound or not (entry.get("mid_k") is None or _is_index(entry["mid_k"])):
        raise ValueError(f'a box has "min_kji", "max_kji" and may have "mid_k", got {entry!r:.100}')
    return Box(tuple(corners[0]), tuple(corners[1]), entry.get("mid_k"))


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def event(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """An event as bytes; its payload's length is added."""
    return json.dumps({**header, "bytes": len(payload)}).encode() + b"\n" + payload


class Stream(Protocol):
    """What events are read from."""

    def readline(self, limit: int, /) -> bytes:
        """One line with its end, or what there is of it."""

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer at the end."""


def read_events(stream: Stream, largest: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Events with their payloads, until the stream ends.

    Args:
        stream: from where.
        largest: bytes that a payload may have.

    Raises:
        ValueError: not such a stream, or one that was cut off within an event.
    """
    while line := stream.readline(LONGEST_EVENT):
        try:
            header = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            header = None
        size = header.get("bytes") if isinstance(header, dict) else None
        if not isinstance(header, dict) or type(size) is not int or not 0 <= size <= largest:
            raise ValueError("the stream of events is cut off or damaged")
        payload = stream.read(size) if size else b""
        if len(payload) != size:
            raise ValueError("the stream of events is cut off")
        yield header, payload
