"""Challenge cases in a folder, segmented one after the other; a case that fails stops no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from GSMedSegLib.case_segmenter import prompts_of
from GSMedSegLib.challenge import Segmenter
from GSMedSegLib.npz import read_case, write_segs
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
        warnings: what reading it and the segmenter had to say.
        spacing_reversed: whether its spacing was taken in another order than that of the axes.
        error: why there is no result; None when it is written.
    """

    name: str
    classes: int = 0
    empty: tuple[int, ...] = ()
    unclicked: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    spacing_reversed: bool = False
    error: Exception | None = None


def find_cases(folder: str | os.PathLike[str]) -> list[Path]:
    """The case files in a folder, by name; hidden files are no cases. A link to nowhere is one that fails.

    Raises:
        ValueError: there is none.
        OSError: there is no such folder.
    """
    cases = sorted(
        p for p in Path(folder).iterdir() if p.suffix == SUFFIX and p.name[0] != "." and not p.is_dir()
    )
    if not cases:
        raise ValueError(f"{folder}: there is no {SUFFIX} case in this folder")
    return cases


def predict_cases(
    segmenter: Segmenter,
    cases: Sequence[Path],
    output: Path,
    *,
    save_nifti: bool = False,
    started: Callable[[Path], None] = lambda path: None,
) -> Iterator[Outcome]:
    """Segments cases and writes `segs` to a file of the same name each.

    Args:
        segmenter: answers them; what it has in an attribute `warnings` goes into the outcome.
        cases: the .npz files.
        output: an existing folder other than that of the cases.
        save_nifti: write CASE.nii.gz too: NIfTI axes 0, 1, 2 are the array's axes 0, 1, 2, as in the seed
            method, and the affine is their diag(spacing).
        started: called with every case before it is read.

    Yields:
        the outcome of every case, when it is there.
    """
    for path in cases:
        started(path)
        notes: list[str] = []
        name = path.name.removesuffix(SUFFIX)
        try:
            case = read_case(path, labels=False, noted=notes.append)
            labels = segmenter.segment(case)
            write_segs(output / path.name, labels)
            if save_nifti:
                write_labelmap(
                    output / f"{name}.nii.gz", labels.transpose(), np.diag([*case.spacing_kji_mm, 1.0])
                )
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            yield Outcome(name, error=error)
            continue
        prompts = prompts_of(case)
        present = set(np.unique(labels).tolist())
        empty = [n for n in range(1, len(prompts) + 1) if n not in present]
        yield Outcome(
            name,
            classes=len(prompts),
            empty=tuple(empty),
            unclicked=tuple(n for n in empty if not any(click.positive for click in prompts[n - 1][0])),
            warnings=(*notes, *getattr(segmenter, "warnings", ())),
            spacing_reversed=case.spacing_reversed,
        )
