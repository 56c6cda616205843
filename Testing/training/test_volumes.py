"""Labelled volumes and the views cut out of them."""

from __future__ import annotations

import numpy as np
import pytest

from GSMedSegLib.case_source import CaseSource, LabelledCase, find_sources
from GSMedSegLib.npz import Case
from GSMedSegLib.roi import View, view_image
from Training.volumes import MIN_VOXELS, LabelledVolume, _pieces, load_case, load_lesions, load_map

SIZE = 16


def blocks(shape, *boxes):
    """Labels with a block of each (label, start, stop)."""
    labels = np.zeros(shape, np.uint8)
    for label, start, stop in boxes:
        labels[tuple(slice(a, b) for a, b in zip(start, stop))] = label
    return labels


def test_pieces_by_hand():
    """One piece per connected component; corners touch, specks are left out."""
    labels = blocks(
        (20, 20, 20),
        (2, (0, 0, 0), (4, 4, 4)),  # 64 voxels
        (2, (4, 4, 4), (8, 8, 8)),  # touches it at a corner
        (2, (12, 12, 12), (18, 18, 18)),
        (5, (12, 0, 0), (14, 3, 4)),  # 24 voxels: just enough
        (7, (0, 12, 0), (2, 14, 5)),  # 20: too few
    )
    found = sorted((piece.label, *((s.start, s.stop) for s in piece.box)) for piece in _pieces(labels))
    assert MIN_VOXELS == 24
    assert found == [
        (2, (0, 8), (0, 8), (0, 8)),
        (2, (12, 18), (12, 18), (12, 18)),
        (5, (12, 14), (0, 3), (0, 4)),
    ]


def test_labels_of_any_number():
    """Large ones get numbers that are free, 1 and 3 here; the small one keeps its own."""
    labels = blocks((8, 8, 24), (2, (0, 0, 0), (4, 4, 4))).astype(np.uint32)
    labels[4:, 4:, 8:16], labels[:4, :4, 16:] = 70_000, 4_000_000_000
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), None)
    assert [(piece.label, piece.box[2]) for piece in volume.pieces] == [
        (1, slice(8, 16)),
        (2, slice(0, 4)),
        (3, slice(16, 24)),
    ]


def test_crumbs_of_a_large_label_are_no_pieces():
    """A component of less than a fiftieth of the label's largest is a crumb."""
    labels = blocks((20, 20, 40), (1, (0, 0, 0), (20, 20, 10)), (1, (0, 0, 20), (4, 4, 4 + 20)))
    assert [piece.box[2] for piece in _pieces(labels)] == [slice(0, 10)]
    labels[:5, :4, 24] = 1
    labels[4, :4, 20:25] = 1
    assert (labels[:, :, 20:] > 0).sum() == 100 >= 0.02 * 4000
    assert [piece.box[2] for piece in _pieces(labels)] == [slice(0, 10), slice(20, 25)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (0.2, 0.1, 0.1)])
def test_views_show_their_piece(rng, spacing):
    """Samples are nearly cubic in space, and part of the piece is seen, wherever the view lies."""
    labels = blocks((24, 40, 40), (3, (6, 10, 10), (16, 30, 30)), (4, (2, 2, 2), (6, 8, 8)))
    volume = LabelledVolume(labels, spacing, None)
    seen, wanted = 0, []
    for _ in range(200):
        view, label = volume.view(rng, SIZE)
        wanted.append(label)
        steps_mm = np.array(view.step_kji) * np.array(spacing) / min(spacing)
        assert steps_mm.max() / steps_mm.min() < 2
        assert view.size == SIZE
        seen += bool((volume.labels_in(view) == label).any())
    assert seen >= 190
    assert 60 <= wanted.count(3) <= 140, "every label is as likely as any other"


def test_how_thick_a_single_slice_is_says_nothing(rng):
    """A slide of half a micrometre whose file says 1 mm from slice to slice is zoomed like any other."""
    labels = blocks((1, 40, 40), (3, (0, 10, 10), (1, 30, 30)))
    steps = []
    for thick in (0.0005, 1.0):
        volume = LabelledVolume(labels, (thick, 0.0005, 0.0005), None)
        steps.append([volume.view(np.random.default_rng(n), SIZE)[0] for n in range(20)])
    assert steps[0] == steps[1]


def test_labels_in_a_view_by_hand():
    """The nearest voxel's label; nothing outside."""
    labels = blocks((4, 4, 4), (1, (0, 0, 0), (4, 4, 2)), (2, (0, 0, 2), (4, 4, 4)))
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), None)
    seen = volume.labels_in(View((1.5, 1.5, 1.5), (1.0, 1.0, 1.0), 6))
    assert seen[2, 2].tolist() == [0, 1, 1, 2, 2, 0]
    assert not seen[0].any()
    fine = volume.labels_in(View((1.5, 1.5, 1.6), (1.0, 1.0, 0.5), 4))
    assert fine[1, 1].tolist() == [1, 1, 2, 2]  # at 0.85, 1.35, 1.85, 2.35


def test_image_and_labels_of_a_view_lie_on_each_other(rng):
    """An image that is its own label map, at any zoom: bright where the label is."""
    labels = blocks((30, 30, 30), (1, (8, 10, 12), (20, 22, 24)))
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), labels.astype(np.float32))
    compared = 0
    for _ in range(50):
        view, _ = volume.view(rng, SIZE)
        inside = volume.labels_in(view) == 1
        if not 0.02 < inside.mean() < 0.98:
            continue
        bright = view_image(volume.image, view).numpy() > 0.5
        compared += 1
        assert 2 * (bright & inside).sum() / (bright.sum() + inside.sum()) > 0.8
    assert compared >= 20


def test_the_seeds_crop_by_hand(rng):
    """The volume's own voxels, inside it, with a voxel of the wanted label; labels come equally often."""
    labels = blocks((40, 40, 40), (1, (0, 0, 0), (3, 3, 3)), (2, (10, 10, 10), (38, 38, 38)))
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), np.arange(40.0**3).reshape(40, 40, 40))
    wanted = []
    for _ in range(100):
        view, label = volume.crop(rng, SIZE)
        assert view.step_kji == (1.0, 1.0, 1.0)
        start = np.array(view.start_kji)
        assert (start == start.round()).all()
        assert (start >= 0).all()
        assert (start + SIZE <= 40).all()
        k, j, i = start.astype(int)
        part = labels[k : k + SIZE, j : j + SIZE, i : i + SIZE]
        assert np.array_equal(volume.labels_in(view), part)
        assert (part == label).any()
        wanted.append(label)
    assert 30 <= wanted.count(1) <= 70
    assert view_image(volume.image, view).shape == (SIZE,) * 3


def test_a_crop_of_a_small_volume_has_it_in_its_middle(rng):
    """Ten voxels in sixteen: three are missing on either side."""
    labels = blocks((10, 30, 30), (1, (2, 5, 5), (9, 20, 20)))
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), None)
    view, _ = volume.crop(rng, SIZE)
    assert view.start_kji[0] == -3
    cut = volume.labels_in(view)
    assert not cut[:3].any()
    assert not cut[13:].any()
    assert cut[5:12].any()


def test_intensities_are_scaled_by_percentiles(rng):
    """The 1st and 99th percentile become 0 and 1; clipped when asked to."""
    image = rng.normal(100, 10, (20, 20, 20))
    labels = blocks((20, 20, 20), (1, (5, 5, 5), (15, 15, 15)))
    for clip in (False, True):
        scaled = LabelledVolume(labels, (1.0, 1.0, 1.0), image, clip).image.level((1, 1, 1))[0].numpy()
        assert np.percentile(scaled, [1, 99]) == pytest.approx([0, 1], abs=1e-3)
        assert (scaled.min() < 0) != clip


def test_what_a_volume_weighs():
    """A byte a label, four a voxel of the image, and as much for each coarser copy that a view asked for."""
    labels = np.zeros((7, 10, 10), np.uint8)
    assert LabelledVolume(labels, (1.0, 1.0, 1.0), None).nbytes == 700
    ramp = np.arange(700.0).reshape(7, 10, 10)
    volume = LabelledVolume(labels, (1.0, 1.0, 1.0), ramp)
    assert volume.nbytes == 700 + 4 * 700
    assert volume.image is not None
    for _ in range(2):
        volume.image.level((2, 2, 1))
    assert volume.nbytes == 700 + 4 * 700 + 4 * (4 * 5 * 10)


def test_volumes_from_files(training_data):
    """A case with its image, a label map without, and the pieces of lesions."""
    sources = find_sources(training_data / "train" / "blobs")
    volume = load_case(sources[0], clip=False)
    assert volume.labels.shape == volume.image.shape == (20, 28, 24)
    assert volume.spacing_mm.tolist() == [2, 1, 1]
    maps = training_data / "train" / "labelmaps"
    assert load_map(maps / "regions" / "map.nii.gz").image is None
    assert [lesion.shape for lesion in load_lesions(maps / "open_ms_lesions")] == [(6, 5, 5)]


def test_a_case_without_labels_has_no_pieces():
    """It can be loaded; it is for others to pass it over."""
    case = Case(
        "a", np.arange(64, dtype=np.uint8).reshape(4, 4, 4), (1.0,) * 3, np.zeros((4, 4, 4), np.uint8)
    )
    source = CaseSource("a", "CT", (), lambda: LabelledCase(case))
    assert load_case(source, clip=True).pieces == []
