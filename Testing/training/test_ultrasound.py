"""Ultrasound of a scene: the statistics of speckle, what lies behind a reflector, where the fan reaches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from Training.ultrasound import fan, speckle, transmission, ultrasound

SIZE = 32


def test_speckle_is_rayleigh_distributed(rng):
    """Its mean is 1, and its deviation sqrt(4/pi - 1) times that, whatever the probe's resolution."""
    for blur in ((0.4, 0.4, 0.4), (0.5, 1.5, 1.0)):
        envelope = speckle(rng, np.ones((64, 64, 64)), np.array(blur))[8:-8, 8:-8, 8:-8]
        assert envelope.mean() == pytest.approx(1, abs=0.03)
        assert envelope.std() == pytest.approx(np.sqrt(4 / np.pi - 1), abs=0.03)


def test_speckle_is_as_strong_as_its_tissue(rng):
    """A half that scatters three times as strongly shines three times as much."""
    amplitude = np.ones((48, 48, 48))
    amplitude[24:] = 3
    envelope = speckle(rng, amplitude, np.array([0.5, 1.0, 1.0]))
    assert envelope[28:].mean() / envelope[:20].mean() == pytest.approx(3, rel=0.05)


def test_speckle_is_coarser_across_the_beam(rng):
    """Neighbours across, where the resolution is worse, are more alike than neighbours along the beam."""
    envelope = speckle(rng, np.ones((48, 48, 48)), np.array([0.5, 1.5, 1.5]))
    alike = [
        np.corrcoef(np.delete(envelope, 0, a).ravel(), np.delete(envelope, -1, a).ravel())[0, 1]
        for a in (0, 1)
    ]
    assert alike[1] > alike[0] + 0.2


@pytest.mark.parametrize("beam", [0, 1, 2])
def test_behind_a_reflector_it_is_dark(beam):
    """The wave gets weaker with depth, never stronger, and less of it is left behind a bright block."""
    echo = np.moveaxis(np.zeros((SIZE,) * 3), 0, beam)
    np.moveaxis(echo, beam, 0)[8:12, 8:16, 8:16] = 3
    shadows = 0
    for seed in range(40):
        left = np.moveaxis(transmission(np.random.default_rng(seed), echo, beam), beam, 0)
        assert ((left > 0) & (left <= 1)).all()
        assert (np.diff(left, axis=0) <= 0).all()
        behind, beside = left[20, 12, 12], left[20, 28, 28]
        assert behind == pytest.approx(beside) or behind < 0.75 * beside
        shadows += behind < 0.75 * beside
    assert 5 < shadows < 30


def test_a_fan_widens_with_depth(rng):
    """Beams spread from before the volume: each depth is reached at least as widely as the one above it."""
    for _ in range(20):
        reached = fan(rng, SIZE, 0, 2)
        assert reached.shape == (SIZE,) * 3
        assert (reached == reached[:, :1]).all(), "alike along the sweep"
        widths = reached[: SIZE // 2, 0].sum(-1)
        assert (np.diff(widths) >= 0).all()
        assert reached.any()


def test_bright_tissue_stays_the_brighter_one():
    """Of a lesion that is brighter than what is around it the middle is brighter, in nearly every scene."""
    ball = sum((x - 15.5) ** 2 for x in np.ogrid[:SIZE, :SIZE, :SIZE]) < 8**2
    differences = []
    for seed in range(20):
        image, labels = ultrasound(
            np.random.default_rng(seed), ball.astype(np.float32), ball.astype(np.int32)
        )
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert set(np.unique(labels)) <= {0, 1}
        assert not image[(labels == 0) & ball].any(), "where the fan does not reach it is black"
        around = ndimage.binary_dilation(ball, iterations=3) & ~ball & (image > 0)
        differences.append(image[labels == 1].mean() - image[around].mean())
    assert np.mean(np.array(differences) > 0.02) >= 0.9


def test_anything_can_be_shown():
    """Constant, negative and huge images, a single label: finite, with contrast."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for image in (np.zeros((16,) * 3), np.full((16,) * 3, -7.0), 1e5 * rng.standard_normal((16,) * 3)):
            shown, _ = ultrasound(rng, image, np.ones((16,) * 3, np.int32))
            assert np.isfinite(shown).all()
            assert np.ptp(shown) > 0
