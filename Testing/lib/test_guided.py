"""Masks of coarse views follow the edges of the image between the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from GSMedSegLib import guided as guided_filter
from GSMedSegLib.guided import LIMIT, guided_to_image_grid, noise_of
from GSMedSegLib.roi import Pyramid, View, to_image_grid, view_box

SIDE, STEP = 64, 4.0


def coarse(image: np.ndarray, truth: np.ndarray, step: float = STEP) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network that knows the truth at the samples would lead to: guided, and plainly trilinear."""
    view = View((31.5, 31.5, 31.5), (step,) * 3, int(SIDE / step))
    box = view_box(view, image.shape)
    assert box is not None
    pyramid = Pyramid(torch.from_numpy(image))
    share = Pyramid(torch.from_numpy(truth.astype(np.float32))).sample(view)
    logits = 8 * (share - 0.5)
    guided = guided_to_image_grid(logits, pyramid.sample(view), pyramid.image[box], view, box)
    return guided > 0, to_image_grid(logits, view, box) > 0


def dice(mask: torch.Tensor, truth: np.ndarray) -> float:
    return float(2 * (mask.numpy() & truth).sum() / (mask.sum() + truth.sum()))


@pytest.mark.parametrize("edge", [29, 30, 31, 33])
def test_a_plane_between_the_samples_is_found(edge: int):
    """The image is brighter from a plane on; the samples are four voxels apart."""
    truth = np.zeros((SIDE,) * 3, bool)
    truth[edge:] = True
    guided, _ = coarse(np.where(truth, 200.0, 50.0).astype(np.float32), truth)
    assert np.array_equal(guided.numpy(), truth)


def test_bumps_of_a_noisy_surface_are_followed():
    """A ball with bumps smaller than the samples: nearer to the truth than by interpolation."""
    rng = np.random.default_rng(0)
    k, j, i = np.mgrid[:SIDE, :SIDE, :SIDE] - (SIDE - 1) / 2
    bumps = ndimage.gaussian_filter(rng.normal(size=(SIDE,) * 3), 1.5)
    truth = np.sqrt(k**2 + j**2 + i**2) + 12 * bumps / bumps.std() / 4 < 20
    image = np.where(truth, 200.0, 50.0) + rng.normal(0, 10, truth.shape)
    guided, plain = coarse(image.astype(np.float32), truth)
    assert dice(guided, truth) > dice(plain, truth) + 0.03


def test_noise_makes_no_specks(monkeypatch):
    """A ball hardly brighter than what is around it beside the noise: its border is one surface."""
    rng = np.random.default_rng(0)
    k, j, i = np.mgrid[:SIDE, :SIDE, :SIDE] - (SIDE - 1) / 2
    truth = np.sqrt(k**2 + j**2 + i**2) < 20
    image = (np.where(truth, 130.0, 90.0) + rng.normal(0, 12, truth.shape)).astype(np.float32)

    def specks():
        mask = coarse(image, truth)[0].numpy()
        return ndimage.label(mask)[1] - 1 + ndimage.label(~mask)[1] - 1, dice(torch.from_numpy(mask), truth)

    quiet, good = specks()
    monkeypatch.setattr(guided_filter, "NOISE", np.inf)
    loud, less_good = specks()
    assert loud > 50
    assert quiet < 0.05 * loud
    assert good > less_good


def test_the_noise_of_an_image(rng):
    """Normal noise on steps and a slope; none without it, and none where lines are too short to see it."""
    steps = np.add.outer(np.repeat([0.0, 500.0, 100.0], 10), np.arange(40.0))[:, None]
    clean = torch.from_numpy(np.broadcast_to(steps, (30, 20, 40)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(0, 7, clean.shape).astype(np.float32))
    assert noise_of(clean) == pytest.approx(0, abs=1e-4)
    assert noise_of(clean + noise) == pytest.approx(7, rel=0.05)
    assert noise_of((clean + noise).permute(2, 0, 1)) == pytest.approx(7, rel=0.05)
    assert noise_of(torch.rand(2, 2, 2)) == 0


def test_a_flat_image_only_smooths():
    """Without an edge to follow, a ball of 25 samples, as large as objects are in their views, stays one."""
    k, j, i = np.mgrid[:SIDE, :SIDE, :SIDE] - (SIDE - 1) / 2
    truth = np.sqrt(k**2 + j**2 + i**2) < 25
    guided, plain = coarse(np.full((SIDE,) * 3, 7.0, np.float32), truth, 2.0)
    assert dice(guided, plain.numpy()) > 0.97


@pytest.mark.parametrize("corner", [(0, 0, 0), (5, 9, 3), (12, 12, 12)])
def test_only_what_is_near_is_computed(rng, monkeypatch, corner):
    """A few samples of an object: the same as when the whole box is computed. None: nothing there."""
    view = View((30.0, 33.0, 28.0), (STEP, 0.9 * STEP, 1.2 * STEP), 16)
    image = torch.from_numpy(rng.normal(size=(SIDE,) * 3).astype(np.float32))
    box = view_box(view, image.shape)
    assert box is not None
    logits = torch.full((16,) * 3, -9.0)
    k, j, i = corner
    logits[k : k + 4, j : j + 3, i : i + 4] = torch.from_numpy(rng.normal(0, 4, (4, 3, 4)).astype(np.float32))
    arguments = (Pyramid(image).sample(view), image[box], view, box)
    monkeypatch.setattr(guided_filter, "noise_of", lambda image: 0.4)  # it is that of what is near
    quick = guided_to_image_grid(logits, *arguments)
    nothing = guided_to_image_grid(torch.full_like(logits, -9.0), *arguments)
    assert (nothing == -LIMIT).all()
    assert 0.01 < (quick > -LIMIT + 1e-3).float().mean() < 0.2
    monkeypatch.setattr(guided_filter, "_near", lambda samples, view, box: box)
    torch.testing.assert_close(quick, guided_to_image_grid(logits, *arguments), rtol=1e-4, atol=1e-4)


def test_what_is_found_beyond_the_image_is_nothing():
    """A view wider than its image, and an answer only in its empty corner."""
    view, image = View((8.0, 8.0, 8.0), (STEP,) * 3, 16), torch.ones(16, 16, 16)
    box = view_box(view, image.shape)
    assert box is not None
    logits = torch.full((16,) * 3, -9.0)
    logits[:2, :2, :2] = 5.0
    found = guided_to_image_grid(logits, Pyramid(image).sample(view), image[box], view, box)
    assert found.shape == image.shape
    assert (found == -LIMIT).all()
