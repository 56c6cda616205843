"""Views turned and bent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from GSMedSegLib.roi import Pyramid, View, outside_mask
from Training import bent
from Training.bent import BentView, rotation_about
from Training.volumes import LabelledVolume

VIEWS = [
    View((9.5, 8.0, 10.5), (1.0, 1.0, 1.0), 12),
    View((4.0, 15.0, 10.0), (0.6, 2.4, 1.3), 12),
    View((9.5, 8.0, 10.5), (4.1, 3.0, 5.0), 12),
]
"""At the volume's resolution, anisotropic, and much wider than the volume."""


@pytest.fixture
def volume(rng) -> LabelledVolume:
    """Noise with two labels in it, (20, 18, 22) voxels."""
    labels = np.zeros((20, 18, 22), np.uint8)
    labels[4:14, 3:12, 5:17], labels[15:19, 10:17, 2:9] = 1, 2
    return LabelledVolume(labels, (1.0, 1.0, 1.0), rng.normal(size=labels.shape))


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_changed_is_the_view(volume, view, rng, monkeypatch):
    """Neither turned nor stretched nor bent: the labels, samples and outside of the straight view."""
    for name in ("MOST_TURNED", "STRETCH", "MOST_BENT"):
        monkeypatch.setattr(bent, name, 0.0)
    same = BentView.draw(rng, view)
    assert np.array_equal(same.outside(volume.labels.shape), outside_mask(view, volume.labels.shape).numpy())
    assert np.array_equal(same.labels(volume.labels), volume.labels_in(view))
    torch.testing.assert_close(same.samples(volume.image), volume.image.sample(view), rtol=1e-4, atol=1e-4)


def test_a_rotation_by_hand():
    """A quarter turn about the first axis brings the second to the third."""
    turn = rotation_about(np.array([1.0, 0, 0]), math.pi / 2)
    np.testing.assert_allclose(turn @ [5, 1, 0], [5, 0, 1], atol=1e-12)
    general = rotation_about(np.array([2.0, -1, 2]) / 3, 0.7)
    np.testing.assert_allclose(general @ general.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(general @ [2, -1, 2], [2, -1, 2], atol=1e-12)
    assert np.trace(general) == pytest.approx(1 + 2 * math.cos(0.7))


def test_a_turn_is_in_space_and_not_in_voxels(rng, monkeypatch):
    """Samples stay as far apart in space as they were, in voxels of any shape."""
    for name in ("STRETCH", "MOST_BENT"):
        monkeypatch.setattr(bent, name, 0.0)
    step = np.array([0.25, 1.0, 2.0])
    turned = BentView.draw(rng, View((50.0, 50.0, 50.0), tuple(step), 8))
    places = turned.points_kji / step[:, None, None, None]
    for axis in range(1, 4):
        np.testing.assert_allclose(np.linalg.norm(np.diff(places, axis=axis), axis=0), 1, rtol=1e-3)
    assert not np.allclose(np.diff(turned.points_kji[0], axis=0), step[0], rtol=0.01)
    np.testing.assert_allclose(turned.points_kji.mean((1, 2, 3)), 50, atol=1e-3)


def test_image_and_labels_are_bent_alike(rng):
    """Where the image shows a ball, the labels have it; and it is not where it was."""
    at = np.indices((40, 40, 40))
    ball = (((at - 19.5) ** 2).sum(0) < 12**2).astype(np.uint8)
    view, image = View((22.0, 18.0, 20.0), (1.0, 1.0, 1.0), 32), Pyramid(torch.from_numpy(ball).float())
    moved = []
    for _ in range(10):
        changed = BentView.draw(rng, view)
        labels = changed.labels(ball) == 1
        shown = changed.samples(image).numpy() > 0.5
        assert 2 * (labels & shown).sum() / (labels.sum() + shown.sum()) > 0.97
        straight = image.sample(view).numpy() > 0.5
        moved.append(2 * (labels & straight).sum() / (labels.sum() + straight.sum()))
    assert max(moved) < 0.99
    assert min(moved) > 0.6  # the object is still in its view


def test_far_outside_nothing_is_labelled(volume, rng):
    """Labels end at the volume's border; the image's border goes on, and is said to be outside."""
    full = np.ones_like(volume.labels)
    wide = BentView.draw(rng, View((9.5, 8.5, 10.5), (4.0, 4.0, 4.0), 16))
    outside = wide.outside(full.shape)
    assert 0.6 < outside.mean() < 0.99
    assert np.array_equal(wide.labels(full) == 0, outside)
