"""Challenge cases in a folder, segmented one after the other; a case that fails stops no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, read_case, write_segs
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.volume_io import write_labelmap

SUFFIX = ".npz"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: file name without suffix.
        classes: how many the case has; 0 when it failed.
        empty: numbers of the classes (from 1) that came out without a voxel.
        unclicked: those of them that had no foreground click.
        error: why there is no result; None when it is written.
    """

    name: str
    classes: int = 0
    empty: tuple[int, ...] = ()
    unclicked: tuple[int, ...] = ()
    error: Exception | None = None


def find_cases(folder: str | os.PathLike[str]) -> list[Path]:
    """The case files in a folder, by name; hidden files are no cases.

    Raises:
        ValueError: there is none.
        OSError: there is no such folder.
    """
    cases = sorted(
        p for p in Path(folder).iterdir() if p.suffix == SUFFIX and p.name[0] != "." and p.is_file()
    )
    if not cases:
        raise ValueError(f"{folder}: there is no {SUFFIX} case in this folder")
    return cases


def segment_case(predictor: Predictor, case: Case) -> LabelArray:
    """Segments the classes of a case from its clicks, in class order.

    A class with nothing to start from stays empty: no click is made up. `prev_pred` is not needed:
    the case has the earlier clicks too.

    Returns:
        (K, J, I) labels, class c as c.

    Raises:
        ValueError: the case has neither clicks nor boxes, or a constant image.
    """
    clicks, boxes = case.clicks or (), case.boxes or ()
    if not clicks and not boxes:
        raise ValueError("the case has neither clicks nor boxes, so nothing says what to segment")
    k_mm, j_mm, i_mm = case.spacing_mm
    predictor.set_image(case.image, np.diag([i_mm, j_mm, k_mm, 1.0]))
    for index in range(max(len(clicks), len(boxes))):
        name = str(index + 1)
        predictor.add_object(name)
        box = boxes[index] if boxes else None
        if box is not None:
            predictor.set_box(name, box)
        for click in clicks[index] if clicks else ():
            if click is not None:
                predictor.add_click(name, click.kji, click.positive)
    return predictor.labels()


def predict_folder(
    predictor: Predictor,
    cases: Sequence[Path],
    output: Path,
    *,
    save_nifti: bool = False,
    started: Callable[[Path], None] = lambda path: None,
) -> Iterator[Outcome]:
    """Segments cases and writes `segs` to a file of the same name each.

    Args:
        predictor: any image it has is forgotten.
        cases: the .npz files.
        output: an existing folder other than that of the cases.
        save_nifti: write CASE.nii.gz too: NIfTI axes 0, 1, 2 are the array's axes 0, 1, 2, as in the seed
            method, and the affine is diag(spacing).
        started: called with every case before it is read.

    Yields:
        the outcome of every case, when it is there.
    """
    for path in cases:
        started(path)
        name = path.name.removesuffix(SUFFIX)
        try:
            case = read_case(path)
            labels = segment_case(predictor, case)
            write_segs(output / path.name, labels)
            if save_nifti:
                write_labelmap(
                    output / f"{name}.nii.gz", labels.transpose(), np.diag([*case.spacing_mm, 1.0])
                )
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            yield Outcome(name, error=error)
            continue
        numbers = range(1, len(predictor.objects) + 1)
        present = set(np.unique(labels).tolist())
        ledger = predictor.ledger
        yield Outcome(
            name,
            classes=len(numbers),
            empty=tuple(n for n in numbers if n not in present),
            unclicked=tuple(
                n for n in numbers if n not in present and not any(c.positive for c in ledger.clicks(str(n)))
            ),
        )
