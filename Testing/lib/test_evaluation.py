"""The corrector at work on predictors whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from GSMedSegLib.evaluation import dice_per_click
from GSMedSegLib.predictor import Predictor


class Scripted:
    """A predictor that gives one mask after the other, and remembers its clicks."""

    def __init__(self, *masks):
        self.masks, self.clicks, self.objects = list(masks), [], []

    def add_object(self, name):
        self.objects.append(name)

    def add_click(self, name, kji, positive):
        assert name == self.objects[-1]
        self.clicks.append((kji, positive))

    def predict(self, name):
        return self.masks[len(self.clicks) - 1]


def row(*values):
    return np.array([[values]], bool)


TRUTH = row(0, 1, 1, 1, 0, 0, 0, 0)


def test_dice_after_every_click_by_hand():
    """First click into the truth; then onto the largest error, with its sign; Dice 2 |both| / (|A| + |B|)."""
    predictor = Scripted(
        row(0, 1, 0, 0, 0, 0, 0, 0), row(0, 1, 1, 1, 1, 1, 1, 1), row(0, 1, 1, 1, 0, 0, 0, 0)
    )
    scores = dice_per_click(predictor, "a", TRUTH, rounds=3)
    assert scores == pytest.approx([2 / 4, 6 / 10, 1])
    assert [positive for _, positive in predictor.clicks] == [True, True, False]
    allowed = ([1, 2, 3], [2, 3], [4, 5, 6, 7])
    assert all(kji[2] in columns for (kji, _), columns in zip(predictor.clicks, allowed))


def test_a_perfect_mask_gets_no_more_clicks():
    """Its score stays for the rounds that are left."""
    predictor = Scripted(TRUTH)
    assert dice_per_click(predictor, "a", TRUTH) == [1, 1, 1, 1, 1]
    assert len(predictor.clicks) == 1


def test_a_mask_that_never_comes_scores_zero():
    """Every round gets its click all the same."""
    predictor = Scripted(*[np.zeros_like(TRUTH)] * 5)
    assert dice_per_click(predictor, "a", TRUTH) == [0, 0, 0, 0, 0]
    assert len(predictor.clicks) == 5


def test_an_empty_truth_is_refused():
    """There is nowhere to click, and no object is left behind."""
    predictor = Scripted()
    with pytest.raises(ValueError, match="the truth of object 'a' is empty"):
        dice_per_click(predictor, "a", np.zeros_like(TRUTH))
    assert predictor.objects == []


def test_a_taken_name_is_refused(make_engine, blobs):
    """The predictor's own rule reaches the caller."""
    predictor = Predictor(make_engine(), roi=16)
    predictor.set_image(blobs(16, 16, 16))
    predictor.add_object("a")
    with pytest.raises(ValueError, match="there is an object 'a' already"):
        dice_per_click(predictor, "a", np.ones((16, 16, 16), bool))


@pytest.mark.parametrize("strategy", ["adaptive", "reference"])
def test_with_a_real_predictor(make_engine, blobs, strategy):
    """Five rounds on a network that knows nothing: five scores, and clicks in the ledger as simulated."""
    predictor = Predictor(make_engine(), strategy, roi=16)
    image = blobs(16, 20, 18)
    predictor.set_image(image)
    truth = image > np.quantile(image, 0.8)
    scores = dice_per_click(predictor, "a", truth)
    assert len(scores) == 5
    assert all(0 <= score < 1 for score in scores)
    clicks = predictor.ledger.clicks("a")
    assert len(clicks) == 5
    assert [click.positive for click in clicks] == [bool(truth[click.kji]) for click in clicks]
