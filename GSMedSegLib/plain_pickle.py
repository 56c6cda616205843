"""NumPy object arrays from strangers: pickles read as lists, dicts, strings and numbers, and as nothing else.

NumPy's own classes are not let in either, since a forged dtype makes them read raw bytes as pointers. Small
stand-ins take what NumPy would have been given and build lists from it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")
_DAMAGE = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
"""What unpickling raises on forged or damaged bytes, apart from `_Forbidden`."""


def load_plain(data: bytes) -> list[Any]:
    """The elements of a pickled object array; those of a 2D one are its rows, as lists.

    Args:
        data: what NumPy writes behind the header of an object array (pickle protocols 3 and 4).

    Returns:
        A list; arrays inside it are nested lists, NumPy numbers are Python's.

    Raises:
        ValueError: anything but such an array, above all a pickle that would run code.
    """
    try:
        _check_memo(data)
        elements = _PlainUnpickler(io.BytesIO(data)).load()
    except _Forbidden as error:
        raise ValueError(str(error)) from error
    except _DAMAGE as error:
        raise ValueError("damaged: not an object array of dicts, lists and numbers") from error
    if not isinstance(elements, _Array):
        raise ValueError("not an object array")
    return list(elements)


class _Forbidden(Exception):  # noqa: N818
    """The pickle names something that is not plain data."""


class _Dtype:
    """In place of numpy.dtype: a number type or object, and a byte order, no more."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code != "O8" and code not in _NUMBER_CODES:
            raise ValueError(f"dtype {code!r}")
        self._code = code
        self._order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise ValueError("structured dtype")
        self._order = state[1]

    @property
    def is_object(self) -> bool:
        return self._code == "O8"

    def decode(self, raw: bytes) -> NDArray[Any]:
        return np.frombuffer(raw, np.dtype(self._order + self._code))


class _Array(list[Any]):
    """In place of numpy.ndarray and of the function that makes an empty one: a list, filled once."""

    def __init__(self, *ignored: Any) -> None:
        super().__init__()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if self or not isinstance(dtype, _Dtype):
            raise ValueError("array state")
        if not dtype.is_object:
            self.extend(dtype.decode(data).reshape(shape, order="F" if is_fortran else "C").tolist())
        elif type(data) is list and shape == (len(data),):
            self.extend(data)
        elif type(data) is list and len(shape) == 2 and min(shape) > 0 and shape[0] * shape[1] == len(data):
            # NumPy lists objects row by row, however they lie in memory.
            self.extend(data[n : n + shape[1]] for n in range(0, len(data), shape[1]))
        else:
            raise ValueError(f"object array of shape {shape}")


class _Scalar:
    """In place of the function that makes a NumPy number: gives Python's."""

    def __new__(cls, dtype: _Dtype, raw: bytes) -> Any:
        (number,) = dtype.decode(raw).tolist()
        return number

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a number has no state")


class _PlainUnpickler(pickle.Unpickler):
    """Finds the stand-ins, under the names NumPy 1 and 2 use, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        stand_ins = {"ndarray": _Array, "dtype": _Dtype}
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray"):
            stand_ins = {"_reconstruct": _Array, "scalar": _Scalar}
        elif module_name != "numpy":
            stand_ins = {}
        if global_name not in stand_ins:
            raise _Forbidden(
                f"holds {module_name}.{global_name}, which is not plain data; nothing of it was run"
            )
        return stand_ins[global_name]


def _check_memo(data: bytes) -> None:
    """The unpickler allocates up to the highest memo slot; an honest pickle has fewer slots than bytes."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _MEMO_OPCODES and isinstance(argument, int) and argument > len(data):
            raise ValueError("memo slot")
