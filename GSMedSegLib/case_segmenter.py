"""A predictor that answers challenge cases."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from GSMedSegLib.cropped import Voxel
from GSMedSegLib.edits import obeying
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.segment import Segment, empty_segment

ClassPrompts = tuple[tuple[Click, ...], Box | None]


class CaseSegmenter:
    """Segments the classes of a case from its prompts; a `challenge.Segmenter`.

    An answer depends on the case alone. What was computed for the same image object before is used again: a
    case's rounds in one process cost little more than its last.

    Args:
        predictor: any image it has is forgotten.
        shrink: look at the image averaged over blocks of this side, and enlarge the answers.

    Attributes:
        window: grey values that 8 bits are best made of for the predictor, lowest and highest; None for all.
    """

    def __init__(self, predictor: Predictor, shrink: int = 1) -> None:
        self._predictor = predictor
        self.window = predictor.window
        self._shrink = shrink
        self._image: NDArray[np.uint8] | None = None
        self._spacing_kji_mm = (0.0, 0.0, 0.0)

    def segment(self, case: Case) -> LabelArray:
        """Segment all classes; one with nothing to start from stays empty, for no click is made up.

        `prev_pred` is not needed: the case has the earlier clicks too.

        Returns:
            (K, J, I) labels, class c as c.

        Raises:
            ValueError: the case has neither clicks nor boxes, or a constant image.
        """
        self.set_image(case)
        return self.paint(self.segment_class(n, prompts) for n, prompts in enumerate(prompts_of(case)))

    def set_image(self, case: Case) -> None:
        """Start on a case's image, unless the predictor has that very object already.

        Raises:
            ValueError: a constant image.
        """
        if case.image is self._image and case.spacing_kji_mm == self._spacing_kji_mm:
            return
        self._image = None
        k_mm, j_mm, i_mm = (mm * self._shrink for mm in case.spacing_kji_mm)
        self._predictor.set_image(_averaged(case.image, self._shrink), np.diag([i_mm, j_mm, k_mm, 1.0]))
        self._image, self._spacing_kji_mm = case.image, case.spacing_kji_mm

    def segment_class(self, index: int, prompts: ClassPrompts) -> Segment:
        """Segment one class of the image; empty when there is nothing to start from.

        Args:
            index: of the class, from 0.
            prompts: its clicks in order, and its box.
        """
        assert self._image is not None, "set_image comes first"
        k, j, i = self._image.shape
        name = str(index + 1)
        if name not in self._predictor.objects:
            self._predictor.add_object(name)
        self._set_prompts(name, *self._shrunk(prompts))
        if not self._predictor.can_segment(name):
            return empty_segment((k, j, i))
        segment = self._predictor.segment(name)
        if self._shrink == 1:
            return segment
        large = _enlarged(segment, self._shrink, (k, j, i))
        if segment.view is None:  # of the reference strategy, which promises nothing of a clicked voxel
            return large
        return obeying(large, prompts[0])

    def paint(self, segments: Iterable[Segment]) -> LabelArray:
        """(K, J, I) labels of all classes, in order; overlaps go as the strategy has it.

        Args:
            segments: of the classes; taken one by one, so that not all of them need be in memory.
        """
        assert self._image is not None, "set_image comes first"
        k, j, i = self._image.shape
        return self._predictor.paint(segments, (k, j, i))

    def _set_prompts(self, name: str, clicks: tuple[Click, ...], box: Box | None) -> None:
        """Make the ledger say just this of an object; what was computed from fewer clicks stays known."""
        ledger = self._predictor.ledger
        if ledger.clicks(name) != clicks[: len(ledger.clicks(name))] or ledger.box(name) != box:
            ledger.clear(name)
            if box is not None:
                ledger.set_box(name, box)
        for click in clicks[len(ledger.clicks(name)) :]:
            ledger.add_click(name, click)

    def _shrunk(self, prompts: ClassPrompts) -> ClassPrompts:
        clicks, box = prompts
        if self._shrink == 1:
            return prompts
        small = tuple(Click(self._block(c.kji), c.positive) for c in clicks)
        return small, None if box is None else Box(self._block(box.min_kji), self._block(box.max_kji))

    def _block(self, kji: Voxel) -> Voxel:
        k, j, i = kji
        return k // self._shrink, j // self._shrink, i // self._shrink


def prompts_of(case: Case) -> list[ClassPrompts]:
    """The clicks and the box of every class.

    Raises:
        ValueError: the case has neither clicks nor boxes.
    """
    rows, boxes = case.clicks or (), case.boxes or ()
    if not rows and not boxes:
        raise ValueError("the case has neither clicks nor boxes, so nothing says what to segment")
    return [
        (tuple(c for c in rows[n] if c) if rows else (), boxes[n] if boxes else None)
        for n in range(max(len(rows), len(boxes)))
    ]


def _averaged(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(⌈K/side⌉, ⌈J/side⌉, ⌈I/side⌉) means of blocks, the image's edge repeated to fill the last.

    Rounded, for 8 bits tell a predictor that the grey values were put into a window before.
    """
    if side == 1:
        return image
    padded = np.pad(image, [(0, -n % side) for n in image.shape], mode="edge")
    k, j, i = (n // side for n in padded.shape)
    means: NDArray[np.float32] = padded.reshape(k, side, j, side, i, side).mean((1, 3, 5), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def _enlarged(segment: Segment, side: int, shape: tuple[int, int, int]) -> Segment:
    """A segment of the averaged image on the image's own voxels."""
    if segment.logits.numel() == 0:
        return empty_segment(shape)
    large = F.interpolate(segment.logits[None, None], scale_factor=side, mode="trilinear")[0, 0]
    k, j, i = (slice(side * s.start, min(side * s.stop, n)) for s, n in zip(segment.box, shape, strict=True))
    fitting = large[: k.stop - k.start, : j.stop - j.start, : i.stop - i.start]
    return Segment(shape, (k, j, i), fitting.contiguous())
