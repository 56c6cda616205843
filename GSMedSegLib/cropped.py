"""Arrays that are zero outside a box, and how they are packed, for ledgers and for the way to a client."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Voxel = tuple[int, int, int]
Box3 = tuple[slice, slice, slice]

_LEVEL = 1
_BITS = "bit"
_DTYPES = ("u1", "u2", "u4")


@dataclass(frozen=True, eq=False)
class Cropped:
    """An array that is zero outside a box. Two are equal when they stand for the same whole.

    Attributes:
        shape: (K, J, I) of the whole.
        start_kji: lowest corner of the box.
        array: what is in the box; bool for a mask, unsigned integers for labels. Of size 0 when all is zero.
    """

    shape: Voxel
    start_kji: Voxel
    array: NDArray[Any]

    @property
    def box(self) -> Box3:
        """Where the array lies in the whole."""
        k, j, i = (slice(a, a + n) for a, n in zip(self.start_kji, self.array.shape))
        return k, j, i

    def whole(self) -> NDArray[Any]:
        """(K, J, I) of the array's type."""
        whole = np.zeros(self.shape, self.array.dtype)
        whole[self.box] = self.array
        return whole

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of place and content."""
        where = f"{self.shape} {self.start_kji} {self.array.shape} {self.array.dtype.str}".encode()
        return hashlib.sha256(where + _raw(self.array)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cropped) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def crop(array: NDArray[Any], shape: Voxel | None = None, start_kji: Voxel = (0, 0, 0)) -> Cropped:
    """A copy of the smallest box with all that is not zero.

    Args:
        array: 3D, bool or unsigned integers.
        shape: (K, J, I) of the whole that it is a part of; None when it is the whole.
        start_kji: where in the whole it begins.
    """
    if shape is None:
        k, j, i = array.shape
        shape = (k, j, i)
    low, inner = list(start_kji), array
    for axis in range(3):
        found = np.flatnonzero(inner.any(axis=tuple(a for a in range(3) if a != axis)))
        if found.size == 0:
            return Cropped(shape, (0, 0, 0), np.zeros((0, 0, 0), array.dtype))
        first, last = int(found[0]), int(found[-1])
        low[axis] += first
        inner = inner[tuple(slice(first, last + 1) if a == axis else slice(None) for a in range(3))]
    return Cropped(shape, (low[0], low[1], low[2]), inner.copy())


def pack(cropped: Cropped) -> tuple[dict[str, Any], bytes]:
    """What describes a cropped array, and its bytes: one bit a voxel of a mask, compressed lightly.

    Raises:
        ValueError: an array that is neither bool nor of unsigned integers.
    """
    array = cropped.array
    bits = array.dtype == np.bool_
    name = _BITS if bits else f"u{array.dtype.itemsize}"
    if not bits and (array.dtype.kind != "u" or name not in _DTYPES):
        raise ValueError(f"a mask is bool and labels are unsigned integers, got {array.dtype}")
    raw = _raw(array)
    header = {
        "start_kji": list(cropped.start_kji),
        "size": list(array.shape),
        "dtype": name,
        "crc32": zlib.crc32(raw),
    }
    return header, zlib.compress(raw, _LEVEL)


def unpack(header: Any, data: bytes, shape: Voxel) -> Cropped:
    """The cropped array that `pack` took apart.

    Args:
        header: what `pack` gave, also after a way through JSON.
        data: the bytes.
        shape: (K, J, I) of the whole.

    Raises:
        ValueError: a header that makes no sense, or bytes that are not what it describes.
    """
    if not isinstance(header, dict):
        raise ValueError(f"a mask is described by start_kji, size, dtype and crc32, got {header!r}")
    start, size = (_voxel(header, key) for key in ("start_kji", "size"))
    if any(a + n > whole for a, n, whole in zip(start, size, shape)):
        raise ValueError(f"a box of {size} voxels at {start} is not inside an image of {tuple(shape)}")
    name = header.get("dtype")
    if name not in (_BITS, *_DTYPES):
        raise ValueError(f"a mask or label map has dtype {_BITS}, {', '.join(_DTYPES)}; got {name!r}")
    voxels = size[0] * size[1] * size[2]
    raw = inflate(data, -(-voxels // 8) if name == _BITS else voxels * int(name[1]))
    if zlib.crc32(raw) != header.get("crc32"):
        raise ValueError("a mask was damaged on the way: its checksum is another one")
    if name == _BITS:
        array = np.unpackbits(np.frombuffer(raw, np.uint8), count=voxels).view(np.bool_)
    else:
        array = np.frombuffer(raw, f"<{name}").astype(f"={name}")
    return Cropped(shape, start, array.reshape(size))


def to_text(cropped: Cropped) -> dict[str, Any]:
    """A cropped array as JSON can hold it."""
    header, data = pack(cropped)
    return {**header, "data": base64.b64encode(data).decode("ascii")}


def from_text(entry: Any, shape: Voxel) -> Cropped:
    """What `to_text` wrote.

    Raises:
        ValueError: something else.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise ValueError('a mask has "start_kji", "size", "dtype", "crc32" and "data" in base64')
    try:
        data = base64.b64decode(entry["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'"data" of a mask is not base64 ({error})') from error
    return unpack(entry, data, shape)


def inflate(data: bytes, size: int) -> bytes:
    """Decompress to a size known before; what would become larger is not let grow.

    Raises:
        ValueError: not zlib's format, or another size.
    """
    unzip = zlib.decompressobj()
    try:
        raw = unzip.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"compressed data is damaged ({error})") from error
    if len(raw) != size or not unzip.eof or unzip.unused_data:
        raise ValueError(f"compressed data is not the {size} bytes that it should be")
    return raw


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype == np.bool_:
        return np.packbits(array).tobytes()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _voxel(header: dict[str, Any], key: str) -> Voxel:
    values = header.get(key)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(type(v) is int and 0 <= v < 2**31 for v in values)
    ):
        raise ValueError(f'"{key}" is three whole numbers (k, j, i), 0 or more, got {values!r}')
    return values[0], values[1], values[2]
