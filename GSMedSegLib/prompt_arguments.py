"""Clicks, boxes and masks as the command line says them: read in the order given, added to a ledger."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from GSMedSegLib.cropped import Cropped, Voxel, crop
from GSMedSegLib.geometry import FloatArray, nearest_voxel, ras_to_kji
from GSMedSegLib.prompts import Box, Click, ClickLedger, ObjectPrompts

if TYPE_CHECKING:
    from GSMedSegLib.volume_io import Volume

DEFAULT_OBJECT = "object"
"""What clicks are put on when no object is named."""

PLACES = {"--fg": 3, "--bg": 3, "--box": 6}
"""The options that take a place, and how many numbers that is."""

_FARTHEST = 1e9
"""No voxel index and no millimetre is beyond."""


@dataclass(frozen=True)
class MaskFile:
    """What --mask names.

    Attributes:
        path: of a label map.
        label: which of its labels; None takes its only one.
    """

    path: Path
    label: int | None

    def __str__(self) -> str:
        """As it was given."""
        return f"{self.path}" if self.label is None else f"{self.path}:{self.label}"


Given = tuple[str, str | MaskFile | tuple[float, ...]]
"""An option and its value: the name of an object, a mask, or numbers."""


class InOrder(argparse.Action):
    """Keeps options of several names in one list of `Given`, in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse at every such option."""
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), (option_string, values)])


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Declares --fg, --bg, --box, --mask and --object; the parsed arguments get the list `prompts` of all."""
    about = {
        "--fg": "click on the object: voxel i,j,k, or with --ras millimetres; may be repeated",
        "--bg": "click beside the object: what is not part of it",
        "--box": "two opposite corners of a box around the object; enough by itself with --strategy adaptive",
    }
    for option, text in about.items():
        names = ["i", "j", "k"] if PLACES[option] == 3 else ["i1", "j1", "k1", "i2", "j2", "k2"]
        parser.add_argument(
            option, action=InOrder, dest="prompts", type=_numbers(names), metavar=",".join(names), help=text
        )
    parser.add_argument(
        "--mask",
        action=InOrder,
        dest="prompts",
        type=_mask_file,
        metavar="FILE[:LABEL]",
        help="start from this label of a label map on the image's grid; the clicks that follow change it. "
        "A map with one label needs none",
    )
    parser.add_argument(
        "--object",
        action=InOrder,
        dest="prompts",
        metavar="NAME",
        help="what follows, up to the next --object, is on this one; without it there is one, named 'object'",
    )


def join_negative(arguments: Sequence[str]) -> list[str]:
    """Writes `--fg -10,5,3` as `--fg=-10,5,3`: argparse would take the number for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in (*PLACES, "--window") and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def add_prompts(ledger: ClickLedger, given: Sequence[Given], image: Volume, in_ras: bool) -> list[str]:
    """Adds what was given on the command line to a ledger.

    Args:
        ledger: gets the objects, clicks, boxes and masks. A mask stands for what its object had before.
        given: in the order of the command line.
        image: that they are on.
        in_ras: whether the numbers are millimetres (R, A, S) rather than voxel indices (i, j, k). A click
            then goes to the voxel it lies in, a box becomes the box of voxels around all its corners.

    Returns:
        the objects that were named or clicked on.

    Raises:
        ValueError: names the option or the mask's file and what is wrong: outside the image, fractions of
            voxels, no mask or one of another grid, or not clear on which object.
        OSError: a mask cannot be opened.
    """
    names = [cast(str, value) for option, value in given if option == "--object"]
    current: str | None = None
    for option, value in given:
        if isinstance(value, str):
            current = value
            if current not in ledger.objects:
                ledger.add_object(current)
            continue
        named = str(value) if isinstance(value, MaskFile) else ",".join(f"{number:g}" for number in value)
        text = f"{option} {named}"
        if current is None:
            current = _object_of(text, ledger, names)
        if isinstance(value, MaskFile):
            ledger.set_mask(current, _mask(value, image))
            continue
        try:
            if option == "--box":
                box = _box(value, image.ijk_to_ras, in_ras)
                _check_inside([box.min_kji, box.max_kji], ledger.shape)
                ledger.set_box(current, box)
            else:
                (kji,) = _voxels([value], image.ijk_to_ras, in_ras)
                _check_inside([kji], ledger.shape)
                ledger.add_click(current, Click(kji, positive=option == "--fg"))
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return list(dict.fromkeys([*names, *([current] if current else [])]))


def check_start(
    ledger: ClickLedger, wanted: Sequence[str], can_start: Callable[[ObjectPrompts], bool]
) -> None:
    """Raises when there is nothing to segment an object from.

    Args:
        ledger: with all prompts.
        wanted: the objects that were named or clicked on, from `add_prompts`.
        can_start: of the predictor. Background clicks are left out: they only say where the object is not.

    Raises:
        ValueError: such an object has nothing to start from, or no object has.
    """

    def starts(name: str) -> bool:
        prompts = ledger.prompts(name)
        return can_start(replace(prompts, clicks=tuple(click for click in prompts.clicks if click.positive)))

    lacking = [name for name in ledger.objects if not starts(name)]
    boxed = any(ledger.box(name) for name in lacking)
    advice = "; a box alone is enough with --strategy adaptive" if boxed else ""
    for name in wanted:
        if name in lacking:
            who = "there is" if name == DEFAULT_OBJECT else f"object {name!r} has"
            raise ValueError(f"{who} no foreground click; add --fg i,j,k, a voxel inside the object{advice}")
    if len(lacking) == len(ledger.objects):
        raise ValueError(
            "there is no click; add --fg i,j,k, a voxel inside the object, or --clicks LEDGER.json" + advice
        )


def _numbers(names: Sequence[str]) -> Any:
    """What argparse calls to read numbers separated by commas."""

    def read(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(names) or not all(math.isfinite(n) and abs(n) < _FARTHEST for n in numbers):
            raise argparse.ArgumentTypeError(
                f"expected {','.join(names)}: {len(names)} numbers, commas, no spaces; got {text!r}"
            )
        return numbers

    return read


def _mask_file(text: str) -> MaskFile:
    """FILE or FILE:LABEL; a colon that no number follows belongs to the name."""
    path, _, label = text.rpartition(":")
    return MaskFile(Path(path), int(label)) if path and label.isdecimal() else MaskFile(Path(text), None)


def _mask(file: MaskFile, image: Volume) -> Cropped:
    """The voxels of the label that was asked for."""
    from GSMedSegLib.volume_io import check_on_grid, read_labelmap  # a second that --help should not take

    labels = read_labelmap(file.path)
    check_on_grid(labels, image, file.path)
    found = [int(label) for label in np.unique(labels.array) if label]
    if not found:
        raise ValueError(f"{file.path} is empty: all its voxels are 0; give a mask with the object in it")
    label = found[0] if file.label is None and len(found) == 1 else file.label
    if label not in found:
        known = ", ".join(map(str, found[:10])) + (", …" if len(found) > 10 else "")
        raise ValueError(f"{file}: the map has the labels {known}; give one of them, {file.path}:{found[0]}")
    return crop(labels.array == label)


def _object_of(text: str, ledger: ClickLedger, names: Sequence[str]) -> str:
    """The object of a click that came before any --object."""
    if names:
        raise ValueError(f"{text} comes before the first --object; give --object NAME first, then its clicks")
    if len(ledger.objects) > 1:
        known = ", ".join(map(repr, ledger.objects))
        raise ValueError(
            f"{text}: the ledger has several objects ({known}); give --object NAME before the click"
        )
    if not ledger.objects:
        ledger.add_object(DEFAULT_OBJECT)
    return ledger.objects[0]


def _voxels(points: Sequence[Sequence[float]], ijk_to_ras: FloatArray, in_ras: bool) -> list[Voxel]:
    """Voxels (k, j, i) of points in millimetres, or in whole voxels (i, j, k)."""
    if in_ras:
        found = nearest_voxel(ras_to_kji(points, ijk_to_ras))
    elif any(not float(number).is_integer() for point in points for number in point):
        raise ValueError("voxel indices are whole numbers; for millimetres, add --ras")
    else:
        found = np.array(points, dtype=np.int64)[:, ::-1]
    return [(k, j, i) for k, j, i in found.tolist()]


def _check_inside(voxels_kji: Sequence[Voxel], shape: Voxel) -> None:
    """As `geometry.check_inside`, but with voxels named i,j,k, as they were given."""
    for kji in voxels_kji:
        if not all(0 <= index < size for index, size in zip(kji, shape)):
            i, j, k = kji[::-1]
            last = ", ".join(f"{axis} 0..{size - 1}" for axis, size in zip("ijk", shape[::-1]))
            raise ValueError(f"voxel i,j,k = {i},{j},{k} is outside the image; its indices are {last}")


def _box(numbers: Sequence[float], ijk_to_ras: FloatArray, in_ras: bool) -> Box:
    corners = _voxels(list(itertools.product(*zip(numbers[:3], numbers[3:]))), ijk_to_ras, in_ras)
    low, high = np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
