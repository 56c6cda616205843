"""Augmentation changes what it should, as often as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from Training.augment import Augmentation


def test_none_changes_nothing(rng):
    """The very tensors come back."""
    image, targets = torch.rand(8, 8, 8), torch.rand(2, 8, 8, 8) > 0.5
    plain = Augmentation("none")
    assert plain.intensity(rng, image) is image
    assert plain.turn(rng, image, targets) == (image, targets)


def test_all_48_turns_come_and_move_image_and_targets_alike(rng):
    """What was bright in the image is still the target."""
    image = torch.arange(27.0).reshape(3, 3, 3)
    targets = torch.stack([image == n for n in (0, 5)])
    usual, ways = Augmentation("usual"), set()
    for _ in range(600):
        turned, moved = usual.turn(rng, image, targets)
        assert torch.equal(moved[0], turned == 0)
        assert torch.equal(moved[1], turned == 5)
        ways.add(tuple(turned.flatten().tolist()))
    assert len(ways) == 48


def test_the_seeds_turns_by_frequency(rng):
    """Three flips and a rotation, each in every fifth view: 0.8 to the fourth stay as they are."""
    image = torch.arange(27.0).reshape(3, 3, 3)
    targets = (image == 5)[None]
    seed, same = Augmentation("seed"), 0
    for _ in range(500):
        turned, moved = seed.turn(rng, image, targets)
        assert type(turned) is torch.Tensor
        assert torch.equal(moved[0], turned == 5)
        assert moved.dtype == torch.bool
        same += torch.equal(turned, image)
    assert same / 500 == pytest.approx(0.8**4, abs=4 * np.sqrt(0.41 * 0.59 / 500))


def test_the_seeds_intensities_by_frequency(rng):
    """Scaled, shifted, made noisy, each in every fifth view; half stay as they are."""
    image = torch.rand(6, 6, 6)
    seed, same = Augmentation("seed"), 0
    for _ in range(500):
        changed = seed.intensity(rng, image)
        assert type(changed) is torch.Tensor
        assert changed.dtype == torch.float32
        same += torch.equal(changed, image)
    assert same / 500 == pytest.approx(0.8**3, abs=4 * np.sqrt(0.51 * 0.49 / 500))


def test_the_same_chance_the_same_change():
    """All randomness comes from the generator that is handed in."""
    image = torch.rand(16, 16, 16)
    usual = Augmentation("usual")
    changed = [[usual.intensity(np.random.default_rng(seed), image) for seed in range(8)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*changed))
    assert sum(not torch.equal(a, image) for a in changed[0]) >= 4
    assert all(torch.isfinite(a).all() for a in changed[0])
