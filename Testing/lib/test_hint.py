"""Where a next click would help: in the thick of the doubt, away from what was clicked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GSMedSegLib.hint import next_click
from GSMedSegLib.prompts import Click
from GSMedSegLib.segment import Segment, empty_segment

SPACING = (1.0, 1.0, 1.0)


def segment_of(logits: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)) -> Segment:
    k, j, i = (slice(s, s + n) for s, n in zip(start, logits.shape))
    shape = (k.stop + 3, j.stop + 3, i.stop + 3)
    return Segment(shape, (k, j, i), torch.from_numpy(logits.astype(np.float32)))


def doubtful(size: int = 32) -> np.ndarray:
    """A sure object, a large doubtful part of logit -0.2 beside it, and a small one of logit 0.2."""
    logits = np.full((size, size, size), -8.0)
    logits[4:14, 4:14, 4:14] = 8.0
    logits[16:28, 16:28, 16:28] = -0.2
    logits[4:6, 26:28, 26:28] = 0.2
    return logits


def test_the_largest_doubt_is_found():
    hint = next_click(segment_of(doubtful()), [], SPACING)
    assert hint is not None
    assert all(18 <= x <= 25 for x in hint.kji)
    assert hint.positive, "it is outside the mask: if that is wrong, it is foreground"
    assert 0.3 < hint.doubt < 0.5


def test_the_place_is_in_the_image_not_in_the_box():
    here, there = (next_click(segment_of(doubtful(), s), [], SPACING) for s in ((0, 0, 0), (5, 6, 7)))
    assert here is not None
    assert there is not None
    assert tuple(np.subtract(there.kji, here.kji)) == (5, 6, 7)


def test_a_click_settles_its_surroundings():
    segment = segment_of(doubtful())
    first = next_click(segment, [], SPACING)
    assert first is not None
    second = next_click(segment, [Click(first.kji, False)], SPACING)
    assert second is None or np.abs(np.subtract(second.kji, first.kji)).max() >= 2
    assert second is None or second.doubt < first.doubt


def test_nothing_in_doubt_gives_no_hint():
    logits = np.where(doubtful() > 0, 8.0, -8.0)
    logits[4:6, 26:28, 26:28] = -8.0
    assert next_click(segment_of(logits), [], SPACING) is None
    assert next_click(empty_segment((4, 4, 4)), [], SPACING) is None


def test_large_boxes_are_looked_at_coarsely_and_hit_exactly():
    """Of a coarse sample of 2³ voxels, the one in most doubt is named."""
    logits = np.full((100, 80, 90), -9.0)
    logits[40:60, 30:50, 40:60] = -1.0
    logits[50, 41, 49] = 0.01
    hint = next_click(segment_of(logits), [], SPACING)
    assert hint is not None
    assert all(low <= x < high for x, low, high in zip(hint.kji, (40, 30, 40), (60, 50, 60)))


@pytest.mark.parametrize("shape", [(6, 512, 512), (1, 600, 2), (2, 3, 300)], ids=str)
def test_thin_boxes_are_looked_at_coarsely_where_they_are_long(shape):
    logits = np.full(shape, -9.0)
    wanted = tuple(n // 2 for n in shape)
    logits[tuple(slice(max(0, x - 20), x + 20) for x in wanted)] = -0.5
    hint = next_click(segment_of(logits), [], SPACING)
    assert hint is not None
    assert all(abs(x - y) <= 20 for x, y in zip(hint.kji, wanted))


def test_voxels_that_no_window_reached_are_no_doubt():
    logits = doubtful()
    logits[16:28, 16:28, 16:28] = np.nan
    hint = next_click(segment_of(logits), [], SPACING)
    assert hint is None or all(x < 16 or x >= 26 for x in hint.kji)
