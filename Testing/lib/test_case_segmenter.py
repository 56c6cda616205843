"""Cases answered by a predictor: the same whether asked round by round or at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from GSMedSegLib.case_segmenter import CaseSegmenter, prompts_of
from GSMedSegLib.engine import Engine
from GSMedSegLib.npz import Case
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click

MakeEngine = Callable[..., Engine]
Blobs = Callable[..., NDArray[np.float32]]

INSIDE, OTHER, BESIDE = Click((12, 14, 10), True), Click((5, 20, 22), True), Click((3, 3, 3), False)


@pytest.fixture
def case(blobs: Blobs) -> Case:
    """No prompts yet."""
    image = blobs(24, 28, 30)
    scaled = 255 * (image - image.min()) / (image.max() - image.min())
    return Case("MR_blobs", scaled.astype(np.uint8), (2.0, 1.0, 1.0))


def segmenter(make_engine: MakeEngine, strategy: str = "adaptive", shrink: int = 1) -> CaseSegmenter:
    return CaseSegmenter(Predictor(make_engine(additions=True), strategy, 16), shrink)


@pytest.mark.parametrize("strategy", ["adaptive", "reference"])
def test_rounds_in_one_process_or_in_many(strategy: str, case: Case, make_engine: MakeEngine) -> None:
    """Keeping what was computed changes nothing: a fresh segmenter gives the same labels in every round."""
    boxes = (Box((8, 10, 6), (16, 18, 14)), None)
    rounds = [
        replace(case, boxes=boxes),
        replace(case, boxes=boxes, clicks=((INSIDE,), (OTHER,))),
        replace(case, boxes=boxes, clicks=((INSIDE, BESIDE), (OTHER, None))),
        replace(case, boxes=boxes, clicks=((INSIDE, BESIDE, OTHER), (OTHER, None, INSIDE))),
    ]
    kept = segmenter(make_engine, strategy)
    for asked in rounds:
        fresh = segmenter(make_engine, strategy).segment(asked)
        np.testing.assert_array_equal(kept.segment(asked), fresh)
    assert fresh.any()


def test_another_order_of_questions(case: Case, make_engine: MakeEngine) -> None:
    """Fewer clicks, other clicks, another box: answered as if nothing had been asked before."""
    kept = segmenter(make_engine)
    for clicks, box in [
        ((INSIDE, BESIDE), None),
        ((INSIDE,), None),
        ((OTHER,), Box((2, 16, 18), (8, 24, 26))),
        ((OTHER,), None),
        ((), Box((2, 16, 18), (8, 24, 26))),
    ]:
        asked = replace(case, clicks=(clicks,), boxes=(box,))
        np.testing.assert_array_equal(kept.segment(asked), segmenter(make_engine).segment(asked))


def test_another_image_is_another_image(case: Case, make_engine: MakeEngine) -> None:
    kept = segmenter(make_engine)
    first = kept.segment(replace(case, clicks=((INSIDE,),)))
    turned = replace(case, image=np.ascontiguousarray(case.image[::-1]), clicks=((INSIDE,),))
    np.testing.assert_array_equal(kept.segment(turned), segmenter(make_engine).segment(turned))
    np.testing.assert_array_equal(kept.segment(replace(case, clicks=((INSIDE,),))), first)


def test_the_image_is_set_once(case: Case, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls = segmenter(make_engine), []
    real = Predictor.set_image
    monkeypatch.setattr(Predictor, "set_image", lambda *a: (calls.append(1), real(*a)))
    kept.segment(replace(case, clicks=((INSIDE,),)))
    kept.segment(replace(case, clicks=((INSIDE, BESIDE),)))
    assert len(calls) == 1


def test_a_class_without_prompts_stays_empty(case: Case, make_engine: MakeEngine) -> None:
    labels = segmenter(make_engine).segment(replace(case, clicks=((), (INSIDE,), (BESIDE,))))
    assert set(np.unique(labels)) == {0, 2}


def test_a_box_says_nothing_to_the_reference(case: Case, make_engine: MakeEngine) -> None:
    boxes = (Box((8, 10, 6), (16, 18, 14)),)
    assert not segmenter(make_engine, "reference").segment(replace(case, boxes=boxes)).any()


def test_nothing_to_go_by(case: Case, make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match="neither clicks nor boxes"):
        segmenter(make_engine).segment(case)
    with pytest.raises(ValueError, match="neither clicks nor boxes"):
        prompts_of(case)


def test_prompts_of_each_class(case: Case) -> None:
    box = Box((0, 0, 0), (1, 1, 1))
    with_both = replace(case, clicks=((INSIDE, None, BESIDE), ()), boxes=(None, box))
    assert prompts_of(with_both) == [((INSIDE, BESIDE), None), ((), box)]
    assert prompts_of(replace(case, boxes=(box,))) == [((), box)]


@pytest.mark.parametrize("strategy", ["adaptive", "reference"])
def test_half_resolution_equals_the_averaged_image(
    strategy: str, case: Case, make_engine: MakeEngine
) -> None:
    """Blocks of 2×2×2 averaged by hand, clicks halved, each answer voxel as large as eight."""
    coarse = segmenter(make_engine, strategy, shrink=2)
    coarse.set_image(case)
    found = coarse.segment_class(0, ((INSIDE, BESIDE), None))
    means = np.rint(case.image.reshape(12, 2, 14, 2, 15, 2).mean((1, 3, 5))).astype(np.uint8)
    direct = Predictor(make_engine(additions=True), strategy, 16)
    direct.set_image(means, np.diag([2.0, 2.0, 4.0, 1.0]))
    direct.add_object("1")
    direct.add_click("1", (6, 7, 5))
    direct.add_click("1", (1, 1, 1), positive=False)
    small = np.full((12, 14, 15), -10.0)
    segment = direct.segment("1")
    small[segment.box] = np.nan_to_num(segment.logits.numpy(), nan=-10.0)
    at = np.meshgrid(*((np.arange(2 * n) + 0.5) / 2 - 0.5 for n in small.shape), indexing="ij")
    expected = ndimage.map_coordinates(small, at, order=1, mode="nearest") > 0
    known = np.zeros(case.image.shape, bool)
    known[tuple(slice(2 * s.start, 2 * s.stop) for s in segment.box)] = True
    assert found.shape == case.image.shape
    assert 0 < expected.sum() < expected.size
    assert (found.mask == expected)[known].mean() > 0.99  # but for the seam to what was not looked at
    assert not found.mask[~known].any()


def test_views_go_by_the_spacing_of_the_axes(case: Case, make_engine: MakeEngine) -> None:
    """The same case told in SimpleITK's order gets the same labels; taken as it stands, others."""
    asked = replace(case, spacing_mm=(5.0, 1.0, 1.0), clicks=((INSIDE,),))
    turned = replace(asked, spacing_mm=(1.0, 1.0, 5.0), spacing_reversed=True)
    kept = segmenter(make_engine)
    expected = kept.segment(asked)
    assert not np.array_equal(kept.segment(replace(turned, spacing_reversed=False)), expected)
    np.testing.assert_array_equal(kept.segment(turned), expected)


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_grey_values_are_put_into_no_second_window(shrink: int, case: Case, make_engine: MakeEngine) -> None:
    """Weights that were trained between 300 and 400 would see nothing in an image of 0..255."""
    asked = replace(case, clicks=((INSIDE,),))
    windowed = make_engine(additions=True, metadata={"window": "300 400"})
    labels = CaseSegmenter(Predictor(windowed, "adaptive", 16), shrink).segment(asked)
    np.testing.assert_array_equal(labels, segmenter(make_engine, shrink=shrink).segment(asked))


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_every_click_is_obeyed_at_every_resolution(shrink: int, case: Case, make_engine: MakeEngine) -> None:
    """Also where a foreground and a background click share a block."""
    near = [Click((12, 14, 11), False), Click((13, 14, 10), False), Click((13, 15, 11), True), OTHER, BESIDE]
    coarse = segmenter(make_engine, shrink=shrink)
    coarse.set_image(case)
    for count in range(len(near) + 1):
        clicks = (INSIDE, *near[:count])
        mask = coarse.segment_class(0, (clicks, None)).mask
        assert [bool(mask[click.kji]) for click in clicks] == [click.positive for click in clicks]


def test_odd_sides_are_filled_up(make_engine: MakeEngine, blobs: Blobs) -> None:
    image = blobs(21, 23, 25)
    scaled = 255 * (image - image.min()) / (image.max() - image.min())
    case = Case("odd", scaled.astype(np.uint8), (1, 1, 1), clicks=((Click((20, 22, 24), True),),))
    labels = segmenter(make_engine, shrink=4).segment(case)
    assert labels.shape == case.image.shape
    assert labels[20, 22, 24] == 1
