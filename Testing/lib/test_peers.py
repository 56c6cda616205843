"""The methods we are compared with do what they are known for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from GSMedSegLib.case_source import Reading, find_sources
from GSMedSegLib.challenge import play
from GSMedSegLib.evaluate_command import PEER_NAMES
from GSMedSegLib.metrics import dice
from GSMedSegLib.npz import Case
from GSMedSegLib.peers import (
    PEERS,
    PeerSegmenter,
    _averaged,
    _blocks,
    _enlarged,
    geodesic,
    grow_from_seeds,
    random_walker,
    region_growing,
    watershed,
)
from GSMedSegLib.prompts import Box, Click

NAMES = list(PEERS)


def ball(shape, center, radius):
    grid = np.indices(shape)
    return ((grid - np.array(center)[:, None, None, None]) ** 2).sum(0) <= radius**2


def scene(*balls, shape=(24, 28, 32)):
    """Balls of their grey values on dark ground, with some noise."""
    image = np.random.default_rng(0).normal(40, 3, shape)
    for mask, grey in balls:
        image[mask] += grey - 40
    return np.clip(image, 0, 255).astype(np.uint8)


def segment(name, image, *classes, boxes=None, spacing_mm=(1.0, 1.0, 1.0)):
    case = Case("case", image, spacing_mm, clicks=tuple(classes) if classes else None, boxes=boxes)
    return PEERS[name]().segment(case)


def test_the_command_line_knows_them():
    assert tuple(NAMES) == PEER_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bright_ball_is_found(name):
    """From a click inside and one outside."""
    truth = ball((24, 28, 32), (12, 14, 15), 7)
    labels = segment(name, scene((truth, 180)), (Click((12, 14, 15), True), Click((12, 3, 15), False)))
    assert labels.max() == 1
    assert dice(truth, labels == 1) > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_each_class_gets_its_own(name):
    """Two balls that touch, of different grey; neither takes the other's."""
    one, two = (ball((24, 28, 36), (12, 14, at), 6) for at in (10, 23))
    image = scene((one, 110), (two, 220), shape=(24, 28, 36))
    clicks = [
        (Click((12, 14, 10), True), Click((12, 14, 23), False)),
        (Click((12, 14, 23), True), Click((12, 14, 10), False)),
    ]
    labels = segment(name, image, *clicks)
    assert dice(one, labels == 1) > 0.7
    assert dice(two, labels == 2) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_a_background_click_takes_away(name):
    """Two balls alike, joined by a bridge: a click says that the second is not meant."""
    shape = (24, 24, 44)
    one, two = (ball(shape, (12, 12, at), 6) for at in (10, 32))
    image = scene((one, 180), (two, 180), shape=shape)
    image[11:14, 11:14, 14:30] = 180
    only = (Click((12, 12, 10), True), Click((12, 12, 32), False))
    assert (segment(name, image, only)[two] == 1).mean() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_box_is_a_click_and_a_limit(name):
    """Nothing is found far outside it: the region looked at ends a little beyond."""
    truth = ball((60, 60, 60), (30, 30, 30), 9)
    box = Box((21, 21, 21), (39, 39, 39), 30)
    labels = segment(name, scene((truth, 180), shape=(60, 60, 60)), boxes=(box,))
    assert dice(truth, labels == 1) > 0.7
    labels[12:49, 12:49, 12:49] = 0
    assert not labels.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_a_foreground_click_stays_empty(name):
    labels = segment(name, scene(), (Click((3, 3, 3), False),), (Click((9, 9, 9), True),))
    assert not (labels == 1).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 40, 40), (2, 40, 40), (40, 3, 40)])
def test_flat_images_and_clicks_on_the_border(name, shape):
    """Nothing to find, and nothing that fails: constant ground, a click in the corner."""
    image = np.full(shape, 90, np.uint8)
    clicks = (Click((0, 0, 0), True), Click((0, 1, 20), False))
    labels = segment(name, image, clicks, spacing_mm=(4.0, 1.0, 1.0))
    assert labels.shape == shape
    assert labels.max() <= 1


@pytest.mark.parametrize(
    "method", [region_growing, geodesic, watershed, grow_from_seeds, random_walker], ids=NAMES
)
def test_large_images_are_looked_at_coarsely_first(method):
    """With room for a few thousand voxels the ball is still found, and its border at full resolution."""
    truth = ball((60, 64, 68), (28, 30, 40), 8)
    case = Case(
        "case", scene((truth, 180), shape=truth.shape), (1.0,) * 3, clicks=((Click((28, 30, 40), True),),)
    )
    assert dice(truth, PeerSegmenter(method, 20_000).segment(case) == 1) > 0.75


@pytest.mark.parametrize("blocks", [(2, 2, 2), (3, 4, 1), (5, 3, 2)])
def test_what_was_averaged_is_enlarged_in_its_place(blocks):
    """A cuboid whose faces are those of blocks, in an image whose last blocks are not whole: the same box."""
    cuboid = np.zeros((47, 46, 45), np.uint8)
    box = tuple(slice(2 * b, 6 * b) for b in blocks)
    cuboid[box] = 1
    scores = _enlarged(_averaged(cuboid, blocks), blocks, list(cuboid.shape))
    assert ndimage.find_objects((scores > 0.5).astype(np.uint8)) == [box]


def test_a_closer_look_that_loses_the_object_is_not_believed():
    """A method that finds the ball in the whole image, and next to nothing in a part of it."""
    truth = ball((60, 60, 60), (30, 30, 30), 8)
    looks = []

    def method(view):
        looks.append(view.image.shape)
        return (view.image > 100 if len(looks) == 1 else view.foreground).astype(np.float32)

    case = Case(
        "case", scene((truth, 180), shape=(60, 60, 60)), (1.0,) * 3, clicks=((Click((30, 30, 30), True),),)
    )
    labels = PeerSegmenter(method, 60_000).segment(case)
    assert len(looks) == 2
    assert dice(truth, labels == 1) > 0.8


def test_blocks_are_as_cubic_as_can_be():
    """3 mm slices are averaged after three pixels of 1 mm have been."""
    region = (slice(0, 60), slice(0, 300), slice(0, 300))
    assert _blocks(region, (3.0, 1.0, 1.0), 6_000_000) == (1, 1, 1)
    assert _blocks(region, (3.0, 1.0, 1.0), 60 * 100 * 100) == (1, 3, 3)


def test_without_scikit_image_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ValueError, match=r"needs scikit-image; pip install 'gsmedseg\[evaluate\]'"):
        PEERS["random-walker"]()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_real_case_is_played(name, data_dir: Path):
    """All rounds, without an error, better than nothing."""
    source = find_sources(data_dir / "dev" / "msd_hippocampus", reading=Reading(objects=1))[0]
    result = play(PEERS[name](), source.load().case, surfaces=False).result
    assert not result.errors
    assert result.dice_auc > 0.2
