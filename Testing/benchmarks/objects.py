"""The objects of the development set, each as a case of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from GSMedSegLib.case_source import CaseSource, LabelledCase, Reading, find_sources

OBJECTS_PER_CASE = 4
"""Evenly spaced over the ranks of their sizes."""


@dataclass(frozen=True)
class DevObject:
    """One object to click on.

    Attributes:
        source: a case in which it is the only one, called CASE_LABEL.
        case: the name of the case it is from.
        data_set: the case's data set.
        longest_side: of its bounding box, in voxels.
        nbytes: of the image and the labels of its case: how much work it is, roughly.
    """

    source: CaseSource
    case: str
    data_set: str
    longest_side: int
    nbytes: int

    @property
    def modality(self) -> str:
        """CT, MRI, PET, Ultrasound, Microscopy; of the case."""
        return self.source.modality


def find_objects(folder: Path, only: str = "") -> list[DevObject]:
    """The objects of all cases in a folder of data sets, by case and label.

    Args:
        folder: has `SET/CASE/image…` and `label…`.
        only: leave out cases whose name, SET_CASE, does not contain this.

    Raises:
        ValueError: no such case.
        OSError: no such folder, or a file that cannot be read.
    """
    sources = find_sources(folder, reading=Reading(objects=OBJECTS_PER_CASE))
    chosen = [source for source in sources if only in source.name]
    if not chosen:
        raise ValueError(f"no case in {folder} is called *{only}*; there are, for example, {sources[0].name}")
    return [found for source in chosen for found in _objects_of(source)]


def _objects_of(source: CaseSource) -> Iterator[DevObject]:
    labelled = source.load()
    truth = labelled.case.truth
    assert truth is not None, "a labelled case"
    for label, box in enumerate(ndimage.find_objects(truth), start=1):
        if box is None:
            continue
        alone = replace(
            source, name=f"{source.name}_{label}", load=functools.partial(_load_alone, source, label)
        )
        longest = max(side.stop - side.start for side in box)
        data_set = source.files[0].parents[1].name
        yield DevObject(alone, source.name, data_set, longest, labelled.case.image.nbytes + truth.nbytes)


def _load_alone(source: CaseSource, label: int) -> LabelledCase:
    """The case with one of its objects; all of them share the image, and so what a segmenter keeps of it."""
    labelled = _load(source)
    truth = labelled.case.truth
    assert truth is not None, "a labelled case"
    name = dict(zip(np.unique(truth)[1:].tolist(), labelled.classes, strict=True))[label]
    alone = replace(
        labelled.case, name=f"{source.name}_{label}", truth=(truth == label).astype(np.uint8), boxes=None
    )
    return LabelledCase(alone, (name,))


@functools.lru_cache(maxsize=1)
def _load(source: CaseSource) -> LabelledCase:
    return source.load()
