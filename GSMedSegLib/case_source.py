"""Where labelled cases come from: challenge files, or images with label maps."""

from __future__ import annotations

import functools
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from GSMedSegLib.intensity import to_grey
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, read_case, read_labels
from GSMedSegLib.prompts import Box
from GSMedSegLib.text_files import read_text
from GSMedSegLib.volume_io import READ_SUFFIXES, check_on_grid, read_labelmap, read_volume

SMALLEST_OBJECT = 100
"""Voxels; where only some objects of a case are taken, smaller ones, mostly cut pieces, are left out."""

CLASS_NAMES = "classes.json"
"""Beside challenge files: {case: [name of each class]}."""

MODALITY_NAMES = "modalities.json"
"""Beside challenge files whose names do not say it: {case: modality}."""

BOX_SHIFTS = 6
"""A box is enlarged by 0 to 5 parts in 256 of the image's side. Source: the challenge's get_boxes.py."""

MODALITIES = {
    "ct": "CT",
    "mr": "MRI",
    "mri": "MRI",
    "pet": "PET",
    "us": "Ultrasound",
    "ultrasound": "Ultrasound",
    "microscopy": "Microscopy",
    "microscope": "Microscopy",
    "em": "Microscopy",
}
"""By the beginning of a challenge file's name, in small letters."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class LabelledCase:
    """A case and what its classes are called.

    Attributes:
        case: with truth.
        classes: a name for each label of the truth, in rising order; empty where no names are known.
    """

    case: Case
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseSource:
    """A case that can be read.

    Attributes:
        name: unlike that of any other case.
        modality: CT, MRI, PET, Ultrasound, Microscopy, … or unknown.
        files: that it is read from.
        load: reads it; raises ValueError or OSError as `npz.read_case` and `volume_io.read_volume` do.
        patient: whose it is: what its `labels.json` calls `group`, else its name.
        reading: names the `Reading` and the class names that `load` goes by: with others the same files give
            another case.
    """

    name: str
    modality: str
    files: tuple[Path, ...]
    load: Callable[[], LabelledCase]
    patient: str = ""
    reading: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)

    @property
    def nbytes(self) -> int:
        """Of its files that are there."""
        return sum(file.stat().st_size for file in self.files if file.exists())


@dataclass(frozen=True)
class Reading:
    """How images and label maps become cases.

    Attributes:
        objects: take at most so many labels of a case, see `choose_labels`, without the clicks and earlier
            labels that a challenge file may hold; None for all.
        window: grey values that become 0 and 255; None for `GREY_PERCENTILES`. Challenge files have their
            grey values already.
    """

    objects: int | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.objects is not None and self.objects < 1:
            raise ValueError(f"at least one object per case is needed, got {self.objects}")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise ValueError(f"a window goes from a lower to a higher grey value, got {self.window}")


def find_sources(
    data: Path, *, truth: Path | None = None, modality: str = "", reading: Reading | None = None
) -> list[CaseSource]:
    """The labelled cases in a folder, by name; or those that a text file lists, one path a line.

    A list names challenge files or folders, relative to itself. A folder may hold challenge files (`*.npz`);
    folders, however deep, with `image` and `label` (and `labels.json` with `modality` and `labels`); or a
    folder `images…` beside a folder `labels…` with files of the same names (`_0000` at the end of an image's
    is ignored). Suffixes as `volume_io.READ_SUFFIXES`.

    Args:
        data: the folder or the list (`.txt`).
        truth: a folder with the `gts` of challenge files, where they are kept apart.
        modality: of all cases; by default what the file's name or `labels.json` says.
        reading: how they are read.

    Raises:
        ValueError: no case, an image without labels, or labels without image.
        OSError: no such folder.
    """
    reading = reading or Reading()
    if data.suffix == ".txt" and data.is_file():
        found = [source for entry in _listed(data) for source in _sources_at(entry, truth, reading)]
    else:
        found = _sources_at(data, truth, reading)
    if not found:
        raise ValueError(
            f"{data}: no labelled case; expected .npz challenge files, CASE folders with image and label "
            f"({', '.join(READ_SUFFIXES)}), or folders images and labels with files of the same names"
        )
    if modality:
        found = [replace(source, modality=modality) for source in found]
    twice = [name for name, count in Counter(source.name for source in found).items() if count > 1]
    if twice:
        raise ValueError(f"{data}: several cases are called {', '.join(sorted(twice)[:5])}; rename them")
    return sorted(found, key=lambda source: source.name)


def read_class_names(folder: Path) -> dict[str, list[str]]:
    """What `CLASS_NAMES` says in a folder of challenge files; empty where there is no such file.

    Raises:
        ValueError: the file does not hold lists of names by case.
    """
    file = folder / CLASS_NAMES
    names = _read_json(file)
    lists = list(names.values()) if isinstance(names, dict) else [None]
    if not all(isinstance(several, list) and all(isinstance(n, str) for n in several) for several in lists):
        raise ValueError(f'{file}: expected {{case: ["name of class 1", …]}}; correct it, or remove it')
    return dict(names)


def read_modalities(folder: Path) -> dict[str, str]:
    """What `MODALITY_NAMES` says in a folder of challenge files; empty where there is no such file.

    Raises:
        ValueError: the file does not hold names by case.
    """
    file = folder / MODALITY_NAMES
    names = _read_json(file)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{file}: expected {{case: "CT"}}; correct it, or remove it')
    return names


def modality_in(name: str) -> str:
    """What the beginning of a challenge file's name says."""
    return MODALITIES.get(name.split("_")[0].lower(), UNKNOWN)


def choose_labels(labels: LabelArray, count: int) -> list[int]:
    """Up to `count` labels of at least `SMALLEST_OBJECT` voxels, evenly spaced by rank of size.

    Args:
        labels: (K, J, I).
        count: 1 or more.

    Returns:
        Smallest first; all of them where there are no more than `count`.
    """
    values, voxels = np.unique(labels[labels > 0], return_counts=True)
    large = [(int(n), int(v)) for v, n in zip(values, voxels, strict=True) if n >= SMALLEST_OBJECT]
    ranked = [value for _, value in sorted(large)]
    if len(ranked) <= count:
        return ranked
    return [ranked[round(n)] for n in np.linspace(0, len(ranked) - 1, count)]


def box_of(mask: NDArray[np.bool_], rng: np.random.Generator) -> Box:
    """The box that the challenge draws around an object.

    It spans the object's slices; in-plane it is the object's extent in the middle one of them, enlarged a
    little.

    Args:
        mask: (K, J, I), not empty.
        rng: draws how much it is enlarged.

    Source: the challenge's get_boxes.py (github.com/JunMa11/CVPR-MedSegFMCompetition).
    """
    slices = np.flatnonzero(mask.any((1, 2)))
    middle = int(slices[len(slices) // 2])
    shift = int(rng.integers(BOX_SHIFTS))
    sides = []
    for axis in (1, 0):
        within = np.flatnonzero(mask[middle].any(axis))
        size = mask.shape[2 - axis]
        more = shift * size // 256
        sides.append((max(0, int(within[0]) - more), min(size - 1, int(within[-1]) + more)))
    (j, j_max), (i, i_max) = sides
    return Box((int(slices[0]), j, i), (int(slices[-1]), j_max, i_max), middle)


def with_boxes(case: Case) -> Case:
    """A case with a box for each label of its truth, always the same for a case of this name.

    Raises:
        ValueError: no truth, or an empty one.
    """
    if case.truth is None or not case.truth.any():
        raise ValueError(f"case {case.name} has no labels to draw boxes around")
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    labels = [value for value in np.unique(case.truth) if value]
    return replace(case, boxes=tuple(box_of(case.truth == label, rng) for label in labels))


def _listed(file: Path) -> Iterator[Path]:
    """The paths in a list; empty lines and those that begin with # say nothing."""
    for line in read_text(file).splitlines():
        if line.strip() and not line.startswith("#"):
            entry = file.parent / line.strip()
            if not entry.is_dir() and not (entry.is_file() and entry.suffix == ".npz"):
                wrong = "is neither a folder nor a .npz file" if entry.exists() else "does not exist"
                raise ValueError(f"{file} lists {line.strip()}, which {wrong}; correct the list")
            yield entry


def _sources_at(data: Path, truth: Path | None, reading: Reading) -> list[CaseSource]:
    """What a folder holds, or a single challenge file."""
    if data.is_file():
        return list(_challenge_files([data], truth, reading))
    return list(_challenge_files(sorted(data.iterdir()), truth, reading)) or [
        *_case_folders(data, reading),
        *_pairs(data, reading),
    ]


def _challenge_files(
    candidates: Iterable[Path], truth: Path | None, reading: Reading
) -> Iterator[CaseSource]:
    names: dict[Path, dict[str, list[str]]] = {}
    modalities: dict[Path, dict[str, str]] = {}
    for file in candidates:
        if file.suffix != ".npz" or file.name.startswith("."):
            continue
        if file.parent not in names:
            names[file.parent] = read_class_names(file.parent)
            modalities[file.parent] = read_modalities(file.parent)
        classes = tuple(names[file.parent].get(file.stem, ()))
        files = (file,) if truth is None else (file, truth / file.name)
        if not files[-1].exists() and truth is not None:
            raise ValueError(f"{file} has no truth: {files[-1]} does not exist; give its folder as --truth")
        modality = modalities[file.parent].get(file.stem) or modality_in(file.stem)
        load = functools.partial(_load_npz, files, classes, reading)
        yield CaseSource(file.stem, modality, files, load, reading=f"{reading} {classes}")


def _case_folders(data: Path, reading: Reading) -> Iterator[CaseSource]:
    for folder in _folders_with(("image", "label"), data):
        files = _volumes(file for file in folder.iterdir() if _stem(file) in ("image", "label"))
        if len(files) < 2:
            have, lack = ("image", "label") if "image" in files else ("label", "image")
            raise ValueError(f"{folder} has an {have} but no {lack}; add it, or move the folder away")
        about = _about(folder / "labels.json")
        name = "_".join(folder.relative_to(data).parts) or folder.resolve().name
        pair = (files["image"], files["label"])
        names = about.get("labels", {})
        load = functools.partial(_load_pair, name, pair, names, reading)
        patient = str(about.get("group") or name)
        yield CaseSource(
            name, about.get("modality") or UNKNOWN, pair, load, patient, reading=f"{reading} {names}"
        )


def _pairs(data: Path, reading: Reading) -> Iterator[CaseSource]:
    folders = sorted(p for p in data.glob("images*") if p.is_dir())
    beside = {images: images.with_name(images.name.replace("images", "labels", 1)) for images in folders}
    if folders and not any(labels.is_dir() for labels in beside.values()):
        raise ValueError(
            f"{folders[0]} has no folder {beside[folders[0]].name} beside it with the label maps"
        )
    for images, labels in beside.items():
        if not labels.is_dir():
            continue  # test images, whose labels are kept apart
        ours, theirs = _volumes(images.iterdir(), "_0000"), _volumes(labels.iterdir())
        alone = sorted(ours.keys() ^ theirs.keys())
        if alone:
            raise ValueError(
                f"{images} and {labels} must have files of the same names; without partner: "
                f"{', '.join(alone[:5])}{' …' if len(alone) > 5 else ''}"
            )
        for name, image in ours.items():
            pair = (image, theirs[name])
            load = functools.partial(_load_pair, name, pair, {}, reading)
            yield CaseSource(name, UNKNOWN, pair, load, reading=str(reading))


def _load_npz(files: tuple[Path, ...], classes: tuple[str, ...], reading: Reading) -> LabelledCase:
    case = read_case(files[0])
    if len(files) > 1:
        case = replace(case, truth=read_labels(files[1]))
    if case.truth is None:
        raise ValueError(f"{files[0]}: there is no truth (gts) in it; give the folder that has it as --truth")
    numbers = [int(value) for value in np.unique(case.truth) if value]
    names = dict(zip(numbers, classes, strict=True)) if len(classes) == len(numbers) else {}
    if case.boxes and len(case.boxes) != len(numbers):
        raise ValueError(f"{files[0]}: {len(case.boxes)} boxes for {len(numbers)} classes")
    boxes = dict(zip(numbers, case.boxes, strict=True)) if case.boxes else {}
    truth, kept = _kept(case.truth, reading)
    if reading.objects is not None:  # clicks and earlier labels are of all classes
        case = replace(case, clicks=None, prev_pred=None)
    return LabelledCase(
        replace(case, truth=truth, boxes=tuple(boxes[n] for n in kept) if boxes else None),
        tuple(names[n] for n in kept) if names else (),
    )


def _load_pair(name: str, pair: tuple[Path, Path], names: dict[str, str], reading: Reading) -> LabelledCase:
    image, labels = read_volume(pair[0]), read_labelmap(pair[1])
    check_on_grid(labels, image, pair[1])
    truth, kept = _kept(labels.array, reading)
    case = Case(name, _grey(image.array, reading.window, pair[0]), image.spacing_kji_mm, truth)
    return LabelledCase(case, tuple(str(names.get(str(n), n)) for n in kept))


def _kept(labels: LabelArray, reading: Reading) -> tuple[LabelArray, list[int]]:
    """The labels that are to be taken, the others being 0, and their numbers in rising order."""
    if reading.objects is None:
        return labels, [int(value) for value in np.unique(labels) if value]
    kept = sorted(choose_labels(labels, reading.objects))
    return np.where(np.isin(labels, kept), labels, 0), kept


def _read_json(file: Path) -> Any:
    """What a file holds; an empty dictionary where there is none."""
    if not file.exists():
        return {}
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None


def _about(file: Path) -> dict[str, Any]:
    about = _read_json(file)
    if not isinstance(about, dict) or not isinstance(about.get("labels", {}), dict):
        raise ValueError(f'{file}: expected {{"modality": …, "labels": {{"1": name, …}}}}')
    return about


def _folders_with(stems: Sequence[str], data: Path) -> list[Path]:
    """Folders with a volume of such a name, however deep, also where links lead; each once."""
    found, seen = [], set[Path]()
    for name, folders, files in os.walk(data, followlinks=True):
        folder = Path(name)
        if folder.resolve() in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(folder.resolve())
        if any(_stem(Path(file)) in stems for file in files):
            found.append(folder)
    return sorted(found)


def _volumes(files: Iterable[Path], ending: str = "") -> dict[str, Path]:
    """The volumes among the files of a folder by their names without suffix, and without an ending.

    Raises:
        ValueError: two have the same name.
    """
    found = dict[str, Path]()
    for path in sorted(files):
        stem = _stem(path).removesuffix(ending)
        if stem in found:
            raise ValueError(f"{found[stem]} and {path.name} are the same volume; move one of them away")
        if stem:
            found[stem] = path
    return found


def _stem(path: Path) -> str:
    """A volume's file name without its suffix; empty for other and hidden files."""
    name = path.name.lower()
    suffix = next((s for s in sorted(READ_SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")
    return path.name[: -len(suffix)] if suffix and not name.startswith(".") else ""


def _grey(image: NDArray[Any], window: tuple[float, float] | None, path: Path) -> NDArray[np.uint8]:
    try:
        grey = to_grey(image, window)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if window and grey.min() == grey.max():
        raise ValueError(
            f"{path}: the window {window[0]:g} to {window[1]:g} shows nothing of it; its grey values go from "
            f"{image.min():g} to {image.max():g}"
        )
    return grey
