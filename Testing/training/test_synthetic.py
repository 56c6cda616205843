"""Scenes are finite, labelled with what is really in them, and made by the generator alone."""

from __future__ import annotations

import numpy as np
import pytest

from Training import synthetic
from Training.synthetic import (
    INVENTED,
    cells,
    distance_to_border,
    invented_scene,
    layers,
    neurites,
    paint,
    painted_scene,
    paste_lesions,
    regions,
    remap,
    rotation,
    scan,
    smooth_noise,
    thick_slices,
)

KINDS = [kind for _, kind in INVENTED]
SIZE = 24


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [16, SIZE])
def test_invented_scenes_are_sound(kind, size):
    """Finite float32 images with contrast, int32 labels from 0 up; most have something to click on."""
    clickable = 0
    for seed in range(25):
        scene = kind(np.random.default_rng(seed), size)
        assert scene.image.shape == scene.labels.shape == (size,) * 3
        assert scene.image.dtype == np.float32
        assert scene.labels.dtype == np.int32
        assert np.isfinite(scene.image).all()
        assert np.ptp(scene.image) > 0
        assert scene.labels.min() >= 0
        clickable += bool((np.bincount(scene.labels.ravel())[1:] >= 60).any())
    assert clickable >= 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_labels_can_be_told_in_the_image(monkeypatch, kind):
    """Without scanner artefacts: labels explain more of the image than the same labels turned around do."""
    monkeypatch.setattr(synthetic, "scan", lambda rng, image: image)
    explained = []
    for seed in range(20):
        scene = kind(np.random.default_rng(seed), SIZE)
        if len(np.unique(scene.labels)) > 1:
            explained.append(share_explained(scene.image, scene.labels))
            explained[-1] -= share_explained(scene.image, scene.labels[::-1, ::-1, ::-1])
    assert len(explained) >= 15
    assert np.mean(explained) > 0.05


def share_explained(image, labels):
    """Share of the image's variance that lies between labels."""
    _, index = np.unique(labels, return_inverse=True)
    counts = np.bincount(index.ravel())
    means = np.bincount(index.ravel(), image.ravel()) / counts
    return float(np.var(means[index.ravel()]) / np.var(image))


@pytest.mark.parametrize("kind", [*KINDS, invented_scene], ids=lambda kind: kind.__name__)
def test_a_seed_is_a_scene(kind):
    """The same generator gives the same scene; another one another."""
    first, again, other = (kind(np.random.default_rng(seed), 16) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, other.image)


def test_kinds_are_drawn_by_their_shares(monkeypatch, rng):
    """Shares add up to 1 and are kept."""
    assert sum(share for share, _ in INVENTED) == pytest.approx(1)
    drawn = []
    spies = tuple((share, lambda rng, size, n=n: drawn.append(n)) for n, (share, _) in enumerate(INVENTED))
    monkeypatch.setattr(synthetic, "INVENTED", spies)
    for _ in range(2000):
        invented_scene(rng, 8)
    for n, (share, _) in enumerate(INVENTED):
        assert drawn.count(n) / 2000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 2000))


def test_paint_gives_each_label_one_brightness(monkeypatch, rng):
    """Without texture a label has one value, and labels differ."""
    monkeypatch.setattr(synthetic, "smooth_noise", lambda rng, size, scale: np.zeros((size,) * 3, np.float32))
    labels = np.zeros((8, 8, 8), np.int32)
    labels[:4], labels[:, :, 6:] = 7, -3
    image = paint(rng, labels, spread=1.0)
    values = [np.unique(image[labels == label]) for label in (0, 7, -3)]
    assert [len(v) for v in values] == [1, 1, 1]
    assert len({float(v[0]) for v in values}) == 3
    assert all(0 <= v[0] <= 1 for v in values)


def test_regions_are_a_partition(rng):
    """Every voxel has one of the labels 1..count."""
    labels = regions(rng, 16, 4, 6.0)
    assert set(np.unique(labels)) <= {1, 2, 3, 4}
    assert len(np.unique(labels)) > 1
    assert (regions(rng, 8, 1, 4.0) == 1).all()


def test_smooth_noise_is_as_smooth_as_asked(rng):
    """Neighbours are alike at scale 8 and strangers at scale 1; mean near 0, variance near 0.3."""
    rough, smooth = smooth_noise(rng, 32, 1.0), smooth_noise(rng, 32, 8.0)
    for noise in (rough, smooth):
        assert noise.shape == (32, 32, 32)
        assert noise.dtype == np.float32
        assert abs(noise.mean()) < 0.3
    variance = np.mean([smooth_noise(np.random.default_rng(seed), 16, 4.0).var() for seed in range(100)])
    assert variance == pytest.approx(0.3, abs=0.05)
    jump = [np.abs(np.diff(n, axis=0)).mean() / n.std() for n in (rough, smooth)]
    assert jump[0] > 0.8
    assert jump[1] < 0.25


def test_rotations_keep_lengths(rng):
    """Rows are orthonormal."""
    for _ in range(10):
        turned = rotation(rng)
        assert np.allclose(turned @ turned.T, np.eye(3), atol=1e-5)


def test_neurites_are_long():
    """Objects are longer than wide, as cells are not."""

    def longest(kind):
        ratios = []
        for seed in range(12):
            labels = kind(np.random.default_rng(seed), SIZE).labels
            label = 1 + int(np.bincount(labels.ravel())[1:].argmax())
            widths = np.sqrt(np.linalg.eigvalsh(np.cov(np.argwhere(labels == label).T)))
            ratios.append(widths[2] / widths[1])
        return np.median(ratios)

    assert longest(neurites) > 1.15 * longest(cells)


def test_layers_lie_within_one_another():
    """Most neighbours of a layer that are layers are the next ones."""
    next_ones = []
    for seed in range(12):
        labels = layers(np.random.default_rng(seed), SIZE).labels
        a, b = labels[1:].ravel(), labels[:-1].ravel()
        step = np.abs(a - b)[(a > 0) & (b > 0) & (a != b)]
        next_ones += [(step == 1).mean()] if len(step) else []
    assert len(next_ones) >= 8
    assert np.mean(next_ones) > 0.8


def test_distance_to_a_border_by_hand():
    """The last voxel before another label is the border; along all axes."""
    assert distance_to_border(np.array([3, 3, 3, 5, 5])).tolist() == [2, 1, 0, 1, 2]
    flat = np.zeros((4, 3), int)
    flat[2:] = 1
    assert distance_to_border(flat).tolist() == [[1] * 3, [0] * 3, [1] * 3, [2] * 3]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_thick_slices_blur_one_axis(rng, axis, step):
    """Constant images stay, other axes keep their contrast, the thick one loses it."""
    assert np.allclose(thick_slices(np.full((13, 13, 13), 5.0), axis, step), 5)
    stripes = np.zeros((13, 13, 13), np.float32)
    along = [slice(None)] * 3
    along[axis] = slice(None, None, 2)
    stripes[tuple(along)] = 1
    assert thick_slices(stripes, axis, step).shape == stripes.shape
    assert np.allclose(thick_slices(stripes, (axis + 1) % 3, step), stripes, atol=1e-6)
    assert np.ptp(thick_slices(stripes, axis, step)) < 0.5


@pytest.mark.parametrize("process", [scan, remap])
def test_scanning_anything_stays_finite(process):
    """Also constant, negative and huge images."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        for image in (
            np.zeros((8, 8, 8), np.float32),
            np.full((8, 8, 8), -7.0, np.float32),
            1e4 * rng.standard_normal((8, 8, 8)).astype(np.float32),
        ):
            scanned = process(rng, image)
            assert scanned.shape == image.shape
            assert scanned.dtype == np.float32
            assert np.isfinite(scanned).all()


def test_lesions_get_labels_of_their_own():
    """Above the labels that are there; elsewhere nothing changes, and the input is left alone."""
    labels = np.full((20, 20, 20), 3, np.int32)
    labels[:5] = 7
    before = labels.copy()
    pasted = 0
    for seed in range(20):
        with_lesions = paste_lesions(np.random.default_rng(seed), labels, [np.ones((4, 5, 6), bool)])
        new = with_lesions > 7
        pasted += bool(new.any())
        assert np.array_equal(with_lesions[~new], labels[~new])
        assert set(np.unique(with_lesions[new])) <= {8, 9, 10}
        assert np.array_equal(labels, before)
    assert pasted == 20


def test_a_lesion_larger_than_the_scene_is_shrunk():
    """It takes at most 0.7 of the side."""
    labels = np.zeros((10, 10, 10), np.int32)
    for seed in range(20):
        with_lesions = paste_lesions(np.random.default_rng(seed), labels, [np.ones((40, 40, 40), bool)])
        for label in np.unique(with_lesions)[1:]:
            extent = np.ptp(np.argwhere(with_lesions == label), axis=0) + 1
            assert extent.max() <= 7


def test_painted_scenes_keep_their_labels(monkeypatch):
    """What may be clicked is the label map, now and then with lesions on top; `main` is passed on."""
    monkeypatch.setattr(synthetic, "ULTRASOUND_SHARE", 0)
    labels = np.zeros((SIZE,) * 3, np.int32)
    labels[4:12, 4:12, 4:12], labels[14:20, 14:20, 14:20] = 5, 9
    with_lesions = 0
    for seed in range(30):
        scene = painted_scene(np.random.default_rng(seed), labels, 9, [np.ones((4, 4, 4), bool)])
        assert scene.main == 9
        assert np.isfinite(scene.image).all()
        assert scene.image.dtype == np.float32
        new = scene.labels > 9
        with_lesions += bool(new.any())
        assert np.array_equal(scene.labels[~new], labels[~new])
    assert 3 <= with_lesions <= 20
    assert np.array_equal(painted_scene(np.random.default_rng(0), labels, 5, []).labels, labels)


def test_lesions_in_a_map_of_one_label_leave_the_tissue_around_it(monkeypatch):
    """What is painted has labels and, as often as without lesions, tissue between them."""
    painted = []
    monkeypatch.setattr(synthetic, "paint", lambda rng, body: painted.append(body) or body.astype(np.float32))
    monkeypatch.setattr(synthetic, "acquire", lambda rng, image, labels, main: (labels > 1).any())
    labels = np.zeros((SIZE,) * 3, np.int32)
    labels[4:12, 4:12, 4:12] = 1
    with_lesions = [
        painted_scene(np.random.default_rng(n), labels, 1, [np.ones((4, 4, 4), bool)]) for n in range(60)
    ]
    tissue = [bool((body < 0).any()) for body, lesion in zip(painted, with_lesions, strict=True) if lesion]
    assert len(tissue) > 5
    assert all(tissue)


def test_scenes_are_seen_by_ultrasound_as_often_as_asked(monkeypatch):
    """About one in eight, with the labels that the probe leaves; all others keep theirs."""
    labels = np.zeros((SIZE,) * 3, np.int32)
    labels[4:20, 4:20, 4:20] = 5
    monkeypatch.setattr(synthetic, "ultrasound", lambda rng, image, labels: (image, labels * 0))
    scenes = [painted_scene(np.random.default_rng(seed), labels, 5, []) for seed in range(300)]
    assert all(scene.main == 5 for scene in scenes)
    gone = [not scene.labels.any() for scene in scenes]
    assert np.mean(gone) == pytest.approx(synthetic.ULTRASOUND_SHARE, abs=0.07)
    assert all(np.array_equal(scene.labels, labels) for scene, away in zip(scenes, gone) if not away)
