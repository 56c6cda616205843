"""Where the samplers put their clicks, against their definitions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from GSMedSegLib.simulation import next_click
from Training import clicks as placed
from Training.clicks import MOST_CLICKS, Spread, bounding_box, most_clicks, on_error, scribble


def cube(size, start, stop):
    mask = np.zeros((size,) * 3, bool)
    mask[start:stop, start:stop, start:stop] = True
    return mask


def uniform(rng, mask):
    return placed.uniform(rng, mask, Spread.draw(rng))


def edge_centre(rng, mask):
    return placed.edge_centre(rng, mask, Spread.draw(rng))


def sides(clicks):
    """Positive and negative positions."""
    return [at for at, label in clicks if label == 1], [at for at, label in clicks if label == 0]


def share_between(low, high):
    """Share of |N(0, 2)| between two values."""
    return math.erf(high / math.sqrt(8)) - math.erf(low / math.sqrt(8))


@pytest.mark.parametrize("sampler", [uniform, edge_centre])
def test_counts_follow_the_halved_normal(rng, sampler):
    """min(5, int|N(0, 2)| + 1) positives, min(5, int|N(0, 2)|) negatives, in their expected shares."""
    mask, draws = cube(8, 2, 6), 4000
    positives, negatives = Counter(), Counter()
    for _ in range(draws):
        inside, outside = sides(sampler(rng, mask))
        positives[len(inside)] += 1
        negatives[len(outside)] += 1
    assert MOST_CLICKS == 5
    assert set(positives) == {1, 2, 3, 4, 5}
    assert set(negatives) == {0, 1, 2, 3, 4, 5}
    for n in range(6):
        expected = share_between(n, n + 1) if n < 5 else share_between(5, np.inf)
        error = 4 * math.sqrt(expected * (1 - expected) / draws)
        assert negatives[n] / draws == pytest.approx(expected, abs=error)
    for n in range(1, 6):
        expected = share_between(n - 1, n) if n < 5 else share_between(4, np.inf)
        error = 4 * math.sqrt(expected * (1 - expected) / draws)
        assert positives[n] / draws == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("sampler", [uniform, edge_centre])
def test_clicks_tell_the_truth(rng, sampler):
    """Positives lie in the mask, negatives outside, each is three ints and none comes twice."""
    mask = rng.random((6, 9, 12)) < 0.4
    for _ in range(200):
        clicks = sampler(rng, mask)
        for at, label in clicks:
            assert all(type(x) is int for x in at)
            assert mask[at] == (label == 1)
        assert len({at for at, _ in clicks}) == len(clicks)


def test_the_zones_of_a_cube_by_hand(rng):
    """A cube of side 11 is 6 deep: first positives in the inner 5³, deeper than 3, the others around."""
    mask = cube(15, 2, 13)
    inner, seen_first, seen_others = cube(15, 5, 10), Counter(), Counter()
    for _ in range(5000):
        positives, negatives = sides(edge_centre(rng, mask))
        assert inner[positives[0]]
        assert all(mask[at] and not inner[at] for at in positives[1:])
        assert not any(mask[at] for at in negatives)
        seen_first[positives[0]] += 1
        seen_others.update(positives[1:])
    # Each of the 125 voxels 40 times on average; six standard deviations are 38.
    assert len(seen_first) == 125
    assert max(seen_first.values()) < 79
    depths = {min(min(x - 1, 13 - x) for x in at) for at in seen_others}
    assert depths == {1, 2, 3}


def test_uniform_positives_are_uniform(rng):
    """Each voxel of the mask is as likely as any other, at the edge and in the middle."""
    mask, seen = cube(7, 1, 6), Counter()
    for _ in range(3000):
        seen.update(sides(uniform(rng, mask))[0])
    mean = sum(seen.values()) / 125
    assert len(seen) == 125
    assert max(abs(n - mean) for n in seen.values()) < 6 * math.sqrt(mean)


def test_a_thin_mask_has_no_edge_zone(rng):
    """One voxel thick: every voxel is 1 deep, all are centre, and the other positives may be any."""
    mask = np.zeros((5, 8, 8), bool)
    mask[2] = True
    most = max((sides(edge_centre(rng, mask))[0] for _ in range(200)), key=len)
    assert len(most) == 5
    assert all(at[0] == 2 for at in most)


@pytest.mark.parametrize("sampler", [uniform, edge_centre])
def test_a_single_voxel_is_clicked_again_and_again(rng, sampler):
    """With fewer voxels than clicks, voxels repeat rather than clicks go missing."""
    mask = cube(5, 2, 3)
    counts = set()
    for _ in range(200):
        positives, _ = sides(sampler(rng, mask))
        assert set(positives) == {(2, 2, 2)}
        counts.add(len(positives))
    assert counts == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("sampler", [uniform, edge_centre])
def test_a_mask_without_outside_gets_no_negatives(rng, sampler):
    """There is nowhere to put them."""
    for _ in range(50):
        positives, negatives = sides(sampler(rng, np.ones((4, 4, 4), bool)))
        assert positives
        assert negatives == []


def test_the_same_chance_gives_the_same_clicks():
    """A sampler depends on its generator alone."""
    mask = cube(8, 2, 6)
    for sampler in (uniform, edge_centre):
        first, second = (
            [sampler(generator, mask) for _ in range(5)]
            for generator in (np.random.default_rng(3), np.random.default_rng(3))
        )
        assert first == second


def test_on_error_by_hand(rng):
    """Of a missed cube and a smaller false one, the click is in the middle of the missed one, positive."""
    truth, mask = cube(20, 2, 9), cube(20, 13, 16)
    assert on_error(rng, truth, mask) == [((5, 5, 5), 1)]
    assert on_error(rng, mask, truth) == [((5, 5, 5), 0)]
    assert on_error(rng, truth, truth) == []


def test_on_error_joins_diagonal_neighbours(rng):
    """Two cubes that touch at a corner are one error, larger than a third between their sizes."""
    error = cube(20, 1, 4) | cube(20, 4, 7)
    error[12:15, 12:15, 12:16] = True
    assert error[12:15, 12:15, 12:16].sum() == 36
    for _ in range(20):
        [((k, _, _), label)] = on_error(rng, error, np.zeros_like(error))
        assert k < 7
        assert label == 1


def test_on_error_counts_the_border_as_outside(rng):
    """An error that fills the volume is clicked in its middle, not at the border."""
    full = np.ones((9, 9, 9), bool)
    assert on_error(rng, full, ~full) == [((4, 4, 4), 1)]


def test_on_error_clicks_where_the_corrector_does(rng):
    """In the corrector's component, within a tenth of its depth, with its sign."""
    for seed in range(20):
        noise = ndimage.gaussian_filter(
            np.random.default_rng(seed).standard_normal((2, 16, 16, 16)), (0, 2, 2, 2)
        )
        truth, mask = noise > 0.02
        [(at, label)] = on_error(rng, truth, mask)
        click = next_click(truth, mask)
        parts, _ = ndimage.label(truth != mask, np.ones((3, 3, 3)))
        assert parts[at] == parts[click.kji]
        depth = ndimage.distance_transform_edt(np.pad(parts == parts[at], 1))[1:-1, 1:-1, 1:-1]
        assert depth[at] >= 0.9 * depth[click.kji] - 1e-9
        assert bool(label) == bool(truth[at])


def test_the_counts_of_a_spread_by_hand():
    """M = 5: |z| is doubled, truncated, one more positive; M = 1 leaves one positive."""
    spread = Spread(1.4, 0.6)
    assert spread.counts(5) == (3, 1)
    assert Spread(9.0, 9.0).counts(5) == (5, 5)
    assert [spread.counts(most) for most in (1, 2)] == [(1, 0), (2, 0)]


def test_one_spread_counts_for_every_object_of_a_view(rng):
    """As the seed draws once for all classes: different objects, as many clicks."""
    spread = Spread(1.6, 1.1)
    for mask in (cube(9, 1, 4), cube(9, 3, 8)):
        inside, outside = sides(placed.uniform(rng, mask, spread))
        assert (len(inside), len(outside)) == (4, 2)


def test_small_objects_get_fewer_hints():
    """By diameter: 1/64 of a view's volume is a quarter of its side, two clicks; a full view five."""
    assert [most_clicks(n, 16) for n in (1, 64, 512, 16**3)] == [1, 2, 3, 5]


def test_a_scribble_is_a_stroke_inside_one_slice(rng):
    """All its clicks are in the object, positive, without repeats, and share one coordinate."""
    ring = cube(12, 1, 11)
    ring[4:8, 4:8, 4:8] = False
    lengths = set()
    for _ in range(60):
        clicks = scribble(rng, ring, Spread(0.0, 0.0))
        at = np.array([voxel for voxel, _ in clicks])
        assert all(ring[tuple(voxel)] for voxel in at)
        assert {label for _, label in clicks} == {1}
        assert len(set(map(tuple, at))) == len(at) <= placed.SCRIBBLE_CLICKS
        assert (np.ptp(at, axis=0) == 0).any()
        lengths.add(len(at))
    assert max(lengths) > 5


def test_a_box_holds_its_object(rng):
    """Never smaller, at most a tenth of a side too large per face, never outside the view."""
    mask = cube(20, 5, 15)
    seen = set()
    for _ in range(100):
        box = bounding_box(rng, mask)
        assert all(s.start in (4, 5) and s.stop in (15, 16) for s in box)
        seen.add(tuple((s.start, s.stop) for s in box))
    assert len(seen) > 20
    assert bounding_box(rng, np.ones((4, 4, 4), bool)) == (slice(0, 4),) * 3
