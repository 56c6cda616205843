"""What a user points at: clicks, boxes and masks to start from, and the ledger that remembers them in order.

The ledger is the record from which a segmentation can be made again: saved as JSON, replayed without a
window. It knows nothing of networks; a predictor reads the prompts of each object from it.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.cropped import Cropped, Voxel, crop, from_text, to_text
from GSMedSegLib.geometry import (
    FloatArray,
    as_ijk_to_ras,
    check_inside,
    flip_grid,
    flip_voxel,
    flipped_axes,
    grid_distance_mm,
    kji_to_ras,
    ras_to_kji,
    spacing_kji_mm,
)

FORMAT = "gsmedseg-clicks"
VERSION = 1

_SAME_GRID_VOXELS = 0.01


@dataclass(frozen=True)
class Click:
    """A voxel that the user says is in the object (positive) or not.

    Attributes:
        kji: array index (k, j, i); any integer type is taken and kept as int.
        positive: True for foreground.

    Raises:
        ValueError: `kji` is not three integers.
    """

    kji: Voxel
    positive: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "kji", _as_voxel(self.kji, "a click"))
        if not isinstance(self.positive, (bool, np.bool_)):
            raise ValueError(f"a click is positive (True) or negative (False), got {self.positive!r}")
        object.__setattr__(self, "positive", bool(self.positive))


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of voxels around an object, both corners inside it.

    Attributes:
        min_kji: lowest corner (k, j, i), inclusive.
        max_kji: highest corner, inclusive.
        mid_k: the slice on which the in-plane extent was drawn, if it was drawn on one.

    Raises:
        ValueError: corners that are not three integers or the wrong way round, `mid_k` outside the box.
    """

    min_kji: Voxel
    max_kji: Voxel
    mid_k: int | None = None

    def __post_init__(self) -> None:
        low, high = _as_voxel(self.min_kji, "a box corner"), _as_voxel(self.max_kji, "a box corner")
        object.__setattr__(self, "min_kji", low)
        object.__setattr__(self, "max_kji", high)
        if any(a > b for a, b in zip(low, high)):
            raise ValueError(f"a box goes from its lowest to its highest corner, got {low}, {high}")
        if self.mid_k is not None:
            if self.mid_k not in range(low[0], high[0] + 1):
                raise ValueError(f"mid_k is a slice of the box, {low[0]}..{high[0]}, got {self.mid_k!r}")
            object.__setattr__(self, "mid_k", int(self.mid_k))


@dataclass(frozen=True)
class ObjectPrompts:
    """All that was said of one object; a mask follows from it and the image alone.

    Attributes:
        clicks: oldest first.
        box: around the object, or None.
        mask: what it starts from, or None.
    """

    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    mask: Cropped | None = None

    def check_image(self, shape: Sequence[int]) -> None:
        """Raises ValueError when something lies outside an image of shape (K, J, I)."""
        check_inside(np.array([click.kji for click in self.clicks]).reshape(-1, 3), shape)
        if self.box is not None:
            check_inside([self.box.min_kji, self.box.max_kji], shape)
        if self.mask is not None and tuple(self.mask.shape) != tuple(shape):
            raise ValueError(f"the image has shape {tuple(shape)}, the mask has {tuple(self.mask.shape)}")


@dataclass(frozen=True)
class _Event:
    """One step: a prompt on an object, or a clearing (prompt None); of all objects when the name is None.

    A mask stands for all that was said of its object before.
    """

    object_name: str | None
    prompt: Click | Box | Cropped | None


class ClickLedger:
    """The ordered history of prompts on several named objects of one image, with unlimited undo and redo.

    Objects are declared, prompts are history: `undo` takes back the last click, box, mask or clearing,
    whichever object it was on, and never an object.

    Args:
        shape: (K, J, I) of the image.
        ijk_to_ras: (4, 4), mm; when given, the file has the clicks in millimetres too.

    Raises:
        ValueError: not a 3D shape, or a bad matrix.
    """

    def __init__(self, shape: Sequence[int], ijk_to_ras: ArrayLike | None = None) -> None:
        self._shape = _as_voxel(shape, "the shape of an image")
        if min(self._shape) < 1:
            raise ValueError(f"an image has at least one voxel along each axis, got shape {self._shape}")
        self._ijk_to_ras = None if ijk_to_ras is None else as_ijk_to_ras(ijk_to_ras)
        self._objects: list[str] = []
        self._done: list[_Event] = []
        self._undone: list[_Event] = []

    @property
    def shape(self) -> Voxel:
        """(K, J, I) of the image."""
        return self._shape

    @property
    def ijk_to_ras(self) -> FloatArray | None:
        """(4, 4), or None when the ledger knows voxels only."""
        return None if self._ijk_to_ras is None else self._ijk_to_ras.copy()

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects in the order they were added."""
        return tuple(self._objects)

    def add_object(self, name: str) -> None:
        """Declares an object to put prompts on.

        Raises:
            ValueError: an empty name, or one that is taken.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"an object needs a name, got {name!r}")
        if name in self._objects:
            raise ValueError(f"there is an object {name!r} already; click on it, or choose another name")
        self._objects.append(name)

    def add_click(self, object_name: str, click: Click) -> None:
        """Adds a click; what had been undone can no longer be redone.

        Raises:
            ValueError: unknown object, or a click outside the image.
        """
        check_inside(click.kji, self._shape)
        self._record(_Event(self._known(object_name), click))

    def set_box(self, object_name: str, box: Box) -> None:
        """Sets the box of an object, in place of the one it had.

        Raises:
            ValueError: unknown object, or a corner outside the image.
        """
        check_inside([box.min_kji, box.max_kji], self._shape)
        self._record(_Event(self._known(object_name), box))

    def set_mask(self, object_name: str, mask: Cropped) -> None:
        """Starts an object from a mask, which stands for all clicks and the box it had before.

        Args:
            object_name: an object added before.
            mask: bool, of the image's shape; may be empty.

        Raises:
            ValueError: unknown object, not a mask, or one of another image.
        """
        if mask.array.dtype != np.bool_:
            raise ValueError(f"a mask to start from is bool, got {mask.array.dtype}")
        if tuple(mask.shape) != self._shape:
            raise ValueError(f"the image has shape {self._shape}, the mask has {tuple(mask.shape)}")
        self._record(_Event(self._known(object_name), mask))

    def clear(self, object_name: str | None = None) -> None:
        """Takes the prompts off one object, or off all; can be undone. Without prompts, nothing is recorded.

        Raises:
            ValueError: unknown object.
        """
        names = self.objects if object_name is None else (self._known(object_name),)
        if any(self._prompts(name) for name in names):
            self._record(_Event(object_name, None))

    def undo(self) -> bool:
        """Takes back the last click, box, mask or clearing. Returns False when there is none."""
        if not self._done:
            return False
        self._undone.append(self._done.pop())
        return True

    def redo(self) -> bool:
        """Brings back what `undo` took last. Returns False when there is nothing."""
        if not self._undone:
            return False
        self._done.append(self._undone.pop())
        return True

    def prompts(self, object_name: str) -> ObjectPrompts:
        """All that holds of an object.

        Raises:
            ValueError: unknown object.
        """
        prompts = self._prompts(self._known(object_name))
        boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
        return ObjectPrompts(
            tuple(prompt for prompt in prompts if isinstance(prompt, Click)),
            boxes[-1] if boxes else None,
            prompts[0] if prompts and isinstance(prompts[0], Cropped) else None,
        )

    def clicks(self, object_name: str) -> tuple[Click, ...]:
        """The clicks on an object, oldest first; empty when there are none. As `prompts` has them."""
        return self.prompts(object_name).clicks

    def box(self, object_name: str) -> Box | None:
        """The box of an object, or None. As `prompts` has it."""
        return self.prompts(object_name).box

    def last_object(self) -> str | None:
        """The object of the step that `undo` would take back; None for one on all objects, or for none."""
        return self._done[-1].object_name if self._done else None

    def has_steps(self, object_name: str) -> bool:
        """Whether any step is about an object, or about all, taken back ones aside."""
        return any(event.object_name in (object_name, None) for event in self._done)

    def next_object(self) -> str | None:
        """The object of the step that `redo` would bring back; None for one on all objects, or for none."""
        return self._undone[-1].object_name if self._undone else None

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to bring back."""
        return bool(self._undone)

    def check_image(self, shape: Sequence[int], ijk_to_ras: ArrayLike | None = None) -> None:
        """Raises when the ledger was made on another grid than this one: its clicks would land elsewhere.

        Args:
            shape: (K, J, I) of the image.
            ijk_to_ras: (4, 4); compared to a hundredth of a voxel where the ledger has one too.

        Raises:
            ValueError: the grids differ.
        """
        if tuple(shape) != self._shape:
            raise ValueError(
                f"the clicks were made on an image of shape {self._shape}, this one has {tuple(shape)}; "
                "give the image they were made on"
            )
        if ijk_to_ras is None or self._ijk_to_ras is None:
            return
        offset_mm = grid_distance_mm(ijk_to_ras, self._ijk_to_ras, self._shape)
        if offset_mm > _SAME_GRID_VOXELS * min(spacing_kji_mm(self._ijk_to_ras)):
            raise ValueError(
                "the clicks were made on an image with another position, spacing or orientation; "
                "give the image they were made on"
            )

    def flips(self, shape: Sequence[int], ijk_to_ras: ArrayLike) -> tuple[int, ...]:
        """The axes along which an image's array is to be flipped, for the clicks to be on the right voxels.

        Programs keep the voxels of one file in different orders: Slicer turns a left-handed one right-handed.

        Args:
            shape: (K, J, I) of the image.
            ijk_to_ras: (4, 4), mm.

        Returns:
            as `np.flip` and `flipped` take them; none where the grids are the same.

        Raises:
            ValueError: the grids differ in more than that; see `check_image`.
        """
        axes = () if self._ijk_to_ras is None else flipped_axes(ijk_to_ras, self._ijk_to_ras)
        self.check_image(shape, flip_grid(ijk_to_ras, shape, axes))
        return axes

    def flipped(self, axes: tuple[int, ...]) -> ClickLedger:
        """A copy for the same image with its array flipped along some axes."""
        matrix = None if self._ijk_to_ras is None else flip_grid(self._ijk_to_ras, self._shape, axes)
        other = ClickLedger(self._shape, matrix)
        other._objects = list(self._objects)
        other._done, other._undone = (
            [replace(step, prompt=_flipped(step.prompt, self._shape, axes)) for step in steps]
            for steps in (self._done, self._undone)
        )
        return other

    def moved(self, ijk_to_ras: ArrayLike) -> ClickLedger:
        """A copy for the same voxels in another place; what had been undone is left out.

        Args:
            ijk_to_ras: (4, 4), mm.

        Raises:
            ValueError: a bad matrix.
        """
        other = ClickLedger(self._shape, ijk_to_ras)
        other._objects, other._done = list(self._objects), list(self._done)
        return other

    def renamed(self, names: Mapping[str, str]) -> ClickLedger:
        """A copy with other names of the objects; what had been undone is left out.

        Args:
            names: new names by the old ones; who is not in it keeps its name.

        Raises:
            ValueError: two objects would have one name, or an empty one.
        """
        other = ClickLedger(self._shape, self._ijk_to_ras)
        for name in self._objects:
            other.add_object(names.get(name, name))
        for step in self._done:
            old = step.object_name
            other._done.append(step if old is None else replace(step, object_name=names.get(old, old)))
        return other

    def to_json(self) -> str:
        """The ledger as JSON, one event a line. What has been undone is left out."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "shape": list(self._shape),
            "ijk_to_ras": None if self._ijk_to_ras is None else self._ijk_to_ras.tolist(),
            "objects": self._objects,
        }
        lines = [f'  "{key}": {json.dumps(value, ensure_ascii=False)},' for key, value in header.items()]
        events = [json.dumps(self._event_to_dict(event), ensure_ascii=False) for event in self._done]
        listed = "\n    " + ",\n    ".join(events) + "\n  " if events else ""
        return "\n".join(["{", *lines, f'  "events": [{listed}]', "}", ""])

    @classmethod
    def from_json(cls, text: str) -> ClickLedger:
        """The ledger that `to_json` wrote, or one written by hand in the same form.

        Raises:
            ValueError: not such a ledger; tells which entry is wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a click ledger: not valid JSON ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'not a click ledger: expected a JSON object with "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise ValueError(
                f"this GSMedSeg reads click ledgers of version {VERSION}, got {data.get('version')!r}; "
                "update GSMedSeg"
            )
        ledger = cls(_get(data, "shape", list), data.get("ijk_to_ras"))
        for name in _get(data, "objects", list):
            ledger.add_object(name)
        for number, event in enumerate(_get(data, "events", list), start=1):
            try:
                ledger._replay(event)
            except ValueError as error:
                raise ValueError(f"event {number} of the click ledger: {error}") from error
        return ledger

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClickLedger:
        """Reads what `save` wrote.

        Raises:
            ValueError: names the file and what is wrong with it.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_json(Path(path).read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a click ledger: not UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _known(self, name: str) -> str:
        if name not in self._objects:
            known = ", ".join(map(repr, self._objects)) or "none yet"
            raise ValueError(f"no object {name!r}; the objects are: {known}; add it with add_object first")
        return name

    def _record(self, event: _Event) -> None:
        self._done.append(event)
        self._undone.clear()

    def _prompts(self, name: str) -> list[Click | Box | Cropped]:
        prompts: list[Click | Box | Cropped] = []
        for event in self._done:
            if event.object_name not in (name, None):
                continue
            if event.prompt is None or isinstance(event.prompt, Cropped):
                prompts.clear()
            if event.prompt is not None:
                prompts.append(event.prompt)
        return prompts

    def _event_to_dict(self, event: _Event) -> dict[str, Any]:
        if isinstance(event.prompt, Click):
            click = event.prompt
            entry = {
                "event": "click",
                "object": event.object_name,
                "kji": click.kji,
                "positive": click.positive,
            }
            if self._ijk_to_ras is not None:
                entry["ras"] = kji_to_ras([click.kji], self._ijk_to_ras)[0].tolist()
            return entry
        if isinstance(event.prompt, Box):
            box = event.prompt
            entry = {
                "event": "box",
                "object": event.object_name,
                "min_kji": box.min_kji,
                "max_kji": box.max_kji,
            }
            return entry if box.mid_k is None else {**entry, "mid_k": box.mid_k}
        if isinstance(event.prompt, Cropped):
            return {"event": "mask", "object": event.object_name, **to_text(event.prompt)}
        return {"event": "clear", "object": event.object_name}

    def _replay(self, entry: Any) -> None:
        kind = _get(entry, "event", str)
        if kind == "click":
            click = Click(_get(entry, "kji", list), _get(entry, "positive", bool))
            self._check_ras(click, entry.get("ras"))
            self.add_click(_get(entry, "object", str), click)
        elif kind == "box":
            mid_k = _get(entry, "mid_k", int) if "mid_k" in entry else None
            box = Box(_get(entry, "min_kji", list), _get(entry, "max_kji", list), mid_k)
            self.set_box(_get(entry, "object", str), box)
        elif kind == "mask":
            self.set_mask(_get(entry, "object", str), from_text(entry, self._shape))
        elif kind == "clear":
            self.clear(None if entry.get("object") is None else _get(entry, "object", str))
        else:
            raise ValueError(f"an event is a click, box, mask or clear, got {kind!r}")

    def _check_ras(self, click: Click, ras: Any) -> None:
        """A position written by hand may be anywhere in the voxel, but not in another one."""
        if ras is None or self._ijk_to_ras is None:
            return
        try:
            offset = ras_to_kji([ras], self._ijk_to_ras)[0] - click.kji
        except (TypeError, ValueError) as error:
            raise ValueError(f"ras must be three millimetre positions, got {ras!r}") from error
        if not np.abs(offset).max() <= 0.501:
            raise ValueError(f"ras {ras} is not in voxel {click.kji}; correct one of them, or leave ras out")


def _flipped(
    prompt: Click | Box | Cropped | None, shape: Voxel, axes: tuple[int, ...]
) -> Click | Box | Cropped | None:
    """What says the same of an image of some shape after its array was flipped."""
    if isinstance(prompt, Click):
        return Click(flip_voxel(prompt.kji, shape, axes), prompt.positive)
    if isinstance(prompt, Box):
        corners = [flip_voxel(kji, shape, axes) for kji in (prompt.min_kji, prompt.max_kji)]
        mid_k = None if prompt.mid_k is None else flip_voxel((prompt.mid_k, 0, 0), shape, axes)[0]
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        return Box(_as_voxel(low, "a box corner"), _as_voxel(high, "a box corner"), mid_k)
    if isinstance(prompt, Cropped):
        inside = enumerate(zip(prompt.box, shape))
        k, j, i = (n - one.stop if axis in axes else one.start for axis, (one, n) in inside)
        return crop(np.flip(prompt.array, axes), shape, (k, j, i))
    return None


def _as_voxel(values: Any, what: str) -> Voxel:
    try:
        a, b, c = (operator.index(value) for value in values if not isinstance(value, bool))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is three whole numbers in (k, j, i) order, got {values!r}") from error
    return a, b, c


def _get(data: Any, key: str, kind: type) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {data!r}")
    if key not in data:
        raise ValueError(f'"{key}" is missing')
    if not isinstance(data[key], kind):
        raise ValueError(f'"{key}" must be of type {kind.__name__}, got {data[key]!r}')
    return data[key]
