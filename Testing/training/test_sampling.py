"""Views of labelled volumes and what is asked for in them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from GSMedSegLib.roi import View, view_image
from Training import sampling
from Training.sampling import (
    LESION_SETS,
    MIN_VOXELS,
    Examples,
    LabelledVolume,
    _pieces,
    choose_targets,
    turn,
)

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
        view, piece = volume.view(rng, SIZE)
        wanted.append(piece.label)
        steps_mm = np.array(view.step_kji) * np.array(spacing) / min(spacing)
        assert steps_mm.max() / steps_mm.min() < 2
        assert view.size == SIZE
        seen += bool((volume.labels_in(view) == piece.label).any())
    assert seen >= 190
    assert 60 <= wanted.count(3) <= 140, "every label is as likely as any other"


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


def test_targets_by_hand(rng):
    """The main label comes first; too small, too large and background are never asked for."""
    labels = blocks(
        (12, 12, 12),
        (1, (0, 0, 0), (4, 4, 4)),
        (2, (0, 8, 0), (2, 10, 5)),  # 20 voxels
        (3, (6, 0, 0), (12, 12, 12)),
    )
    for _ in range(50):
        masks = choose_targets(rng, labels, main=1, count=5)
        assert [np.unique(labels[mask]).tolist() for mask in masks] == [[1], [3]]
        assert np.array_equal(masks[0], labels == 1)
        assert len(choose_targets(rng, labels, main=1, count=1)) == 1
    assert choose_targets(rng, np.ones((12, 12, 12), np.int32), 1, 5) == []
    assert choose_targets(rng, np.zeros((12, 12, 12), np.int32), 0, 5) == []


def test_targets_are_drawn_by_the_root_of_their_size(rng):
    """100 and 400 voxels: the larger is first two times out of three."""
    labels = blocks((12, 12, 12), (1, (0, 0, 0), (4, 5, 5)), (2, (6, 0, 0), (10, 10, 10)))
    first = [choose_targets(rng, labels, main=0, count=1)[0] for _ in range(2000)]
    share = np.mean([labels[mask].max() == 2 for mask in first])
    assert share == pytest.approx(2 / 3, abs=4 * np.sqrt(2 / 9 / 2000))


def test_targets_are_mostly_single_components(rng):
    """Three times out of four one component, by size, none if it is too small; else the whole label."""
    labels = blocks(
        (12, 12, 12), (1, (0, 0, 0), (4, 5, 5)), (1, (6, 0, 0), (12, 5, 10)), (1, (0, 11, 11), (2, 12, 12))
    )
    sizes = [sum(int(m.sum()) for m in choose_targets(rng, labels, 1, 1)) for _ in range(2000)]
    assert set(sizes) <= {402, 300, 100, 0}
    assert sizes.count(402) / 2000 == pytest.approx(0.25, abs=0.04)
    assert sizes.count(300) / 2000 == pytest.approx(0.75 * 300 / 402, abs=0.045)
    assert sizes.count(100) / 2000 == pytest.approx(0.75 * 100 / 402, abs=0.04)


def test_turning_moves_image_and_targets_alike(rng):
    """All 48 ways to lay a cube on a cube come, and what was bright in the image is still the target."""
    image = torch.arange(27.0).reshape(3, 3, 3)
    targets = torch.stack([image == n for n in (0, 5)])
    ways = set()
    for _ in range(600):
        example = turn(rng, image, targets)
        assert torch.equal(example.targets[0], example.image == 0)
        assert torch.equal(example.targets[1], example.image == 5)
        ways.add(tuple(example.image.flatten().tolist()))
    assert len(ways) == 48


@pytest.mark.parametrize("source", [0, 1, 2], ids=["real", "maps", "invented"])
def test_examples_of_every_source(training_data, source):
    """Images scaled to about 0..1, and targets large enough to click on."""
    shares = tuple(float(n == source) for n in range(3))
    examples = Examples(training_data, SIZE, 2, shares, seed=1)
    for example in islice(examples, 10):
        assert example.image.shape == (SIZE,) * 3
        assert example.image.dtype == torch.float32
        assert torch.isfinite(example.image).all()
        inside = example.image[example.image != 0]  # beyond the volume all is 0
        assert torch.quantile(inside, 0.99).item() == pytest.approx(1, abs=0.02)
        assert 1 <= len(example.targets) <= 2
        assert example.targets.dtype == torch.bool
        assert example.targets.flatten(1).sum(1).min() >= MIN_VOXELS


def test_a_seed_is_a_stream(training_data):
    """The same seed, the same examples; another one, others."""
    streams = [list(islice(Examples(training_data, SIZE, 2, (0.4, 0.3, 0.3), seed), 5)) for seed in (1, 1, 2)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(streams[0], streams[1]))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(streams[0], streams[1]))
    assert not any(torch.equal(a.image, b.image) for a, b in zip(streams[0], streams[2]))


def test_the_data_folder_is_sorted_into_its_parts(training_data):
    """Volumes by set, label maps by set, lesions apart; the lesion sets are no scenes."""
    examples = Examples(training_data, SIZE, 2, (1.0, 0.0, 0.0), seed=0)
    assert {name: len(volumes) for name, volumes in examples.volumes.items()} == {"blobs": 2}
    assert {name: len(maps) for name, maps in examples.maps.items()} == {"regions": 1}
    assert [lesion.shape for lesion in examples.lesions] == [(6, 5, 5)]
    assert "open_ms_lesions" in LESION_SETS
    volume = examples.volumes["blobs"][0]
    assert volume.labels.shape == volume.image.shape == (20, 28, 24)
    assert volume.spacing_mm.tolist() == [2, 1, 1]


def test_the_trainers_own_process_keeps_its_threads(training_data):
    """Examples made in the training process itself do not take the network's threads away."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(iter(Examples(training_data, SIZE, 2, (0.0, 0.0, 1.0), seed=0)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_worker_processes_make_different_examples(training_data):
    """Two workers, two streams."""
    examples = Examples(training_data, SIZE, 2, (0.0, 0.0, 1.0), seed=0)
    loader = DataLoader(examples, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    first, second = islice(iter(loader), 2)
    assert not torch.equal(first.image, second.image)


@pytest.mark.slow
def test_the_data_we_train_on(data_dir):
    """The real folder is read whole, and each source gives sound examples."""
    examples = Examples(data_dir, 24, 3, (0.4, 0.3, 0.3), seed=0)
    assert examples.volumes
    assert examples.maps
    assert examples.lesions
    assert all(
        volume.pieces for group in (*examples.volumes.values(), *examples.maps.values()) for volume in group
    )
    for shares in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
        examples.shares = shares
        for example in islice(examples, 10):
            assert torch.isfinite(example.image).all()
            assert example.targets.flatten(1).sum(1).min() >= sampling.MIN_VOXELS
