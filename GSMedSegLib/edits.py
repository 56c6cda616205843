"""How an answer becomes part of what is known of an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import edt
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from GSMedSegLib.cropped import Box3
from GSMedSegLib.prompts import Click
from GSMedSegLib.roi import View
from GSMedSegLib.segment import OUTSIDE, Segment

MARGIN = 0.04
"""Over this share of its side, at its faces, a view's answer passes into what was known before. A click that
close to a face gets another view, so that every click counts whole."""

CLICK_LOGIT = 1.0
"""A clicked voxel is at least this sure."""


def merged(before: Segment, answer: Segment) -> Segment:
    """A segment with a view's answer laid over it, without a step where the view ends.

    Args:
        before: what was known.
        answer: of the view that it names; what nobody had looked at is taken from it as it is.
    """
    if _contains(answer.box, before.box):
        return answer
    assert answer.view is not None, "the answer of a view"
    grown = _grown(before, answer.box)
    part = grown.logits[_within(answer.box, grown.box)]
    weight = fading(answer.view, answer.box, answer.shape)
    part.copy_(torch.where(part > OUTSIDE, torch.lerp(part, answer.logits, weight), answer.logits))
    return grown


def fading(view: View, box: Box3, shape: Sequence[int]) -> Tensor:
    """What a view's answer counts at the voxels of a box: 1, and less towards its faces, 0 at them.

    A face at the image's border is none: nothing was known beyond it.
    """
    weight = torch.ones(())
    for axis, side in enumerate(box):
        at = (torch.arange(side.start, side.stop) - view.start_kji[axis]) / view.step_kji[axis]
        low = torch.full_like(at, torch.inf) if side.start == 0 else at + 0.5
        high = torch.full_like(at, torch.inf) if side.stop == shape[axis] else view.size - 0.5 - at
        along = (torch.minimum(low, high) / (MARGIN * view.size)).clamp(0, 1)
        weight = torch.minimum(weight, along.view([-1 if a == axis else 1 for a in range(3)]))
    return weight


def edited(before: Segment, answer: Segment, click: Click, reach: float = np.inf) -> Segment:
    """A segment changed by an answer around a click alone, and only the way that the click says.

    What changes is the part of the difference that the click lies in, as far as `reach` times the click's
    distance from where nothing would change. Where both agree the answer's logits are the newer ones.
    """
    if not _contains(answer.box, before.box):
        answer = _grown(answer, before.box)
    if not _contains(before.box, answer.box):
        before = _grown(before, answer.box)
    old, new = (before.logits > 0).numpy(), (answer.logits > 0).numpy()
    differs = new & ~old if click.positive else old & ~new
    at = tuple(x - s.start for x, s in zip(click.kji, before.box))
    if not all(0 <= x < n for x, n in zip(at, differs.shape)) or not differs[at]:
        return before
    parts, _ = ndimage.label(differs)
    change = parts == parts[at]
    if np.isfinite(reach):
        depth = float(edt.edt(np.ascontiguousarray(change), black_border=True)[at])
        away = sum((index - x) ** 2 for index, x in zip(np.ogrid[tuple(map(slice, change.shape))], at))
        change &= away <= (reach * depth) ** 2
    taken = torch.from_numpy(change | (old == new))
    return replace(before, logits=torch.where(taken, answer.logits, before.logits))


def obeying(segment: Segment, clicks: Sequence[Click]) -> Segment:
    """A copy in which every clicked voxel is what its click says."""
    latest = {click.kji: click.positive for click in clicks}
    claimed = tuple(kji for kji, positive in latest.items() if positive)
    segment = replace(segment, logits=segment.logits.clone(), claimed=claimed)
    for click in clicks:
        k, j, i = (slice(x, x + 1) for x in click.kji)
        if not _contains(segment.box, (k, j, i)):
            if not click.positive:
                continue
            segment = _grown(segment, (k, j, i))
        at = tuple(x - s.start for x, s in zip(click.kji, segment.box))
        logit = float(segment.logits[at])
        segment.logits[at] = max(logit, CLICK_LOGIT) if click.positive else min(logit, -CLICK_LOGIT)
    return segment


def _grown(segment: Segment, box: Box3) -> Segment:
    """A copy of a segment whose box contains another one, background where nothing was known."""
    k, j, i = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, segment.box))
    logits = torch.full((k.stop - k.start, j.stop - j.start, i.stop - i.start), OUTSIDE)
    logits[_within(segment.box, (k, j, i))] = segment.logits
    return replace(segment, box=(k, j, i), logits=logits)


def _contains(outer: Box3, inner: Box3) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for o, i in zip(outer, inner))


def _within(inner: Box3, outer: Sequence[slice]) -> Box3:
    """An inner box's slices in an outer box's own coordinates."""
    k, j, i = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer))
    return k, j, i
