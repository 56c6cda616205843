"""Our own strategy: views whose place and zoom follow the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from GSMedSegLib.cropped import Box3
from GSMedSegLib.edits import MARGIN, edited, merged, obeying
from GSMedSegLib.engine import Embedding, Engine, ImageKey
from GSMedSegLib.guided import guided_to_image_grid
from GSMedSegLib.intensity import percentile_limits
from GSMedSegLib.prompt_maps import box_logits
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.roi import (
    Pyramid,
    View,
    inside_center,
    outside_mask,
    to_image_grid,
    view_box,
    view_image,
    zoom_spacing_mm,
)
from GSMedSegLib.segment import OUTSIDE, Segment, empty_segment

DEFAULT_ROI = 96
"""Voxels per side of a view where the weights do not say what they were trained on."""

FIT = 0.6
"""Share of a view's side that an object's longest side should take."""

FINEST_STEP = 0.5
"""A view is never finer than this part of the smallest voxel side: there is nothing more to see."""

LEAST_VOXELS = 1.0
"""A view covers at least so much along each axis, however thick the slices are: none lies between two."""

COARSER = 1.5
"""A view may be this much coarser than the one before for the sake of a click outside."""

MOST_LOOKS = 3
"""Views tried for one click after the first, before the last one is taken."""

AGREEMENT = 0.6
"""Dice that the answers of two views must have where both look, for the second to be believed."""

SHARPNESS = 2.0
"""What a sharp border weighs beside the Dice that the network expects."""

CUT_OFF = 1.0
"""What it costs an answer's trust to leave its view through all six faces."""

DOUBTFUL, CLEARLY = 1.4, 0.4
"""An answer trusted less than the first makes a second click ask the other zooms again; one of them is taken
if it is trusted so much more."""

EDIT_REACH = 3.0
"""How far a click changes a mask that the user gave: so many times its distance from what is to stay."""

FREE_CLICKS = 2
"""So many clicks may change a mask everywhere; each later one changes only what it is connected with."""

COARSE = 3.0
"""From so many voxels a sample on, the border of a mask follows the image's edges between the samples."""


class AdaptiveStrategy:
    """Finds the zoom at which the clicked object fits a view, and follows the object as it grows.

    A first click is looked at in several zooms, from the image's own resolution to the whole image; the
    surest answer that fits its view is taken. A mask that touches its view's border, or is small in it, gets
    a view that fits. Later clicks stay in the view, whose embedding is kept, as long as they and the mask
    lie inside.

    Args:
        engine: runs the network.
        roi: samples per side of a view; by default what the weights were trained on.
    """

    name = "adaptive"
    stepwise = True
    edits = True
    further_click = 0.35  # docs/performance.md

    def __init__(self, engine: Engine, roi: int | None = None) -> None:
        self.engine = engine
        self.roi = roi or int(engine.metadata.get("roi", DEFAULT_ROI))
        self._by_view = engine.metadata.get("intensity") == "view"
        self._box_map = engine.metadata.get("box") == "map" and bool(engine.shape.mixer)
        self._spacing_mm = np.ones(3)
        self._pyramid = Pyramid(torch.zeros(1, 1, 1))
        self._image_key = ImageKey()
        self._shape = (1, 1, 1)

    def can_start(self, clicks: Sequence[Click], box: Box | None) -> bool:
        """A foreground click or a box."""
        return box is not None or any(c.positive for c in clicks)

    def set_image(self, image: NDArray[np.generic], spacing_kji_mm: tuple[float, float, float]) -> None:
        """Take an image (K, J, I).

        Raises:
            ValueError: a constant image, or one with NaN or voxels beyond `LARGEST`.
        """
        low, high = percentile_limits(image)
        k, j, i = image.shape
        self._shape = (k, j, i)
        self._spacing_mm = zoom_spacing_mm(spacing_kji_mm, self._shape)
        if np.result_type(image.dtype, np.float32) != np.float32:  # which takes large values for the same
            image, low, high = np.subtract(image, low), 0.0, high - low
        volume = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
        if not self._by_view:
            volume = ((volume - low) / (high - low)).clamp(0, 1)
        self._pyramid = Pyramid(volume)
        self._image_key = ImageKey()  # an engine may serve several images

    def predict(
        self, clicks: Sequence[Click], box: Box | None = None, before: Segment | None = None
    ) -> Segment:
        """Logits of one object.

        Args:
            clicks: all its clicks, in order.
            box: where the user said the object is; it sets the first view. Its middle counts as a foreground
                click until a background click is made near it; weights trained with boxes are shown it too.
            before: the segment without the last click, None for the first. Of a mask that the user gave, a
                click changes what is around it and leaves the rest.
        """
        hints = clicks if box is None else _with_middle(box, clicks)
        given = before if before is not None and before.given else None
        if before is None or not bool((before.logits > 0).any()):
            if not self.can_start(clicks, box):
                return before if before is not None else empty_segment(self._shape)
            if box is None:
                view, logits, _ = self._zoom(hints)
            else:
                view = self._fitting(*_corners(box))
                logits = self._look(view, hints, None, box)
            before = None
        else:
            view = self._view_for(before, hints[-1])
            logits = self._look(view, hints, before)
        if given is not None:
            shown = self._paste(before, view, logits)
            kept = shown if before is None else edited(before, shown, hints[-1], EDIT_REACH)
            return _as_told(replace(kept, view=view, given=True), clicks, hints)
        view, logits = self._follow(before, view, logits, hints)
        if before is not None and box is None and len(clicks) <= FREE_CLICKS:
            other = self._other_zoom(clicks, self._trust(view, logits))
            if other is not None:
                before, (view, logits) = None, self._follow(None, *other, clicks)
        segment = self._paste(before, view, logits)
        if before is not None and len(hints) > FREE_CLICKS:
            segment = edited(before, segment, hints[-1])
        return _as_told(replace(segment, view=view), clicks, hints)

    def _follow(
        self, before: Segment | None, view: View, logits: Tensor, clicks: Sequence[Click]
    ) -> tuple[View, Tensor]:
        """From view to view until one fits the mask or two disagree: the last one believed and its logits."""
        for _ in range(MOST_LOOKS):
            better = self._better_view(view, logits)
            if better is None:
                break
            now = self._paste(before, view, logits)
            answer = self._look(better, clicks, now)
            if not self._agree(view, logits, better, answer):
                break
            view, logits = better, answer
        return view, logits

    def _zoom(self, clicks: Sequence[Click]) -> tuple[View, Tensor, float]:
        """Of several zooms around the first foreground click the one whose answer is trusted most.

        Returns:
            the view, its logits, and the trust in them.
        """
        first = next(click for click in clicks if click.positive)
        answers = [(view, self._look(view, clicks, None)) for view in self._zooms(first.kji)]
        trusts = [self._trust(view, logits) for view, logits in answers]
        best = int(np.argmax(trusts))
        return (*answers[best], trusts[best])

    def _other_zoom(self, clicks: Sequence[Click], trust: float) -> tuple[View, Tensor] | None:
        """Where the first click's zoom was a mistake: the one that the clicks so far speak for.

        Args:
            clicks: all of them.
            trust: in the answer that there is.
        """
        if trust >= DOUBTFUL:
            return None
        view, logits, other = self._zoom(clicks)
        return (view, logits) if other > trust + CLEARLY else None

    def _zooms(self, center_kji: tuple[int, int, int]) -> list[View]:
        """Views around a voxel, each twice as wide as the one before, from the finest to the whole image."""
        whole_mm = float((np.array(self._shape) * self._spacing_mm).max())
        step_mm, views = FINEST_STEP * float(self._spacing_mm.min()), []
        while True:
            views.append(self._view(np.array(center_kji, float), step_mm))
            if step_mm * self.roi >= whole_mm:
                return views
            step_mm *= 2

    def _view(self, center_kji: NDArray[np.float64], step_mm: float) -> View:
        """A view with cubic samples (unless slices are too thick), inside an image that is larger."""
        step = np.maximum(step_mm / self._spacing_mm, LEAST_VOXELS / self.roi)
        center = inside_center(center_kji, step, self.roi, self._shape)
        k, j, i = np.where(np.isclose(step, 1), np.floor(center) + 0.5, center)  # samples that are voxels
        a, b, c = step
        return View((float(k), float(j), float(i)), (float(a), float(b), float(c)), self.roi)

    def _fitting(self, low_kji: NDArray[np.float64], high_kji: NDArray[np.float64]) -> View:
        """The view in which a box takes the share `FIT` of the side."""
        longest_mm = float(((high_kji - low_kji) * self._spacing_mm).max())
        finest = FINEST_STEP * float(self._spacing_mm.min())
        coarsest = float((np.array(self._shape) * self._spacing_mm).max()) / self.roi
        step_mm = min(max(longest_mm / (FIT * self.roi), finest), max(coarsest, finest))
        return self._view((low_kji + high_kji - 1) / 2, step_mm)

    def _trust(self, view: View, logits: Tensor) -> float:
        """How far an answer can be trusted: a sharp border, not cut off, and well rated if it is rated."""
        mask = logits > 0
        if not bool(mask.any()):
            return -1.0
        probability = torch.sigmoid(logits)
        sharp = float((probability > 0.7).sum() / (probability > 0.3).sum())
        rating = self.engine.rate(self._embedding(view), logits) if self.engine.shape.rater else 0.0
        return rating + SHARPNESS * sharp - CUT_OFF * self._cut_off(view, mask)

    def _cut_off(self, view: View, mask: Tensor) -> float:
        """Share of the view's faces through which the mask leaves it, not counting the image's own border."""
        touching, size = 0, view.size
        step = np.array(view.step_kji)
        start = np.array(view.start_kji)
        stop = start + (size - 1) * step
        reach = np.maximum(0.5, step / 2)  # a sample stands for all that it is nearest to
        for axis in range(3):
            if start[axis] > reach[axis] and bool(mask.select(axis, 0).any()):
                touching += 1
            if stop[axis] < self._shape[axis] - 1 - reach[axis] and bool(mask.select(axis, size - 1).any()):
                touching += 1
        return touching / 6

    def _better_view(self, view: View, logits: Tensor) -> View | None:
        """A view that fits the mask better, or None when this one does."""
        mask = logits > 0
        if not bool(mask.any()):
            return None
        low, high = (np.array(v) for v in _bounds(mask))
        extent = (high - low).max() / view.size
        if self._cut_off(view, mask) == 0 and extent >= 0.3:
            return None
        if self._cut_off(view, mask) > 0:
            better = self._view(view.to_image((low + high - 1) / 2), 1.6 * self._step_mm(view))
        else:
            better = self._fitting(view.to_image(low - 0.5) + 0.5, view.to_image(high - 0.5) + 0.5)
        change = self._step_mm(better) / self._step_mm(view)
        moved = np.abs(np.array(better.center_kji) - view.center_kji) / (np.array(view.step_kji) * view.size)
        return better if abs(np.log(change)) > 0.15 or moved.max() > 0.15 else None

    def _agree(self, view: View, logits: Tensor, other: View, answer: Tensor) -> bool:
        """Whether the answer of another view is about the same object, as far as both show it."""
        mine = logits > 0
        shown = self._seen(self._paste(None, other, answer), view)
        visible = shown > OUTSIDE
        theirs = shown > 0
        both = 2 * float((mine & theirs).sum())
        return both >= AGREEMENT * float((mine & visible).sum() + theirs.sum())

    def _view_for(self, before: Segment, click: Click) -> View:
        """The view for a further click: the one before if it shows it, else one with mask and click.

        A click so far from the mask that this would cost detail gets a view of its own.
        """
        view = before.view
        low, high = _bounds(before.logits > 0)
        corner = np.array([s.start for s in before.box])
        if view is None:
            view = self._fitting(low + corner, high + corner)
        at = view.to_view(np.array([click.kji]))[0] / (view.size - 1)
        if ((at > MARGIN) & (at < 1 - MARGIN)).all():
            return view
        reach = 2 * np.array(view.step_kji)
        low = np.minimum(low + corner, np.array(click.kji) - reach)
        high = np.maximum(high + corner, np.array(click.kji) + 1 + reach)
        both = self._fitting(low, high)
        if self._step_mm(both) <= COARSER * self._step_mm(view):
            return both
        return self._view(np.array(click.kji, float), self._step_mm(view))

    def _step_mm(self, view: View) -> float:
        """From sample to sample of a view, along the axes where its samples are cubic."""
        return float((np.array(view.step_kji) * self._spacing_mm).min())

    def _look(
        self, view: View, clicks: Sequence[Click], before: Segment | None, box: Box | None = None
    ) -> Tensor:
        """(S, S, S) logits of a view."""
        at = np.round(view.to_view(np.array([c.kji for c in clicks]).reshape(-1, 3))).astype(int)
        inside = ((at >= 0) & (at < view.size)).all(axis=1)
        labels = np.array([int(c.positive) for c in clicks])
        previous = None if before is None else self._seen(before, view)[None]
        if previous is None and box is not None and self._box_map:
            previous = box_logits(_within_view(box, view), (view.size,) * 3)
        if not inside.any():
            at, labels, inside = np.zeros((1, 3), int), np.array([-1]), np.array([True])
        embedding = self._embedding(view)
        return self.engine.decode(embedding, at[inside][None], labels[inside][None], previous)[0].cpu()

    def _embedding(self, view: View) -> Embedding:
        return self.engine.encode(lambda: self._samples(view), key=self._image_key.of(view))

    def _samples(self, view: View) -> Tensor:
        if self._by_view:
            return view_image(self._pyramid, view)
        return torch.where(outside_mask(view, self._shape), 0.0, self._pyramid.sample(view))

    def _seen(self, segment: Segment, view: View) -> Tensor:
        """A segment's logits at a view's samples."""
        start = np.array([s.start for s in segment.box])
        k, j, i = np.array(view.center_kji) - start
        shifted = View((float(k), float(j), float(i)), view.step_kji, view.size)
        samples = Pyramid(segment.logits.clamp(-8, 8)).sample(shifted)
        return torch.where(outside_mask(shifted, segment.logits.shape), OUTSIDE, samples)

    def _paste(self, before: Segment | None, view: View, logits: Tensor) -> Segment:
        """A view's logits on the image's voxels, over what was known before."""
        box = view_box(view, self._shape)
        assert box is not None, "a view that misses the image"
        if max(view.step_kji) < COARSE:
            values = to_image_grid(logits, view, box)
        else:
            image = self._pyramid.image[box].float()
            values = guided_to_image_grid(logits, self._pyramid.sample(view), image, view, box)
        answer = Segment(self._shape, box, values, view)
        return answer if before is None else merged(before, answer)


def _corners(box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest corner and one past the highest."""
    return np.array(box.min_kji, float), np.array(box.max_kji, float) + 1


def _within_view(box: Box, view: View) -> Box3:
    """The samples of a view that lie in a box, at least one along each axis."""
    low, high = (np.ceil(view.to_view(corner[None] - 0.5)[0]).astype(int) for corner in _corners(box))
    k, j, i = (
        slice(a, max(a + 1, b))
        for a, b in zip(low.clip(0, view.size - 1).tolist(), high.clip(0, view.size).tolist())
    )
    return k, j, i


def _with_middle(box: Box, clicks: Sequence[Click]) -> Sequence[Click]:
    """The clicks, after one on the middle of a box if no background click in its inner half denies that."""
    low, high = _corners(box)
    middle, reach = (low + high - 1) / 2, (high - low) / 4
    if any((abs(click.kji - middle) <= reach).all() for click in clicks if not click.positive):
        return clicks
    k, j, i = (int(x) for x in middle)
    return [Click((k, j, i), True), *clicks]


def _as_told(segment: Segment, clicks: Sequence[Click], hints: Sequence[Click]) -> Segment:
    """A segment that obeys its clicks; without any the hints of its box, which claim no voxel from others."""
    return obeying(segment, clicks) if clicks else replace(obeying(segment, hints), claimed=())


def _bounds(mask: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest corner and one past the highest of a mask that is not empty."""
    low, high = [], []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        along = torch.nonzero(mask.any(others[1]).any(others[0]))
        low.append(int(along[0]))
        high.append(int(along[-1]) + 1)
    return np.array(low), np.array(high)
