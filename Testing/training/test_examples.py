"""What is asked for in a view, and that every number is one example, wherever it is drawn."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._utils import ExceptionWrapper

from GSMedSegLib.case_source import find_sources
from Training import examples
from Training.clicks import chance_of_step, further_clicks
from Training.config import Sampling, Source
from Training.examples import Draws, Pool, Share, choose_targets, cut, make_pools, stream
from Training.synthetic import distance_to_border
from Training.volumes import MIN_VOXELS

SIZE = 16
SAMPLING = Sampling(cases=1, views=2, objects=2, roi=SIZE)


def blocks(shape, *boxes):
    """Labels with a block of each (label, start, stop)."""
    labels = np.zeros(shape, np.uint8)
    for label, start, stop in boxes:
        labels[tuple(slice(a, b) for a, b in zip(start, stop))] = label
    return labels


def pools_of(data: Path, *kinds: str):
    """Sources of a small data folder."""
    sources = {
        "cases": (Source("cases", "blobs"), find_sources(data / "train" / "blobs")),
        "maps": (Source("maps", "labelmaps", lesions=("open_ms_lesions",)), []),
        "cells": (Source("maps", "labelmaps", lesions=("open_ms_lesions",), membranes=True), []),
        "scenes": (Source("scenes"), []),
    }
    return make_pools([sources[kind] for kind in kinds], data / "train", 2**30, clip=False)


def same(a, b):
    """Whether two lists of views are equal."""
    return all(
        torch.equal(x.image, y.image) and torch.equal(x.targets, y.targets) and x.seed == y.seed
        for x, y in zip(a, b, strict=True)
    )


def test_targets_by_hand(rng):
    """The main label comes first; too small, too large and background are never asked for."""
    labels = blocks(
        (12, 12, 12),
        (1, (0, 0, 0), (4, 4, 4)),
        (2, (0, 8, 0), (2, 10, 5)),  # 20 voxels
        (3, (6, 0, 0), (12, 12, 12)),
    )
    for _ in range(50):
        chosen = choose_targets(rng, labels, main=1, count=5, pieces=0.75)
        assert [label for label, _ in chosen] == [1, 3]
        assert all(np.array_equal(mask, labels == label) for label, mask in chosen)
        assert len(choose_targets(rng, labels, 1, 1, 0.75)) == 1
    assert choose_targets(rng, np.ones((12, 12, 12), np.int32), 1, 5, 0.75) == []
    assert choose_targets(rng, np.zeros((12, 12, 12), np.int32), 0, 5, 0.75) == []


def test_targets_are_drawn_by_the_root_of_their_size(rng):
    """100 and 400 voxels: the larger is first two times out of three."""
    labels = blocks((12, 12, 12), (1, (0, 0, 0), (4, 5, 5)), (2, (6, 0, 0), (10, 10, 10)))
    first = [choose_targets(rng, labels, 0, 1, 0.75)[0][0] for _ in range(2000)]
    assert np.mean(np.array(first) == 2) == pytest.approx(2 / 3, abs=4 * np.sqrt(2 / 9 / 2000))


@pytest.mark.parametrize("pieces", [0.0, 0.75])
def test_targets_are_single_components_as_often_as_asked(rng, pieces):
    """One component, by size, none if it is too small; else the whole label."""
    labels = blocks(
        (12, 12, 12), (1, (0, 0, 0), (4, 5, 5)), (1, (6, 0, 0), (12, 5, 10)), (1, (0, 11, 11), (2, 12, 12))
    )
    sizes = [sum(int(m.sum()) for _, m in choose_targets(rng, labels, 1, 1, pieces)) for _ in range(2000)]
    assert set(sizes) <= {402, 300, 100, 0}
    assert sizes.count(402) / 2000 == pytest.approx(1 - pieces, abs=0.04)
    assert sizes.count(300) / 2000 == pytest.approx(pieces * 300 / 402, abs=0.045)
    assert sizes.count(100) / 2000 == pytest.approx(pieces * 100 / 402, abs=0.04)


@pytest.mark.parametrize("by_view", [True, False], ids=["view", "volume"])
@pytest.mark.parametrize("kind", ["cases", "maps", "scenes"])
def test_examples_of_every_source(training_data, kind, by_view):
    """Images scaled to about 0..1, and targets large enough to click on."""
    sampling = replace(SAMPLING, augmentation="none")
    draws = Draws(pools_of(training_data, kind), sampling, by_view, seed=1)
    for example in (view for number in range(5) for view in draws[number]):
        assert example.image.shape == (SIZE,) * 3
        assert example.image.dtype == torch.float32
        assert torch.isfinite(example.image).all()
        assert -1 <= example.image.min() <= example.image.max() <= 2
        assert 1 <= len(example.targets) == len(example.labels) <= 2
        assert example.targets.dtype == torch.bool
        assert example.targets.flatten(1).sum(1).min() >= MIN_VOXELS


@pytest.mark.parametrize("crop", ["views", "voxels"])
@pytest.mark.parametrize(("augmentation", "bent"), [("seed", 0.0), ("usual", 0.0), ("usual", 0.999)])
def test_a_number_is_an_example(training_data, crop, augmentation, bent):
    """Drawn twice, in any order, by whomever: the same. Another number, or another seed: another one."""
    sampling = replace(SAMPLING, crop=crop, augmentation=augmentation, bent=bent)

    def draws(seed):
        return Draws(pools_of(training_data, "cases", "maps", "scenes"), sampling, True, seed)

    first, again = draws(1), draws(1)
    forwards = [first[n] for n in range(4)]
    backwards = [again[n] for n in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards))
    assert not torch.equal(forwards[0][0].image, forwards[1][0].image)
    assert not torch.equal(forwards[0][0].image, draws(2)[0][0].image)


def test_an_epoch_shows_every_case_once(training_data):
    """Of a single source; in another order the next time round."""
    draws = Draws(pools_of(training_data, "cases"), SAMPLING, True, seed=0)
    names = [draws[number][0].name for number in range(12)]
    rounds = [tuple(names[n : n + 2]) for n in range(0, 12, 2)]
    assert all(set(several) == {"case_a", "case_b"} for several in rounds)
    assert len(set(rounds)) == 2


def test_processes_share_every_step():
    """Three cases a step over two processes: each number goes to one of them, in the step it belongs to."""
    assert [list(Share(4, 6, 3, rank, 2)) for rank in (0, 1)] == [[12, 14, 15, 17], [13, 16]]
    assert list(Share(0, 2, 1, 1, 2)) == []


def test_a_case_without_labels_gives_empty_views(training_data):
    """Nobody waits for what is not there."""
    pools = pools_of(training_data, "cases")
    for index in range(2):
        pools[0].volumes[index].pieces.clear()
    views = Draws(pools, SAMPLING, True, 0)[0]
    assert [len(view.targets) for view in views] == [0, 0]
    assert views[0].image.shape == (SIZE,) * 3


def test_label_maps_are_named_by_set(training_data, tmp_path):
    """Lesion sets are pasted, not drawn from; what is missing is said."""
    (pool,) = pools_of(training_data, "maps")
    assert pool.names == ["regions/map.nii.gz"]
    assert [lesion.shape for lesion in pool.lesions] == [(6, 5, 5)]
    with pytest.raises(ValueError, match=r"no label maps; expected folders with \*.nii.gz"):
        make_pools([(Source("maps", "blobs"), [])], tmp_path, 1, clip=False)
    missing = Source("maps", "labelmaps", lesions=("nodules",))
    with pytest.raises(ValueError, match="has no folder nodules, which `lesions` names"):
        make_pools([(missing, [])], training_data / "train", 1, clip=False)


def test_label_maps_of_cells_have_membranes(training_data):
    """What lies on the border of a label looks unlike what lies within; beyond the map there is nothing."""

    def scenes(kind):
        (pool,) = pools_of(training_data, kind)
        draws = Draws([pool], replace(SAMPLING, roi=24, bent=0.5), True, 0)
        volume = pool.volumes[0]
        return [draws._cut(np.random.default_rng(seed), pool, volume) for seed in range(30)]

    def contrast(scene):
        depth = distance_to_border(scene.labels)
        inside = np.ones_like(scene.labels, bool) if scene.outside is None else ~scene.outside
        steps = []
        for label in np.unique(scene.labels[scene.labels > 0]):
            own = inside & (scene.labels == label)
            if (own & (depth == 0)).any() and (own & (depth > 2)).any():
                steps.append(scene.image[own & (depth == 0)].mean() - scene.image[own & (depth > 2)].mean())
        return abs(np.mean(steps)) / scene.image[inside].std() if steps else np.nan

    cells, painted = scenes("cells"), scenes("maps")
    assert np.nanmedian([contrast(scene) for scene in cells]) > 1.0
    assert np.nanmedian([contrast(scene) for scene in painted]) < 0.5
    assert all(scene.outside is None for scene in painted)
    assert any(scene.outside.any() for scene in cells)
    assert not any((scene.labels[scene.outside] > 0).any() for scene in cells)
    assert len({scene.main for scene in cells}) > 1
    assert all((scene.labels == scene.main).any() for scene in cells)


def test_the_trainers_own_process_keeps_its_threads(training_data):
    """Examples made in the training process itself do not take the network's threads away."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(stream(Draws(pools_of(training_data, "scenes"), SAMPLING, True, 0), Share(0, 1, 1, 0, 1), 0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_workers_make_the_same_examples(training_data):
    """Two other processes, the same views in the same order."""
    draws = Draws(pools_of(training_data, "cases", "scenes"), SAMPLING, True, 0)
    share = Share(0, 4, 1, 0, 1)
    made = list(islice(stream(draws, share, 2), 4))
    assert all(same(views, draws[number]) for number, views in enumerate(made))


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_what_fails_in_a_worker_is_said_in_one_line(training_data, monkeypatch, kind):
    """Torch hands on the worker's whole traceback as the message."""

    def failing(*arguments, **options):
        try:
            raise kind("case_a: the share is away")
        except kind:
            failure = ExceptionWrapper(where="in DataLoader worker process 0")
        yield []
        failure.reraise()

    monkeypatch.setattr(examples, "DataLoader", failing)
    made = stream(Draws(pools_of(training_data, "scenes"), SAMPLING, True, 0), Share(0, 2, 1, 0, 1), 1)
    assert next(made) == []
    with pytest.raises(
        kind, match=rf"^an example could not be made, {kind.__name__}: case_a: the share is away$"
    ):
        next(made)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_signal_to_all_processes_ends_no_worker(training_data):
    """Ctrl+C in a terminal, and most schedulers, reach the workers too; the run ends them, after its save."""
    draws = Draws(pools_of(training_data, "scenes"), SAMPLING, True, 0)
    made = stream(draws, Share(0, 3, 1, 0, 1), 1)
    next(made)
    (worker,) = (p for p in multiprocessing.active_children() if p.pid is not None)
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, name)
    assert len(list(made)) == 2


@pytest.mark.slow
def test_the_data_we_train_on(data_dir):
    """Each source of the real folder gives sound examples."""
    sources = [
        (Source("cases", name), find_sources(data_dir / "train" / name))
        for name in ("ibsi_sts_pet", "ibsi_sts_mr")
    ]
    lesions = ("lidc_nodule_shapes", "open_ms_lesions", "soop_stroke_lesions")
    sources.append((Source("maps", "labelmaps", lesions=lesions), []))
    pools = make_pools(sources, data_dir / "train", 2**30, clip=False)
    assert len(pools[-1].lesions) > 50
    draws = Draws(pools, replace(SAMPLING, roi=24), True, 0)
    views = [view for number in range(12) for view in draws[number]]
    assert all(torch.isfinite(view.image).all() for view in views)
    assert sum(len(view.targets) > 0 for view in views) >= 20


def test_a_view_has_as_many_objects_as_are_looked_at():
    """Scenes with many cells: `objects` of them, or the more that `candidates` asks for."""
    pools = make_pools([(Source("scenes"), [])], Path(), 0, clip=False)
    for candidates, wanted in ((0, 2), (6, 6)):
        draws = Draws(pools, replace(SAMPLING, candidates=candidates), True, 0)
        counts = [len(view.targets) for number in range(20) for view in draws[number]]
        assert max(counts) == wanted


def test_a_cut_by_hand(rng):
    """A quarter to three quarters of a block, a plane between it and the rest; a small one stays whole."""
    block = blocks((12, 12, 12), (1, (2, 2, 2), (10, 10, 10))) == 1
    shares = []
    for _ in range(50):
        part = cut(rng, block)
        assert not (part & ~block).any()
        shares.append(part.sum() / block.sum())
        inside, outside = np.argwhere(part), np.argwhere(block & ~part)
        way = outside.mean(0) - inside.mean(0)
        mixed = np.concatenate([inside, outside])[np.argsort(np.concatenate([inside @ way, outside @ way]))]
        assert part[tuple(mixed[0])]
        assert not part[tuple(mixed[-1])]
    assert 0.2 < min(shares) < 0.35
    assert 0.65 < max(shares) < 0.8
    small = blocks((12, 12, 12), (1, (2, 2, 2), (5, 5, 5))) == 1
    assert np.array_equal(cut(rng, small), small)


def test_what_only_clicks_can_tell_comes_with_clicks(training_data):
    """Cut objects and regions of the image are for steps with two further clicks and more."""
    sampling = replace(SAMPLING, cases=2, more_clicks=(0.2, 0.2, 0.2, 0.2, 0.2), augmentation="none")
    counts = [further_clicks(chance_of_step(3, number // 2), sampling.more_clicks) for number in range(40)]
    assert {0, 1, 2, 3, 4} == set(counts)

    def drawn(**changes):
        draws = Draws(pools_of(training_data, "scenes"), replace(sampling, **changes), True, seed=3)
        return [torch.stack([view.targets.sum() for view in draws[number]]).sum() for number in range(40)]

    whole, parts = drawn(), drawn(cuts=0.999)
    smaller = [bool(a < b) for a, b in zip(parts, whole, strict=True)]
    assert not any(one for one, count in zip(smaller, counts, strict=True) if count < 2)
    assert sum(smaller) > 0.5 * sum(count >= 2 for count in counts)  # small ones stay whole

    (cases,) = pools_of(training_data, "cases")
    regions = Pool(1.0, cases.volumes, ["region a", "region b"], nested=True)
    draws = Draws([cases, regions], sampling, True, seed=3)
    names = [draws[number][0].name for number in range(40)]
    regional = [count for name, count in zip(names, counts, strict=True) if name.startswith("region")]
    assert regional
    assert min(regional) >= 2
    assert any(name.startswith("case") and count >= 2 for name, count in zip(names, counts, strict=True))


@pytest.mark.parametrize("kind", ["cases", "maps"])
def test_views_are_bent_as_often_as_asked(training_data, kind):
    """A bent view differs from the straight one of the same number; what is clicked lies in its image."""
    sampling = replace(SAMPLING, roi=24, augmentation="none")
    straight = Draws(pools_of(training_data, kind), sampling, True, seed=1)
    bent = Draws(pools_of(training_data, kind), replace(sampling, bent=0.999), True, seed=1)
    for number in range(4):
        for before, after in zip(straight[number], bent[number], strict=True):
            assert before.image.shape == after.image.shape
            assert not torch.equal(before.image, after.image)
            assert after.targets.flatten(1).sum(1).min() >= MIN_VOXELS
