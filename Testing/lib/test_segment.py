"""Masks and label maps from logits, small enough to be written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from GSMedSegLib.cropped import crop
from GSMedSegLib.prompts import Click
from GSMedSegLib.segment import (
    Segment,
    empty_segment,
    given_segment,
    paint_by_logit,
    paint_in_order,
    smoothed,
)

SHAPE = (1, 1, 5)


def segment(start, *logits):
    """Logits of neighbouring voxels of a row, from a first one on."""
    box = (slice(0, 1), slice(0, 1), slice(start, start + len(logits)))
    return Segment(SHAPE, box, torch.tensor([[logits]]))


def test_a_mask_is_what_is_positive():
    """Zero, NaN and everything outside the box are background."""
    mask = segment(1, 2.0, 0.0, float("nan"), 1e-30).mask
    assert mask.dtype == bool
    assert mask.tolist() == [[[False, True, False, False, True]]]


def test_probability_is_the_sigmoid_of_a_logit():
    """A logit of ln 3 is three to one; 0 where nobody looked, be it outside the box or NaN."""
    probability = segment(1, float(np.log(3)), 0.0, float("nan"), -float(np.log(3))).probability
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, [[[0, 0.75, 0.5, 0, 0.25]]], rtol=1e-6)
    assert not empty_segment(SHAPE).probability.any()


def test_an_empty_segment_holds_nothing():
    """No voxels, no bytes."""
    empty = empty_segment(SHAPE)
    assert not empty.mask.any()
    assert empty.mask.shape == SHAPE
    assert empty.nbytes == 0


def test_bytes_by_hand():
    """Three float32."""
    assert segment(0, 1.0, 2.0, 3.0).nbytes == 12


def test_in_order_the_last_wins():
    """However unsure it is."""
    labels = paint_in_order([segment(0, 9.0, 9.0, 9.0), segment(1, -1.0, 0.1, float("nan"), 5.0)], SHAPE)
    assert labels.tolist() == [[[1, 1, 2, 0, 2]]]


def test_by_logit_the_surer_wins():
    """Voxel by voxel; of equals the first; negative logits never win."""
    first, second = segment(0, 9.0, 1.0, 3.0), segment(0, 2.0, 2.0, 3.0, -1.0, 0.5)
    assert paint_by_logit([first, second], SHAPE).tolist() == [[[1, 2, 1, 0, 2]]]
    assert paint_by_logit([second, first], SHAPE).tolist() == [[[2, 1, 1, 0, 1]]]


def test_by_logit_a_clicked_voxel_is_its_objects():
    """However sure another object is of it; of two that were clicked there, the first's."""
    sure, clicked = segment(0, 9.0, 9.0, 9.0), replace(segment(0, 1.0, 1.0), claimed=((0, 0, 1),))
    assert paint_by_logit([sure, clicked], SHAPE).tolist() == [[[1, 2, 1, 0, 0]]]
    assert paint_by_logit([clicked, sure], SHAPE).tolist() == [[[2, 1, 2, 0, 0]]]
    assert paint_by_logit([clicked, sure, clicked], SHAPE).tolist() == [[[2, 1, 2, 0, 0]]]


def test_by_logit_one_object_alone():
    """A single object is its mask, also where it is NaN."""
    assert paint_by_logit([segment(0, 3.0, float("nan"), -2.0, 0.0)], SHAPE).tolist() == [[[1, 0, 0, 0, 0]]]


def test_empty_segments_keep_their_number():
    """The label of an object is its place, whether the ones before have voxels or not."""
    for paint in (paint_in_order, paint_by_logit):
        labels = paint([empty_segment(SHAPE), segment(2, 1.0), empty_segment(SHAPE)], SHAPE)
        assert labels.tolist() == [[[0, 0, 2, 0, 0]]]
        assert not paint([], SHAPE).any()


def test_labels_take_the_smallest_type_that_holds_them():
    """255 objects fit uint8, 256 do not."""
    segments = [empty_segment(SHAPE)] * 255 + [segment(0, 1.0)]
    for paint in (paint_in_order, paint_by_logit):
        assert paint(segments[1:], SHAPE).dtype == np.uint8
        labels = paint(segments, SHAPE)
        assert labels.dtype == np.uint16
        assert labels[0, 0, 0] == 256


def test_a_given_mask_is_known_to_end_at_its_border():
    mask = np.zeros((6, 6, 6), bool)
    mask[2:4, 2:4, 2:4] = True
    segment = given_segment(crop(mask))
    assert segment.given
    assert segment.box == (slice(1, 5), slice(1, 5), slice(1, 5))
    assert np.array_equal(segment.mask, mask)
    assert not given_segment(crop(np.zeros((6, 6, 6), bool))).mask.any()


def test_smoothing_takes_off_what_is_thin_and_obeys_the_clicks():
    """A block with one voxel sticking out; clicked, the voxel stays."""
    logits = torch.full((12, 12, 12), -4.0)
    logits[3:9, 3:9, 3:9] = 4.0
    logits[6, 6, 10] = 4.0
    segment = Segment((12, 12, 12), (slice(0, 12),) * 3, logits)
    smooth = smoothed(segment, 1.0, (1.0, 1.0, 1.0), [])
    assert not smooth.mask[6, 6, 10]
    assert smooth.mask[4:8, 4:8, 4:8].all()
    clicked = smoothed(segment, 1.0, (1.0, 1.0, 1.0), [Click((6, 6, 10), True)])
    assert clicked.mask[6, 6, 10]
    assert smoothed(segment, 0.0, (1.0, 1.0, 1.0), []) is segment
    bounded = smoothed(segment, 1e6, (1.0, 1.0, 1.0), [])
    quarter = smoothed(segment, 1.0, tuple(4 / n for n in segment.logits.shape), [])
    assert torch.equal(bounded.logits, quarter.logits)


def test_smoothing_counts_in_millimetres():
    """Across thick slices, 1 mm is a fifth of a voxel and changes nothing."""
    logits = torch.full((12, 12, 12), -4.0)
    logits[3:9, 3:9, 3:9] = 4.0
    logits[9, 6, 6] = 4.0
    segment = Segment((12, 12, 12), (slice(0, 12),) * 3, logits)
    assert smoothed(segment, 1.0, (5.0, 5.0, 5.0), []).mask[9, 6, 6]
