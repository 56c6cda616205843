"""Windows as MONAI cuts them; views whose samples can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.apps.vista3d.inferer import _get_window_idx_c, _pad_previous_mask

from GSMedSegLib import roi
from GSMedSegLib.roi import (
    Pyramid,
    View,
    center_window,
    even_contrast,
    inside_center,
    outside_mask,
    symmetric_padding,
    to_image_grid,
    view_box,
    view_image,
)


def ramp(*shape):
    """An image whose trilinear interpolation is exact: 100 k + 10 j + i, plus 1 so that nothing is 0."""
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    return 100 * k + 10 * j + i + 1


def ramp_at(view):
    """The same ramp at a view's samples."""
    k, j, i = (
        start + step * torch.arange(view.size, dtype=torch.float64)
        for start, step in zip(view.start_kji, view.step_kji)
    )
    return (100 * k[:, None, None] + 10 * j[:, None] + i + 1).float()


@pytest.mark.parametrize("roi", [4, 6, 32])
def test_windows_are_monais(roi):
    """Every point of axes from exactly one window to more than two windows long."""
    for length in range(roi, 2 * roi + 3):
        for point in range(length):
            window = center_window(point, roi, length)
            assert (window.start, window.stop) == _get_window_idx_c(point, roi, length)
            assert window.stop - window.start == roi
            assert 0 <= window.start <= point < window.stop <= length


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 7, 20), (8, 8, 8), (2, 9, 6)])
def test_padding_is_monais(shape):
    """Missing voxels go half before, half after; the odd one after."""
    ours = symmetric_padding(shape, 8)
    padded, theirs = _pad_previous_mask(torch.zeros(1, 1, *shape), [8, 8, 8])
    assert [n for pair in reversed(ours) for n in pair] == theirs
    assert tuple(n + a + b for n, (a, b) in zip(shape, ours)) == padded.shape[2:]


def test_padding_by_hand():
    """5 voxels up to 8: one before, two after; more than 8 stay."""
    assert symmetric_padding((5, 8, 11), 8) == ((1, 2), (0, 0), (0, 0))


def test_a_view_by_hand():
    """Four samples, 2 voxels apart, around 10: at 7, 9, 11, 13."""
    view = View((10.0, 20.0, 30.0), (2.0, 1.0, 0.5), 4)
    assert view.start_kji == (7, 18.5, 29.25)
    assert view.to_image(np.array([[0, 0, 0], [3, 3, 3]])).tolist() == [[7, 18.5, 29.25], [13, 21.5, 30.75]]
    assert view.to_view(np.array([[10, 20, 30], [9, 18.5, 30.75]])).tolist() == [[1.5, 1.5, 1.5], [1, 0, 3]]


def test_view_and_image_are_inverse(rng):
    """There and back is where one was."""
    view = View((3.25, -7.0, 41.5), (0.7, 3.3, 1.0), 12)
    points = rng.normal(0, 50, (20, 3))
    assert np.allclose(view.to_view(view.to_image(points)), points)
    assert np.allclose(view.to_image(view.to_view(points)), points)


def test_a_view_of_the_whole_image_is_the_image():
    """Step 1, as many samples as voxels, centred: every sample is a voxel, none is shifted by half of one."""
    image = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
    view = View((3.5, 3.5, 3.5), (1.0, 1.0, 1.0), 8)
    assert torch.allclose(Pyramid(image).sample(view), image, atol=1e-6)
    assert torch.allclose(to_image_grid(image, view, (slice(0, 8),) * 3), image, atol=1e-6)


@pytest.mark.parametrize(
    ("center", "step"),
    [
        ((20.0, 24.0, 30.0), (1.0, 1.0, 1.0)),
        ((20.5, 24.5, 30.5), (1.0, 1.0, 1.0)),
        ((20.3, 24.7, 30.1), (0.5, 0.8, 1.3)),
        ((20.5, 24.0, 30.0), (2.0, 2.0, 2.0)),
        ((19.0, 24.25, 31.0), (3.0, 2.5, 4.0)),
        ((20.0, 24.0, 30.0), (0.3, 1.0, 4.0)),
    ],
)
def test_samples_of_a_ramp_are_the_ramp(center, step):
    """Whatever the zoom, and the halved copy read for it: each sample has the value of its own position."""
    view = View(center, step, 8)
    samples = Pyramid(ramp(48, 48, 64)).sample(view)
    assert (samples - ramp_at(view)).abs().max() < 0.02


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 2.5])
def test_a_ramp_seen_and_brought_back_is_the_ramp(step):
    """A view's values return to the voxels that they came from, at any zoom and offset."""
    image = ramp(48, 48, 48)
    view = View((20.3, 22.0, 25.5), (step, step, 1.5), 12)
    inner = tuple(
        slice(int(np.ceil(start)), int(np.floor(start + 11 * s)) + 1)
        for start, s in zip(view.start_kji, view.step_kji)
    )
    back = to_image_grid(Pyramid(image).sample(view), view, inner)
    assert back.shape == image[inner].shape
    assert (back - image[inner]).abs().max() < 0.05


def test_a_wide_view_averages_what_it_skips():
    """At step 2 a sample between two voxels per axis is the mean of the eight, not one of them."""
    image = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0))
    view = View((7.5, 7.5, 7.5), (2.0, 2.0, 2.0), 8)
    means = image.reshape(8, 2, 8, 2, 8, 2).mean((1, 3, 5))
    assert torch.allclose(Pyramid(image).sample(view), means, atol=1e-6)


def test_levels_by_hand():
    """The largest power of two that is no wider than the step, 16 at most, and never wider than the image."""
    pyramid = Pyramid(torch.rand(3, 64, 512))
    assert pyramid.level((1.0, 1.9, 2.0))[1] == (1, 1, 2)
    assert pyramid.level((8.0, 8.0, 100.0))[1] == (3, 8, 16)
    assert pyramid.level((8.0, 8.0, 100.0))[0].shape == (1, 8, 32)
    assert pyramid.level((0.1, 0.1, 0.1))[1] == (1, 1, 1)


def test_nearest_sampling_keeps_labels():
    """No label is invented between two others."""
    labels = torch.zeros(8, 8, 8, dtype=torch.int32)
    labels[:, :, 4:] = 9
    samples = Pyramid(labels).sample(View((3.5, 3.5, 3.6), (0.3, 0.3, 0.3), 8), mode="nearest")
    assert samples.unique().tolist() == [0, 9]
    at = 3.6 + 0.3 * (np.arange(8) - 3.5)
    assert samples[0, 0].tolist() == np.where(at > 3.5, 9, 0).tolist()


def test_outside_by_hand():
    """A voxel reaches half a voxel beyond its centre; past that is outside, and has the border's value."""
    view = View((0.0, 1.0, 1.0), (1.0, 1.0, 1.0), 4)
    # Along k the samples are at -1.5, -0.5, 0.5, 1.5 of an image with 2 voxels; along j and i at -0.5 .. 2.5.
    outside = outside_mask(view, (2, 3, 3))
    assert outside[:, 1, 1].tolist() == [True, False, False, False]
    assert outside[2, :, 1].tolist() == [False, False, False, False]
    assert outside_mask(view, (2, 3, 2))[2, 1].tolist() == [False, False, False, True]
    image = ramp(2, 3, 3)
    assert Pyramid(image).sample(view)[0, 1, 1].item() == pytest.approx(ramp_at(view)[1, 1, 1].item() + 50)


def test_the_box_of_a_view_by_hand():
    """A view from 7.5 to 11.5 covers voxels 8 to 11; what sticks out of the image is cut off."""
    view = View((9.5, 1.0, 0.0), (1.0, 1.0, 1.0), 4)
    assert view_box(view, (20, 20, 20)) == (slice(8, 12), slice(0, 4), slice(0, 3))
    assert view_box(view, (10, 2, 1)) == (slice(8, 10), slice(0, 2), slice(0, 1))
    assert view_box(view, (7, 20, 20)) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 30), (3, 3, 3), (4, 4, 500)])
def test_tiny_and_long_images_can_be_seen(shape):
    """One voxel thick or five hundred long: finite samples, and every voxel lies in the view's box."""
    middle = tuple((n - 1) / 2 for n in shape)
    step = max(shape) / 16
    view = View(middle, (step, step, step), 16)
    samples = Pyramid(ramp(*shape)).sample(view)
    assert torch.isfinite(samples).all()
    assert view_box(view, shape) == tuple(slice(0, n) for n in shape)
    assert not outside_mask(view, shape).all()
    assert samples.min() >= 1
    assert samples.max() <= ramp(*shape).max() * (1 + 1e-6)


def test_scaling_by_hand(monkeypatch):
    """Of 0..100 the 1st and 99th percentile are 1 and 99; beyond them there is room, but not without end."""
    monkeypatch.setattr(roi, "EVENNESS", 0.0)
    values = torch.arange(101.0)
    scaled = even_contrast(torch.tensor([1.0, 99.0, 50.0, 0.0, 1000.0, -1000.0]), values)
    assert scaled.tolist() == pytest.approx([0, 1, 0.5, -1 / 98, 2, -1])


def test_evening_out_by_hand(monkeypatch):
    """Four bins with 5, 1, 1 and 1 of eight voxels: wholly evened out, the first takes 5 / 8 of the range."""
    monkeypatch.setattr(roi, "EVENNESS", 1.0)
    monkeypatch.setattr(roi, "HISTOGRAM_BINS", 4)
    monkeypatch.setattr(torch, "quantile", lambda *_: torch.tensor([0.0, 1.0]))
    values = torch.tensor([0.0, 0.1, 0.1, 0.1, 0.2, 0.3, 0.6, 1.0])
    shown = even_contrast(torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]), values)
    assert shown.tolist() == pytest.approx([0, 5 / 16, 5 / 8, 6 / 8, 7 / 8, 1])


def test_frequent_intensities_get_the_contrast():
    """Organs between air and bone: a tenth of the range, with nearly all voxels, gets most of it."""
    organs = torch.linspace(0.45, 0.55, 9600)
    values = torch.cat((torch.zeros(200), organs, torch.ones(200)))
    low, high = even_contrast(torch.tensor([0.45, 0.55]), values).tolist()
    assert 0.5 < high - low < 1


def test_evening_out_keeps_the_order():
    """A brighter voxel stays at least as bright, whatever the histogram."""
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0)) ** 3
    shown = even_contrast(values.sort().values, values)
    assert (shown.diff() >= -1e-6).all()


def test_a_plain_background_is_not_blown_up():
    """Nine tenths of the voxels lie within a hundredth of the range: no bin counts too much."""
    generator = torch.Generator().manual_seed(0)
    flat = 0.2 + 0.01 * torch.rand(9000, generator=generator)
    shown = even_contrast(flat, torch.cat((flat, torch.rand(1000, generator=generator))))
    assert (shown.max() - shown.min()).item() < 0.3


def test_scaling_without_contrast():
    """A small bright object on nothing is scaled by its range; a constant view or no view is all zeros."""
    speck = torch.zeros(1000)
    speck[7] = 4
    assert even_contrast(speck, speck).max() == 1
    assert not even_contrast(torch.full((5,), 3.0), torch.full((5,), 3.0)).any()
    assert not even_contrast(torch.ones(5), torch.ones(0)).any()


def test_a_view_is_pushed_inside():
    """Half a view from the border where the image is wide enough, in its middle where it is not."""
    step = np.array([1.0, 2.0, 1.0])
    center = inside_center(np.array([0.0, 90.0, 50.0]), step, 16, (100, 100, 10))
    assert center.tolist() == [7.5, 83.5, 4.5]


def test_the_network_is_shown_zeros_outside():
    """Outside the image a view is 0 whatever the image; inside it is scaled by what is inside."""
    view = View((0.5, 7.5, 7.5), (1.0, 1.0, 1.0), 16)
    shown = view_image(Pyramid(ramp(16, 16, 16)), view)
    outside = outside_mask(view, (16, 16, 16))
    assert 0 < outside.sum() < outside.numel()
    assert not shown[outside].any()
    inside = shown[~outside]
    low, high = np.percentile(ramp_at(view)[~outside], [1, 99])
    assert inside.max().item() == pytest.approx(
        (ramp_at(view)[~outside].max().item() - low) / (high - low), abs=1e-3
    )
    assert torch.all(torch.diff(shown[8:, 3, 3]) > 0)
