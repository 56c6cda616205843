"""The challenge's corrector at work: clicks placed on what is wrong, and the score after each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from GSMedSegLib.metrics import dice
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.simulation import next_click

ROUNDS = 5
"""Clicks per object in the challenge."""


def dice_per_click(
    predictor: Predictor, object_name: str, truth: NDArray[np.bool_], rounds: int = ROUNDS
) -> list[float]:
    """Segment one object with simulated clicks: the first in its middle, then in that of the largest error.

    Args:
        predictor: has the image; the object is added to it.
        object_name: a new name.
        truth: (K, J, I), not empty.
        rounds: clicks to place. A perfect mask gets no more clicks and keeps its score.

    Returns:
        Dice after each click.

    Raises:
        ValueError: an empty truth, or a name that is taken.
    """
    if not truth.any():
        raise ValueError(f"the truth of object {object_name!r} is empty; there is nothing to click on")
    predictor.add_object(object_name)
    mask = np.zeros_like(truth)
    scores: list[float] = []
    for _ in range(rounds):
        click = next_click(truth, mask)
        if click is not None:
            predictor.add_click(object_name, click.kji, click.positive)
            mask = predictor.predict(object_name)
        scores.append(dice(truth, mask))
    return scores
