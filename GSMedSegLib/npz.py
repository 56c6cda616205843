"""Challenge cases: NumPy archives of an image, its spacing, and the boxes and clicks of every class.

Keys: `imgs` (K, J, I) uint8 (or what it holds without loss), `spacing` 3 numbers in mm, optionally `gts` and
`prev_pred` (K, J, I) labels, `boxes` and `clicks` object arrays of one dict a class, in class order, and
`clicks_order`, which tells the order of a class's foreground and background clicks. The result of a
prediction is `segs`, in a file of the same name.

The challenge does not say which axes `spacing` is of: see `seems_reversed`. `spacing_reversed`, a key of our
own, says it where that would be mistaken.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.geometry import check_inside
from GSMedSegLib.labels import LabelArray, as_labels
from GSMedSegLib.plain_pickle import load_plain
from GSMedSegLib.prompts import Box, Click

KINDS = ("fg", "bg")
"""What the file calls foreground and background clicks."""

MAX_GB = 8.0
"""What the arrays of one case may unpack to, by default: far above any case, far below a zip bomb."""
_MAX_PICKLE_BYTES = 1 << 24
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, OSError)
"""What zipfile and NumPy raise on damaged bytes; OSError for a seek to before the start."""

_ALIKE = 0.01
"""By such a share of themselves two spacings may differ and count as equal."""
_CLEARLY = 2.0
"""A volume so many times less elongated in another order of its spacing is taken to have that order."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Case:
    """One case of the challenge.

    Attributes:
        name: file name without suffix.
        image: (K, J, I) uint8.
        spacing_mm: as the file gives it; surfaces are scored as if it were of axes 0, 1, 2.
        truth: (K, J, I) unsigned labels, 0 for background; None where the file has none.
        boxes: a Box (or None) per class; None where the file has none.
        clicks: the clicks of each class in the order they were made, None for a round in which the class
            needed none; None where the file has none.
        prev_pred: (K, J, I) unsigned labels of the round before; None where the file has none.
        spacing_reversed: whether `spacing_mm` is of axes 2, 1, 0.

    Raises:
        ValueError: an image that is not 3D uint8, a spacing that is not three positive numbers, label maps of
            another shape, prompts outside the image, or boxes and clicks for different numbers of classes.
    """

    name: str
    image: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    truth: LabelArray | None = None
    boxes: tuple[Box | None, ...] | None = None
    clicks: tuple[tuple[Click | None, ...], ...] | None = None
    prev_pred: LabelArray | None = None
    spacing_reversed: bool = False

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.size == 0:
            wrong = self.image.ndim != 3 or self.image.size == 0
            raise ValueError(
                f"imgs must be 3D (K, J, I) uint8, got shape {self.image.shape} {self.image.dtype}; "
                + ("give one volume" if wrong else "clip, scale and round the intensities to 0..255 first")
            )
        if len(self.spacing_mm) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in self.spacing_mm):
            raise ValueError(f"spacing must be three positive numbers (mm), got {self.spacing_mm}")
        for key, labels in (("gts", self.truth), ("prev_pred", self.prev_pred)):
            if labels is not None and labels.shape != self.image.shape:
                raise ValueError(f"{key} must have the shape of imgs, {self.image.shape}, got {labels.shape}")
        if self.boxes is not None and self.clicks is not None and len(self.boxes) != len(self.clicks):
            raise ValueError(
                f"boxes and clicks must be for the same classes, got {len(self.boxes)} and {len(self.clicks)}"
            )
        corners = [corner for box in self.boxes or () if box for corner in (box.min_kji, box.max_kji)]
        voxels = [click.kji for clicks in self.clicks or () for click in clicks if click]
        for key, kji in (("boxes", corners), ("clicks", voxels)):
            try:
                check_inside(kji, self.image.shape)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error

    @property
    def spacing_kji_mm(self) -> tuple[float, float, float]:
        """Of axes 0, 1, 2."""
        first, second, third = self.spacing_mm
        return (third, second, first) if self.spacing_reversed else self.spacing_mm


def seems_reversed(spacing_mm: Sequence[float], shape: Sequence[int]) -> bool:
    """Whether a challenge file's spacing is rather of axes 2, 1, 0 than of axes 0, 1, 2.

    The challenge's own scripts write what SimpleITK gives, (x, y, z), beside an array (z, y, x); others write
    the array's order, and nothing in the file tells. Only numbers of which the first two are alike and the
    third is not, as of slices (x, y), are ever taken for reversed: when axes 1 and 2 have equal counts and
    axis 0 another, or when the volume is then much less elongated.

    Args:
        spacing_mm: three positive numbers.
        shape: (K, J, I) of the image.

    Source: https://github.com/bowang-lab/MedSAM/blob/main/pre_CT_MR.py, `spacing=img_sitk.GetSpacing()`.
    """
    first, second, third = spacing_mm
    k, j, i = shape
    if not math.isclose(first, second, rel_tol=_ALIKE) or math.isclose(second, third, rel_tol=_ALIKE):
        return False
    if j == i != k:
        return True
    return _elongation(spacing_mm, shape) >= _CLEARLY * _elongation(spacing_mm[::-1], shape)


def _elongation(spacing_mm: Sequence[float], shape: Sequence[int]) -> float:
    sides_mm = [mm * n for mm, n in zip(spacing_mm, shape, strict=True)]
    return max(sides_mm) / min(sides_mm)


def read_case(
    path: str | os.PathLike[str],
    max_gb: float = MAX_GB,
    *,
    labels: bool = True,
    noted: Callable[[str], None] = lambda note: None,
) -> Case:
    """Reads a case; the image and the labels are checked, and no code in the file is run.

    Args:
        path: the .npz file.
        max_gb: refuse files that unpack to more.
        labels: read `gts` and `prev_pred` too; without, nothing in them can be wrong.
        noted: called with what was put right: a box that reached beyond the image.

    Raises:
        ValueError: names the file and what is wrong: not an archive, truncated, too large, a key missing, a
            wrong type or shape, prompts that are not plain numbers or are outside the image.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with _open(path, max_gb) as archive:
        image, spacing = archive.array("imgs"), archive.array("spacing")
        if spacing.shape != (3,) or spacing.dtype.kind not in "uif":
            raise ValueError(f"spacing must be three numbers (mm), got shape {spacing.shape} {spacing.dtype}")
        boxes, clicks = archive.objects("boxes"), archive.objects("clicks")
        first, second, third = spacing.tolist()
        case = Case(
            name=path.name.removesuffix(".npz"),
            image=_as_bytes(image),
            spacing_mm=(first, second, third),
            truth=archive.labels("gts") if labels and "gts" in archive else None,
            clicks=None if clicks is None else _read_clicks(clicks, archive.nested("clicks_order")),
            prev_pred=archive.labels("prev_pred") if labels and "prev_pred" in archive else None,
        )
        if "spacing_reversed" in archive:
            is_reversed = bool(archive.array("spacing_reversed").tolist())
        else:
            is_reversed = seems_reversed(case.spacing_mm, case.image.shape)
        return replace(
            case,
            boxes=None if boxes is None else _read_boxes(boxes, case.image.shape, noted),
            spacing_reversed=is_reversed,
        )


def _as_bytes(image: NDArray[Any]) -> NDArray[Any]:
    """Grey values as uint8 where it holds every one of them, else as they are: some tools write int64."""
    if image.dtype.kind not in "uif" or image.size == 0 or not (image.min() >= 0 and image.max() <= 255):
        return image
    rounded = image.astype(np.uint8, copy=False)
    return rounded if np.array_equal(rounded, image) else image


def read_labels(path: str | os.PathLike[str], key: str = "gts", max_gb: float = MAX_GB) -> LabelArray:
    """Reads one label map of an archive: the truth that a validation case keeps apart, or a result (`segs`).

    Returns:
        (K, J, I) in the smallest sufficient unsigned type.

    Raises:
        ValueError: as `read_case`.
        OSError: the file cannot be opened.
    """
    with _open(Path(path), max_gb) as archive:
        return archive.labels(key)


def write_segs(path: str | os.PathLike[str], segs: NDArray[Any]) -> None:
    """Writes the result of a prediction, whole or not at all.

    Args:
        path: the .npz file, named like the case.
        segs: (K, J, I) whole numbers, class c as c; stored in the smallest sufficient unsigned type.

    Raises:
        ValueError: not a label map.
        OSError: the file cannot be written.
    """
    _write(path, {"segs": as_labels(segs, "segs")})


def write_truth(path: str | os.PathLike[str], truth: NDArray[Any]) -> None:
    """Writes the truth of a case by itself (`gts`), as validation data has it; whole or not at all.

    Args:
        path: the .npz file, named like the case.
        truth: (K, J, I) whole numbers, class c as c.

    Raises:
        ValueError: not a label map.
        OSError: the file cannot be written.
    """
    _write(path, {"gts": as_labels(truth, "gts")})


def write_case(path: str | os.PathLike[str], case: Case) -> None:
    """Writes a case as the challenge does, whole or not at all; `case.name` is left to the file name.

    `spacing_reversed` is added only where `seems_reversed` would say otherwise.

    Raises:
        OSError: the file cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "imgs": case.image,
        "spacing": np.array(case.spacing_mm, dtype=np.float64),
    }
    if case.truth is not None:
        arrays["gts"] = case.truth
    if case.boxes is not None:
        arrays["boxes"] = _objects([None if box is None else _box_entry(box) for box in case.boxes])
    if case.clicks is not None:
        arrays["clicks"] = _objects([_clicks_entry(clicks) for clicks in case.clicks])
        arrays["clicks_order"] = _order_array(case.clicks)
    if case.prev_pred is not None:
        arrays["prev_pred"] = case.prev_pred
    if case.spacing_reversed != seems_reversed(case.spacing_mm, case.image.shape):
        arrays["spacing_reversed"] = np.array(case.spacing_reversed)
    _write(path, arrays)


class _Archive:
    """The arrays of an open .npz file, none larger than the zip directory and the limit allow."""

    def __init__(self, archive: zipfile.ZipFile, max_gb: float) -> None:
        self._archive = archive
        self._left_bytes = int(max_gb * 2**30)
        self._max_gb = max_gb
        self._members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def array(self, key: str) -> NDArray[Any]:
        """An array of numbers."""
        member = self._member(key)
        with self._archive.open(member) as stream:
            shape, dtype = _read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{key} must hold numbers, got {dtype}")
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{key} is damaged: its header promises shape {shape}, its data is shorter")
        with self._archive.open(member) as stream:
            array: NDArray[Any] = npy_format.read_array(stream, allow_pickle=False)
        return array

    def labels(self, key: str) -> LabelArray:
        """A label map."""
        return as_labels(self.array(key), key)

    def objects(self, key: str) -> list[Any] | None:
        """The elements of an object array, or None where there is no such key."""
        if key not in self:
            return None
        member = self._member(key)
        if member.file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"{key} has {member.file_size} bytes, more than prompts need")
        with self._archive.open(member) as stream:
            _, dtype = _read_header(stream)
            if not dtype.hasobject:
                raise ValueError(f"{key} must be an object array of one dict a class, got {dtype}")
            try:
                return load_plain(stream.read())
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error

    def nested(self, key: str) -> list[Any] | None:
        """The rows of a 2D array of strings or objects, or of an array of lists; None where there is none."""
        if key not in self:
            return None
        with self._archive.open(self._member(key)) as stream:
            _, dtype = _read_header(stream)
        return self.objects(key) if dtype.hasobject else self.array(key).tolist()

    def _member(self, key: str) -> zipfile.ZipInfo:
        if key not in self:
            raise ValueError(
                f"the key {key!r} is missing; the file has: {', '.join(self._members) or 'none'}"
            )
        member = self._members[key]
        self._left_bytes -= member.file_size
        if self._left_bytes < 0:
            raise ValueError(f"the file unpacks to more than {self._max_gb:g} GB; crop it, or raise max_gb")
        return member


@contextlib.contextmanager
def _open(path: Path, max_gb: float) -> Iterator[_Archive]:
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield _Archive(archive, max_gb)
        except _DAMAGE as error:
            raise ValueError(
                f"{path}: not a readable .npz file (empty, truncated or damaged); copy it again"
            ) from error
        # RuntimeError: encrypted, or packed in a way that zipfile does not know.
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ValueError(f"{path}: {error}") from error


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} is not known")
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _write(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Deflate at level 1: twice as fast as NumPy's own writer, and hardly larger for label maps."""
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                npy_format.write_array(stream, array, allow_pickle=array.dtype.hasobject)


def _objects(elements: list[Any]) -> NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _read_boxes(
    entries: list[Any], shape: Sequence[int], noted: Callable[[str], None]
) -> tuple[Box | None, ...]:
    """The boxes of all classes, each as far as it is in the image."""
    boxes = []
    for number, entry in enumerate(entries, start=1):
        given = _read_box(entry)
        inside = None if given is None else _clipped(given, shape)
        if inside != given:
            noted(f"the box of class {number} reaches beyond the image; what is inside is used")
        boxes.append(inside)
    return tuple(boxes)


def _clipped(box: Box, shape: Sequence[int]) -> Box:
    """A box without what is outside the image; one that is wholly outside stays as it is."""
    k, j, i = (max(low, 0) for low in box.min_kji)
    k_max, j_max, i_max = (min(high, n - 1) for high, n in zip(box.max_kji, shape, strict=True))
    if k > k_max or j > j_max or i > i_max:
        return box
    return Box((k, j, i), (k_max, j_max, i_max), None if box.mid_k is None else min(max(box.mid_k, k), k_max))


def _read_box(entry: Any) -> Box | None:
    if entry is None or entry == {}:
        return None
    names = ("z_min", "z_mid_y_min", "z_mid_x_min", "z_max", "z_mid_y_max", "z_mid_x_max")
    if not isinstance(entry, dict) or not all(name in entry for name in names):
        raise ValueError(f"boxes must be dicts with {', '.join(names)}, got {entry!r:.200}")
    k, j, i, k_max, j_max, i_max = (_whole(entry[name]) for name in names)
    k_mid = entry.get("z_mid")
    return Box((k, j, i), (k_max, j_max, i_max), None if k_mid is None else _whole(k_mid))


def _box_entry(box: Box) -> dict[str, int]:
    (k, j, i), (k_max, j_max, i_max) = box.min_kji, box.max_kji
    k_mid = (k + k_max) // 2 if box.mid_k is None else box.mid_k
    entry = {"z_min": k, "z_max": k_max, "z_mid": k_mid}
    return {**entry, "z_mid_x_min": i, "z_mid_y_min": j, "z_mid_x_max": i_max, "z_mid_y_max": j_max}


def _read_clicks(entries: list[Any], order: list[Any] | None) -> tuple[tuple[Click | None, ...], ...]:
    """The clicks of all classes, by `clicks_order` where the file has it, else positive ones first."""
    if order is not None and len(order) != len(entries):
        raise ValueError(f"clicks_order must have a row for each of {len(entries)} classes, got {len(order)}")
    rows = [_read_class(entry) for entry in entries]
    if order is None:
        return tuple((*row["fg"], *row["bg"]) for row in rows)
    return tuple(_in_order(row, kinds) for row, kinds in zip(rows, order))


def _read_class(entry: Any) -> dict[str, list[Click]]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), list) for key in KINDS):
        raise ValueError(f"clicks must be dicts with lists fg and bg, got {entry!r:.200}")
    clicks: dict[str, list[Click]] = {"fg": [], "bg": []}
    for key, several in clicks.items():
        for kji in entry[key]:
            if not isinstance(kji, (list, tuple)) or len(kji) != 3:
                raise ValueError(f"a click must be three array indices, got {kji!r:.200}")
            k, j, i = map(_whole, kji)
            several.append(Click((k, j, i), positive=key == "fg"))
    return clicks


def _in_order(clicks: dict[str, list[Click]], kinds: Any) -> tuple[Click | None, ...]:
    known = isinstance(kinds, list) and all(kind in (*KINDS, None) for kind in kinds)
    if not known or [kinds.count(key) for key in KINDS] != [len(clicks[key]) for key in KINDS]:
        counts = " and ".join(f"{len(clicks[key])} {key}" for key in KINDS)
        raise ValueError(f"clicks_order must list the {counts} clicks of its class, got {kinds!r:.200}")
    left = {key: iter(several) for key, several in clicks.items()}
    return tuple(next(left[kind]) if kind in KINDS else None for kind in kinds)


def _clicks_entry(clicks: tuple[Click | None, ...]) -> dict[str, list[list[int]]]:
    return {key: [list(c.kji) for c in clicks if c and c.positive is (key == "fg")] for key in KINDS}


def _order_array(clicks: tuple[tuple[Click | None, ...], ...]) -> NDArray[Any]:
    """(classes, rounds) where every class has as many rounds, as in the challenge; else an array of lists."""
    rows: list[list[str | None]] = [
        [None if click is None else KINDS[not click.positive] for click in row] for row in clicks
    ]
    even = {len(row) for row in rows}
    return np.array(rows, dtype=object) if len(even) == 1 and even != {0} else _objects(rows)


def _whole(value: Any) -> int:
    """Some writers store indices as floats."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise ValueError(f"voxel indices must be whole numbers, got {value!r:.200}")
