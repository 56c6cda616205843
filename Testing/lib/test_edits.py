"""Answers enter what is known: faded at their faces, around a click, obeying the clicks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GSMedSegLib.edits import CLICK_LOGIT, edited, fading, merged, obeying
from GSMedSegLib.prompts import Click
from GSMedSegLib.roi import View
from GSMedSegLib.segment import OUTSIDE, Segment

SHAPE = (70, 70, 70)
VIEW = View((34.5, 34.5, 34.5), (1.0, 1.0, 1.0), 50)
BOX = (slice(10, 60), slice(10, 60), slice(10, 60))
WHOLE = (slice(0, 70), slice(0, 70), slice(0, 70))


def answer(logit):
    """The view's answer, the same everywhere."""
    return Segment(SHAPE, BOX, torch.full((50, 50, 50), logit), VIEW)


def test_a_view_counts_less_towards_its_faces():
    """Samples 0, 1, 2 lie 0.5, 1.5, 2.5 from the face; it fades over 0.04 of 50 samples, which is 2."""
    weight = fading(VIEW, BOX, SHAPE)
    assert weight.shape == (50, 50, 50)
    assert weight[0, 25, 25] == pytest.approx(0.25)
    assert weight[25, 1, 25] == pytest.approx(0.75)
    assert weight[25, 25, -1] == pytest.approx(0.25)
    assert weight[0, 1, 25] == pytest.approx(0.25), "the nearest face counts"
    assert (weight[2:-2, 2:-2, 2:-2] == 1).all()


def test_a_view_does_not_fade_at_the_images_border():
    """A view in the image's corner fades at the three faces that lie inside the image."""
    view = View((24.5, 24.5, 24.5), (1.0, 1.0, 1.0), 50)
    weight = fading(view, (slice(0, 50),) * 3, SHAPE)
    assert (weight[:48, :48, :48] == 1).all()
    assert weight[49, 5, 5] == pytest.approx(0.25)


def test_an_answer_passes_into_what_was_known():
    """Known -4 everywhere, a view says 4: -4 + 8 w with the weights of above; untouched beyond the view."""
    before = Segment(SHAPE, WHOLE, torch.full(SHAPE, -4.0))
    now = merged(before, answer(4.0))
    assert now.box == WHOLE
    assert now.logits[10, 35, 35] == pytest.approx(-2)
    assert now.logits[11, 35, 35] == pytest.approx(2)
    assert now.logits[35, 35, 35] == 4
    assert now.logits[9, 35, 35] == -4
    assert (before.logits == -4).all(), "what was known stays as it was"


def test_what_nobody_had_looked_at_is_taken_as_it_is():
    """Known to the left: what only the view reaches is its answer, at its faces too."""
    before = Segment(SHAPE, (slice(0, 20), *BOX[1:]), torch.full((20, 50, 50), -4.0))
    now = merged(before, answer(4.0))
    assert now.box == (slice(0, 60), *BOX[1:])
    assert now.logits[59, 25, 25] == 4
    assert now.logits[20, 25, 25] == 4
    assert now.logits[10, 25, 25] == pytest.approx(-2)
    wider = merged(Segment(SHAPE, (slice(12, 20),) * 3, torch.zeros(8, 8, 8)), now)
    assert wider is now, "an answer that covers all that was known takes its place"


def bars(*spans):
    """Logits 2 in rows of spans, -2 elsewhere, along one line of a small image."""
    logits = torch.full((1, 1, 20), -2.0)
    for start, stop in spans:
        logits[..., start:stop] = 2
    return Segment((1, 1, 20), (slice(0, 1), slice(0, 1), slice(0, 20)), logits)


@pytest.mark.parametrize(
    ("click", "wanted"),
    [
        (Click((0, 0, 9), True), [(2, 6), (8, 12)]),
        (Click((0, 0, 3), False), [(5, 6)]),
        (Click((0, 0, 17), True), [(2, 6)]),
    ],
)
def test_a_click_changes_its_own_part(click, wanted):
    """The answer loses 2..5 and gains 8..12 and 14..16: a click takes the part that it lies in."""
    now = edited(bars((2, 6)), bars((5, 6), (8, 12), (14, 16)), click)
    assert np.array_equal(now.mask, bars(*wanted).mask)


def test_clicked_voxels_are_what_the_clicks_say():
    """Too unsure, wrong, beyond the box: all end as clicked; a background click far away changes nothing."""
    before = answer(0.2)
    clicks = [Click((12, 12, 12), True), Click((13, 13, 13), False), Click((65, 35, 35), True)]
    now = obeying(before, [*clicks, Click((0, 0, 0), False)])
    assert now.logits[2, 2, 2] == CLICK_LOGIT
    assert now.logits[3, 3, 3] == -CLICK_LOGIT
    assert now.mask[65, 35, 35]
    assert now.box == (slice(10, 66), *BOX[1:])
    assert now.logits[54, 10, 10] == OUTSIDE
    assert (before.logits == 0.2).all()
    assert now.claimed == ((12, 12, 12), (65, 35, 35))
    assert obeying(now, [*clicks, Click((12, 12, 12), False)]).claimed == ((65, 35, 35),)
