"""Clicks, masks and boxes as maps, with values that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from GSMedSegLib.prompt_maps import BOX_INSIDE, BOX_OUTSIDE, Prompts, box_logits, features_at, prompt_maps


def test_features_are_read_under_the_click():
    """A full-resolution voxel (k, j, i) lies in half-resolution voxel (k // 2, j // 2, i // 2)."""
    volume = torch.arange(2 * 2 * 3 * 4 * 5.0).reshape(2, 2, 3, 4, 5)
    coords = torch.tensor([[[0, 0, 0], [5, 7, 9]], [[2, 3, 4], [1, 1, 1]]])
    prompts = Prompts(coords, torch.ones(2, 2, dtype=torch.long), owner=torch.tensor([0, 1]))
    values = features_at(volume, prompts)
    assert values.tolist() == [
        [volume[0, :, 0, 0, 0].tolist(), volume[0, :, 2, 3, 4].tolist()],
        [volume[1, :, 1, 1, 2].tolist(), volume[1, :, 0, 0, 0].tolist()],
    ]


def test_prompt_maps_by_hand():
    """Near, wide, like in intensity broadly and closely, in features, for each kind; previous mask; image."""
    low = torch.zeros(1, 2, 4, 4, 4)
    low[0, 0] = 1
    low[0, :, 3, 3, 3] = torch.tensor([0.0, 5.0])
    image = torch.zeros(1, 1, 4, 4, 4)
    image[..., 3] = 0.3
    previous = torch.full((1, 1, 8, 8, 8), -100.0)
    previous[..., :4] = 100
    coords = torch.tensor([[[2, 2, 2], [7, 7, 7], [0, 0, 0]]])
    maps = prompt_maps(low, image, Prompts(coords, torch.tensor([[1, 0, -1]]), previous))[0]

    # Voxel 2 of 8 has its centre at 0.75 of 4: a quarter of a half-resolution voxel from voxel 1's centre.
    assert maps[0, 1, 1, 1].item() == pytest.approx(math.exp(-0.5 * 3 * 0.25**2 / 1.5**2))
    assert maps[0, 2, 1, 1].item() == pytest.approx(math.exp(-0.5 * (1.25**2 + 2 * 0.25**2) / 1.5**2))
    assert maps[1, 1, 1, 1].item() == pytest.approx(math.exp(-0.5 * 3 * 0.25**2 / 6**2))
    assert maps[2, 0, 0, 0].item() == pytest.approx(1)
    assert maps[2, 0, 0, 3].item() == pytest.approx(math.exp(-0.5 * (0.3 / 0.15) ** 2))
    assert maps[3, 0, 0, 3].item() == pytest.approx(math.exp(-0.5 * (0.3 / 0.05) ** 2))
    assert maps[4, 0, 0, 0].item() == pytest.approx(1)
    assert maps[4, 3, 3, 3].item() == pytest.approx(0)
    # The background click lies in the last voxel, whose features no other voxel shares.
    assert maps[5].argmax() == 63
    assert maps[7, 0, 0, 3].item() == pytest.approx(1)
    assert maps[9, 3, 3, 3].item() == pytest.approx(1)
    assert maps[9, 0, 0, 0].item() == pytest.approx(0)
    assert maps[10, :, :, :2].unique().tolist() == pytest.approx([1])
    assert maps[10, :, :, 2:].unique().tolist() == pytest.approx([-1])
    assert torch.equal(maps[11], image[0, 0])


def test_prompt_maps_of_special_classes_are_those_of_ordinary_clicks():
    """Labels 2 and 3 are background and foreground like 0 and 1; padding leaves no trace."""
    low, image = torch.randn(1, 4, 4, 4, 4), torch.rand(1, 1, 4, 4, 4)
    coords = torch.tensor([[[1, 2, 3], [6, 5, 4]]])
    ordinary = prompt_maps(low, image, Prompts(coords, torch.tensor([[1, 0]])))
    special = prompt_maps(low, image, Prompts(coords, torch.tensor([[3, 2]])))
    nothing = prompt_maps(low, image, Prompts(coords, torch.tensor([[-1, -1]])))
    assert torch.equal(ordinary, special)
    assert not nothing[:, :11].any()


def test_a_box_by_hand():
    """What may be the object inside, nothing of it outside; weaker than a mask, to be told from one."""
    logits = box_logits((slice(1, 3), slice(0, 2), slice(2, 4)), (4, 4, 4))
    assert logits.shape == (1, 4, 4, 4)
    assert (logits > 0).sum() == 8
    assert logits[0, 1:3, 0:2, 2:4].unique().tolist() == pytest.approx([BOX_INSIDE])
    assert logits.min() == BOX_OUTSIDE
    assert 0.5 < torch.sigmoid(torch.tensor(BOX_INSIDE)) < 0.7
