"""The reference strategy is MONAI's `point_based_window_inferer` as the seed method calls it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.apps.vista3d.inferer import point_based_window_inferer
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from GSMedSegLib.engine import Engine
from GSMedSegLib.network import build_network
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.reference import NO_CLICK_LOGIT, ReferenceStrategy

ROI = 32


def monais_logits(monai, image, clicks, roi=ROI):
    """(K, J, I) logits by MONAI alone."""
    scaled = ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)(
        MetaTensor(image[None].astype(np.float32))
    )
    with torch.inference_mode():
        logits = point_based_window_inferer(
            inputs=scaled[None],
            roi_size=[roi] * 3,
            predictor=monai,
            point_coords=torch.tensor([[click.kji for click in clicks]]),
            point_labels=torch.tensor([[int(click.positive) for click in clicks]]),
            class_vector=None,
            prompt_class=None,
            center_only=True,
            with_coord=True,
            mode="gaussian",
            transpose=True,
        )
    return torch.as_tensor(logits)[0, 0]


def assert_same(ours, theirs):
    """NaN in the same places, logits within 1e-5 of their scale, the same mask.

    A mask may differ where MONAI's logit is zero within float32's rounding: there is no right answer there.
    """
    assert ours.shape == theirs.shape
    assert torch.equal(ours.isnan(), theirs.isnan())
    looked_at = ~theirs.isnan() & (theirs > NO_CLICK_LOGIT / 2)
    scale = theirs[looked_at].abs().max() if looked_at.any() else torch.tensor(1.0)
    ours, theirs = ours.nan_to_num(-1.0), theirs.nan_to_num(-1.0)
    assert (ours - theirs)[looked_at].abs().max() <= 1e-5 * scale if looked_at.any() else True
    assert torch.allclose(ours[~looked_at], theirs[~looked_at], rtol=1e-5)
    differ = (ours > 0) != (theirs > 0)
    assert (theirs[differ].abs() <= 1e-6 * scale).all()
    assert differ.sum() <= 2


@pytest.fixture(scope="module")
def both():
    """MONAI's network, and our strategy with the same weights."""
    return {}


@pytest.fixture
def compare(make_monai, both):
    """Runs both on an image and its clicks and compares; returns the logits."""
    if not both:
        both["monai"] = make_monai()
        both["ours"] = ReferenceStrategy(
            Engine(build_network(both["monai"].state_dict()), "cpu", "fp32"), roi=ROI
        )

    def run(image, *clicks):
        both["ours"].set_image(image, (1.0, 1.0, 1.0))
        segment = both["ours"].predict(clicks)
        theirs = monais_logits(both["monai"], image, clicks)
        assert_same(segment.logits, theirs)
        assert np.array_equal(segment.mask, (segment.logits > 0).numpy())
        return segment.logits

    return run


def fg(*kji):
    return Click(kji, True)


def bg(*kji):
    return Click(kji, False)


@pytest.mark.parametrize(
    "shape",
    [
        (20, 24, 28),
        (32, 32, 32),
        (31, 33, 32),
        (48, 40, 56),
        (20, 48, 32),
        (60, 7, 40),
        (1, 36, 36),
        (3, 3, 3),
    ],
    ids=str,
)
def test_images_of_every_size(compare, blobs, shape):
    """Smaller than a window, as large, larger, mixed, thin, tiny: one and several clicks."""
    image = blobs(*shape)
    middle = tuple(n // 2 for n in shape)
    compare(image, fg(*middle))
    compare(image, fg(*middle), bg(*(n // 3 for n in shape)), fg(*(n - 1 - n // 4 for n in shape)))


@pytest.mark.parametrize("kji", list(itertools.product(*[(0, 20, n - 1) for n in (40, 36, 44)])), ids=str)
def test_clicks_on_every_face_edge_and_corner(compare, blobs, kji):
    """First, inner and last voxel of each axis in all combinations, in an image larger than a window."""
    compare(blobs(40, 36, 44), fg(*kji))


@pytest.mark.parametrize("distance", [1, 2, 15, 16, 17])
def test_clicks_near_the_border(compare, blobs, distance):
    """One, two, and about half a window from both ends."""
    image = blobs(40, 36, 44)
    compare(image, fg(distance, distance, distance))
    compare(image, fg(*(n - 1 - distance for n in image.shape)))


@pytest.mark.parametrize("kji", [(0, 0, 0), (19, 23, 27), (0, 12, 27)], ids=str)
def test_corners_of_a_padded_image(compare, blobs, kji):
    """Padding moves the corner inside the window: its clicks count."""
    logits = compare(blobs(20, 24, 28), fg(*kji))
    assert (logits > NO_CLICK_LOGIT / 2).all()


def test_a_click_on_the_lower_face_is_not_seen(compare, blobs):
    """MONAI takes clicks strictly inside a window: with its one click on the face, it answers -9999."""
    logits = compare(blobs(40, 40, 40), fg(0, 20, 20))
    assert set(logits[~logits.isnan()].tolist()) == {NO_CLICK_LOGIT}
    assert logits.isnan().any()


def test_windows_apart(compare, blobs):
    """Two clicks whose windows do not meet: NaN between and around them."""
    logits = compare(blobs(40, 40, 100), fg(20, 20, 16), fg(20, 20, 80))
    assert not logits[4:36, 4:36, :32].isnan().any()
    assert logits[:, :, 32:64].isnan().all()
    assert not logits[4:36, 4:36, 64:96].isnan().any()
    assert logits[:4].isnan().all()


def test_overlapping_windows_are_summed(compare, blobs):
    """Where two windows overlap MONAI adds their logits; a click may lie in both, in one, or in the other."""
    image = blobs(40, 40, 80)
    compare(image, fg(20, 20, 20), bg(20, 20, 30))
    compare(image, fg(20, 20, 20), fg(20, 24, 44))
    compare(image, fg(10, 20, 20), bg(30, 12, 30), fg(20, 24, 44))


def test_the_same_click_twice(compare, blobs):
    """Twice the window, hence twice the logits of one window with two clicks."""
    compare(blobs(40, 40, 40), fg(20, 20, 20), fg(20, 20, 20))
    compare(blobs(20, 20, 20), fg(10, 10, 10), fg(10, 10, 10), bg(10, 10, 10))


def test_a_window_without_clicks_spoils_its_neighbour(compare, blobs):
    """Its -9999 is added where it overlaps another window; that is MONAI's way."""
    logits = compare(blobs(40, 40, 60), fg(20, 20, 40), fg(0, 20, 20))
    assert (logits < NO_CLICK_LOGIT / 2).any()
    assert (logits.abs() < 1000).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_every_type_of_voxel(compare, blobs, dtype):
    """Counted or sorted percentiles give the windows that MONAI's do."""
    image = blobs(40, 36, 44)
    image = (image - image.min()) / (image.max() - image.min())
    compare((image * 250).astype(dtype), fg(20, 18, 30), bg(3, 3, 3))


def test_boxes_and_earlier_masks_are_ignored(compare, both, blobs):
    """The seed method reads neither."""
    image = blobs(40, 36, 44)
    plain = compare(image, fg(20, 18, 30))
    before = both["ours"].predict([bg(1, 1, 1), fg(2, 2, 2)])
    again = both["ours"].predict([fg(20, 18, 30)], Box((1, 1, 1), (5, 5, 5)), before)
    assert torch.equal(again.logits.nan_to_num(7.0), plain.nan_to_num(7.0))


def test_each_window_is_encoded_once(make_engine, blobs):
    """A further click in the same window, a second object, the same click: no encoding; a new window: one."""
    engine = make_engine()
    strategy = ReferenceStrategy(engine, ROI)
    strategy.set_image(blobs(40, 40, 40), (1.0, 1.0, 1.0))
    for clicks, encoded in (
        ([fg(20, 20, 20)], 1),
        ([fg(20, 20, 20), bg(20, 20, 20)], 1),
        ([bg(20, 20, 20)], 1),
        ([fg(20, 20, 20), bg(20, 20, 21)], 2),
        ([fg(0, 20, 20)], 2),
    ):
        strategy.predict(clicks)
        assert engine.encoded == encoded


def test_a_refused_image_leaves_the_one_before(compare, both, blobs):
    """A constant image raises, and the clicks go on as if it had never come."""
    image = blobs(40, 36, 44)
    before = compare(image, fg(20, 18, 30))
    with pytest.raises(ValueError, match="constant"):
        both["ours"].set_image(np.zeros((8, 8, 8)), (1.0, 1.0, 1.0))
    after = both["ours"].predict([fg(20, 18, 30)])
    assert torch.equal(after.logits.nan_to_num(7.0), before.nan_to_num(7.0))


def test_classes_are_painted_in_order(make_monai, blobs):
    """A label map of three classes by hand from MONAI's three masks: the last one wins."""
    monai, image = make_monai(), blobs(40, 36, 44)
    predictor = Predictor(
        Engine(build_network(monai.state_dict()), "cpu", "fp32"), strategy="reference", roi=ROI
    )
    predictor.set_image(image)
    objects = {
        "first": [fg(20, 18, 22)],
        "second": [fg(10, 10, 10), bg(30, 18, 22)],
        "third": [fg(35, 30, 40)],
    }
    theirs = np.zeros(image.shape, int)
    undecided = np.zeros(image.shape, bool)
    for number, (name, clicks) in enumerate(objects.items(), start=1):
        predictor.add_object(name)
        for click in clicks:
            predictor.add_click(name, click.kji, click.positive)
        logits = monais_logits(monai, image, clicks).numpy()
        theirs[logits > 0] = number
        undecided |= np.abs(logits) <= 1e-6 * np.nanmax(np.abs(logits))
    ours = predictor.labels()
    assert set(np.unique(ours)) == {0, 1, 2, 3}
    assert np.array_equal(ours[~undecided], theirs[~undecided])
    assert undecided.sum() <= 2


@pytest.mark.slow
def test_the_public_networks_size(blobs):
    """`vista3d132` itself, with random weights and 64³ windows that overlap."""
    from monai.networks.nets.vista3d import vista3d132

    torch.manual_seed(0)
    monai = vista3d132().eval().requires_grad_(False)
    image, clicks = blobs(72, 60, 80), [fg(30, 30, 40), bg(60, 20, 50)]
    theirs = monais_logits(monai, image, clicks, roi=64)
    strategy = ReferenceStrategy(Engine(build_network(monai.state_dict()), "cpu", "fp32"), roi=64)
    strategy.set_image(image, (1.0, 1.0, 1.0))
    assert_same(strategy.predict(clicks).logits, theirs)
