"""Views follow the object: what is looked at, and that what the user clicked holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GSMedSegLib.adaptive import DOUBTFUL, AdaptiveStrategy, _within_view
from GSMedSegLib.edits import CLICK_LOGIT
from GSMedSegLib.engine import Embedding
from GSMedSegLib.network import Shape
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompt_maps import BOX_INSIDE, BOX_OUTSIDE
from GSMedSegLib.prompts import Box, Click
from GSMedSegLib.roi import View
from GSMedSegLib.segment import paint_by_logit

ROI = 16


class Seeing:
    """An engine whose network is perfect: an object is what is brighter than a half.

    It stands in for `Engine`; what it is asked for is kept.
    """

    def __init__(self, threshold=0.5):
        self.shape, self.metadata, self.threshold = Shape(8, (1, 1, 1), 16), {}, threshold
        self.kept, self.keys, self.decoded = {}, [], []

    def encode(self, roi, key=None):
        if key not in self.kept:
            self.keys.append(key)
            image = roi()[None, None] if callable(roi) else roi[None, None]
            self.kept[key] = Embedding(image, image, None, None)
        return self.kept[key]

    def cached(self, key):
        return key in self.kept

    def forget(self):
        self.kept.clear()

    def decode(self, embedding, point_coords, point_labels, prev_logits=None):
        self.decoded.append((np.array(point_coords)[0], np.array(point_labels)[0], prev_logits))
        return (embedding.low[0] - self.threshold) * 20

    @property
    def views(self):
        """The views encoded, first to last."""
        return [key[-1] for key in self.keys]


def ball(shape, center, radius, spacing=(1.0, 1.0, 1.0)):
    """A ball in millimetres, blurred at its surface by one voxel: 1 inside, 0 outside."""
    axes = [(np.arange(n) - c) * s for n, c, s in zip(shape, center, spacing)]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    return np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)


def dice(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


@pytest.fixture
def see():
    """Runs the strategy with a perfect network on an image; returns the strategy and the engine."""

    def start(image, spacing=(1.0, 1.0, 1.0)):
        engine = Seeing()
        strategy = AdaptiveStrategy(engine, ROI)
        strategy.set_image(image, spacing)
        return strategy, engine

    return start


@pytest.mark.parametrize("radius", [4, 9, 18])
def test_one_click_finds_objects_of_every_size(see, radius):
    """A ball smaller than a view, as large, larger: if the network is right, one click is enough."""
    image = ball((64, 64, 64), (30, 33, 28), radius)
    strategy, _ = see(image)
    segment = strategy.predict([Click((30, 33, 28), True)])
    assert dice(segment.mask, image > 0.5) > 0.9


def test_thick_slices_are_seen_as_they_lie_in_space(see):
    """Slices of 5 mm: views have cubic samples in space, masks come out on the image's own grid."""
    spacing = (5.0, 1.0, 1.0)
    image = ball((20, 64, 64), (9, 30, 33), 14, spacing)
    strategy, engine = see(image, spacing)
    segment = strategy.predict([Click((9, 30, 33), True)])
    assert dice(segment.mask, image > 0.5) > 0.9
    for view in engine.views:
        assert np.ptp(np.array(view.step_kji) * spacing) == pytest.approx(0, abs=1e-9)


def test_no_view_lies_between_two_slices(see):
    """Slices fifty times as thick as pixels: every view shows the clicked voxel, and no answer is lost."""
    spacing = (10.0, 0.2, 0.2)
    image = ball((12, 64, 64), (6, 30, 33), 4, spacing)
    strategy, engine = see(image, spacing)
    segment = strategy.predict([Click((6, 30, 33), True)])
    assert dice(segment.mask, image > 0.5) > 0.8
    for coords, labels, _ in engine.decoded:
        assert labels.tolist() == [1]
        assert np.abs(coords[0] - (ROI - 1) / 2).max() <= ROI / 2
    for view in engine.views:
        assert min(np.array(view.step_kji) * ROI) >= 1


def test_the_thickness_of_a_single_slice_means_nothing(see):
    """A microscope's picture of 0.65 µm pixels whose file says 1 mm for the slice."""
    image = ball((1, 64, 64), (0, 30, 33), 9)
    views = []
    for thickness in (0.00065, 1.0):
        strategy, engine = see(image, (thickness, 0.00065, 0.00065))
        assert dice(strategy.predict([Click((0, 30, 33), True)]).mask, image > 0.5) > 0.9
        views.append(engine.views)
    assert views[0] == views[1]


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0, 3.0])
def test_a_box_covers_the_samples_of_its_voxels(step):
    """A sample belongs to the box if the voxel that it lies in does."""
    view = View((20.3, 20.3, 20.3), (step, step, step), 24)
    box = Box((18, 18, 18), (22, 22, 22))
    at = view.to_image(np.arange(24)[:, None] * np.ones(3))[:, 0]
    wanted = np.flatnonzero((at >= 17.5) & (at < 22.5))
    assert {tuple(range(24)[side]) for side in _within_view(box, view)} == {tuple(wanted.tolist())}


def test_the_first_look_goes_from_voxels_to_the_whole(see):
    """Zooms double from half a voxel a sample until 60 voxels fit 16 samples: 1/2, 1, 2, 4."""
    strategy, engine = see(ball((60, 40, 30), (30, 20, 15), 5))
    strategy.predict([Click((30, 20, 15), True)])
    assert [view.step_kji[0] for view in engine.views[:4]] == [0.5, 1, 2, 4]
    assert {view.size for view in engine.views} == {ROI}


def test_the_zoom_that_is_rated_best_is_taken(see):
    """Answers alike in all else: with a rater the view it prefers is chosen, whichever it is."""
    for wanted in (0.5, 1.0, 2.0):
        strategy, engine = see(ball((32, 32, 32), (16, 16, 16), 3))
        engine.shape = Shape(8, (1, 1, 1), 16, rater=True)
        engine.decode = lambda *_: torch.where(torch.arange(ROI**3) == 0, 9.0, -9.0).view(1, ROI, ROI, ROI)
        embeddings = {}
        engine.encode = lambda roi, key, kept=embeddings: kept.setdefault(key, key[-1])
        engine.rate = lambda view, logits, wanted=wanted: float(view.step_kji[0] == wanted)
        strategy._cut_off = lambda view, mask: 0.0
        assert strategy._zoom([Click((16, 16, 16), True)])[0].step_kji[0] == wanted


@pytest.mark.parametrize("doubtful", [True, False])
def test_a_second_click_may_show_that_the_zoom_was_a_mistake(see, doubtful):
    """The first zoom is trusted less with two clicks: doubted, it makes room for another, seen before."""
    strategy, engine = see(ball((32, 32, 32), (16, 16, 16), 3))
    low = 0.0 if doubtful else DOUBTFUL + 0.1
    trusts = {1: {0.5: 2.0, 1.0: 1.0, 2.0: 0.0}, 2: {0.5: low, 1.0: low + 1, 2.0: low + 0.5}}
    strategy._trust = lambda view, logits: trusts[len(engine.decoded[-1][0])][view.step_kji[0]]
    strategy._better_view = lambda view, logits: None
    clicks = [Click((16, 16, 16), True), Click((16, 16, 18), False)]
    first = strategy.predict(clicks[:1])
    assert first.view.step_kji[0] == 0.5
    encoded = len(engine.keys)
    second = strategy.predict(clicks, None, first)
    assert second.view.step_kji[0] == (1.0 if doubtful else 0.5)
    assert len(engine.keys) == encoded
    assert engine.decoded[-1][2] is None or not doubtful, "the mask so far is not shown to the other zooms"


@pytest.mark.parametrize("sober", [True, False])
def test_a_wider_view_is_believed_if_it_sees_the_same(see, sober):
    """A rod leaves the first view. A wider one that sees the rod is taken; one that sees more is not."""
    image = np.zeros((64, 64, 64), np.float32)
    image[28:37, 28:37, :] = 1
    strategy, engine = see(image)
    fine = strategy._view(np.array((32.0, 32.0, 32.0)), 1.0)
    strategy._zoom = lambda clicks: (fine, strategy._look(fine, clicks, None), 3.0)
    perfect = engine.decode

    def decode(embedding, *prompts):
        seen_fine = embedding is engine.kept[strategy._image_key.of(fine)]
        return perfect(embedding, *prompts) if sober or seen_fine else torch.full((1, ROI, ROI, ROI), 9.0)

    engine.decode = decode
    segment = strategy.predict([Click((32, 32, 32), True)])
    assert len(engine.views) > 1, "the mask is cut off: a wider view is tried"
    if sober:
        assert segment.view.step_kji[0] > fine.step_kji[0]
        assert dice(segment.mask, image > 0.5) > 0.9
    else:
        assert segment.view == fine
        assert np.array_equal(segment.mask[segment.box], image[segment.box] > 0.5)


def test_a_small_image_is_seen_whole(see):
    """The widest look at an image that fits one view is centred, wherever the click."""
    strategy, engine = see(ball((12, 16, 10), (6, 8, 5), 4))
    strategy.predict([Click((3, 8, 5), True)])
    first = engine.views[1]
    assert first.step_kji == (1, 1, 1)
    assert first.center_kji == pytest.approx((5.5, 7.5, 4.5), abs=0.5)


@pytest.mark.parametrize("step", [0.5, 1, 2, 8])
def test_the_images_own_border_cuts_nothing_off(see, step):
    """A view in a corner of the image, full of mask, is left through its three inner faces alone."""
    strategy, _ = see(np.arange(240.0**3, dtype=np.float32).reshape(240, 240, 240))
    full = torch.ones(ROI, ROI, ROI, dtype=torch.bool)
    for corner in ((0, 0, 0), (239, 239, 239), (0, 239, 0)):
        view = strategy._view(np.array(corner, float), step)
        assert strategy._cut_off(view, full) == 3 / 6
    assert strategy._cut_off(strategy._view(np.array((120.0, 120.0, 120.0)), step), full) == 1


def test_views_stay_inside_a_larger_image(see):
    """A click in the corner: a view of one voxel a sample has its first sample on the first voxel."""
    strategy, engine = see(ball((64, 64, 64), (0, 0, 63), 6))
    strategy.predict([Click((0, 0, 63), True)])
    assert engine.views[1].start_kji == (0, 0, 48)


def test_a_box_sets_the_first_view(see):
    """With a box nothing is searched: in the first view its longest side takes about 0.6 of the side."""
    strategy, engine = see(ball((64, 64, 64), (30, 30, 30), 10))
    segment = strategy.predict([Click((30, 30, 30), True)], Box((20, 20, 20), (40, 40, 40)))
    first = engine.views[0]
    assert first.center_kji == pytest.approx((30, 30, 30), abs=0.5)
    assert 21 / (first.step_kji[0] * first.size) == pytest.approx(0.6, abs=0.01)
    assert dice(segment.mask, ball((64, 64, 64), (30, 30, 30), 10) > 0.5) > 0.9


def test_weights_trained_with_boxes_are_shown_the_box():
    """As a previous mask that says where the object may be, with a click in its middle; then the mask."""
    image = ball((40, 40, 40), (20, 20, 20), 6)
    eye = Seeing()
    eye.metadata, eye.shape = {"box": "map"}, Shape(8, (1, 1, 1), 16, mixer=(8,))
    strategy = AdaptiveStrategy(eye, ROI)
    strategy.set_image(image, (1.0, 1.0, 1.0))
    box = Box((14, 14, 16), (26, 26, 24))
    segment = strategy.predict([], box)
    _, labels, shown = eye.decoded[0]
    view = eye.views[0]
    assert labels.tolist() == [1]
    inside = np.argwhere(shown[0].numpy() > 0)
    low, high = view.to_image(inside.min(0)), view.to_image(inside.max(0))
    assert np.all(np.abs(low - box.min_kji) <= np.array(view.step_kji))
    assert np.all(np.abs(high - box.max_kji) <= np.array(view.step_kji))
    assert shown.min() == BOX_OUTSIDE
    assert shown.max() == pytest.approx(BOX_INSIDE)
    strategy.predict([Click((20, 20, 20), True)], box, segment)
    assert eye.decoded[-1][2].max() > 1


@pytest.mark.parametrize(
    ("clicks", "wanted"),
    [
        ([], [1]),
        ([Click((12, 20, 20), True)], [1, 1]),
        ([Click((8, 20, 20), False)], [1, 0]),
        ([Click((19, 21, 21), False)], [0]),
        ([Click((12, 20, 20), True), Click((15, 20, 20), False)], [1, 0]),
    ],
)
def test_the_middle_of_a_box_counts_until_it_is_denied(see, clicks, wanted):
    """Box 10..30: its inner half is 15 to 25. A background click in there says that the middle is not it."""
    strategy, engine = see(ball((40, 40, 40), (20, 20, 20), 9))
    strategy.predict(clicks, Box((10, 10, 10), (30, 30, 30)))
    at, labels, _ = engine.decoded[0]
    assert labels.tolist() == wanted
    if len(wanted) > len(clicks):
        view = engine.views[0]
        assert np.abs(view.to_view(np.array((20, 20, 20))) - at[0]).max() <= 0.5


def test_clicks_reach_the_network_in_the_views_own_voxels(see):
    """Each click lands on the sample that shows its voxel; one outside the view is left out."""
    strategy, engine = see(ball((64, 64, 64), (30, 33, 28), 5))
    clicks = [Click((30, 33, 28), True), Click((30, 33, 31), False), Click((1, 1, 1), False)]
    view = strategy.predict(clicks).view
    coords, labels, _ = engine.decoded[engine.views.index(view)]
    where = view.to_view(np.array([click.kji for click in clicks]))
    inside = ((where >= -0.5) & (where < ROI - 0.5)).all(axis=1)
    assert inside.tolist() == [True, True, False]
    assert labels.tolist() == [1, 0]
    for at, click in zip(coords, clicks):
        assert np.abs(view.to_view(np.array(click.kji)) - at).max() <= 0.5


def test_a_further_click_is_shown_the_mask_before(see):
    """The earlier logits come back as the previous mask, in the view, with their sign."""
    image = ball((64, 64, 64), (30, 33, 28), 5)
    strategy, engine = see(image)
    clicks = [Click((30, 33, 28), True)]
    before = strategy.predict(clicks)
    count = len(engine.keys)
    engine.decoded.clear()
    strategy.predict([*clicks, Click((30, 33, 30), True)], None, before)
    assert len(engine.keys) == count, "a click in the view needs no encoding"
    _, labels, previous = engine.decoded[0]
    assert labels.tolist() == [1, 1]
    assert previous.shape == (1, ROI, ROI, ROI)
    seen = before.view
    center = tuple(np.round(seen.to_view(np.array([[30, 33, 28]]))[0]).astype(int))
    assert previous[0][center] > 0
    assert previous[0][0, 0, 0] < 0


def test_what_was_found_elsewhere_is_kept(see):
    """A second object part far away is added: the first part stays in the mask."""
    image = np.maximum(ball((40, 40, 120), (20, 20, 15), 5), ball((40, 40, 120), (20, 20, 100), 5))
    strategy, _ = see(image)
    first = Click((20, 20, 15), True)
    before = strategy.predict([first])
    after = strategy.predict([first, Click((20, 20, 100), True)], None, before)
    assert after.mask[20, 20, 15]
    assert after.mask[20, 20, 100]
    assert dice(after.mask, image > 0.5) > 0.8


@pytest.mark.parametrize("shape", [(1, 40, 30), (40, 1, 30), (4, 4, 500), (3, 3, 3)], ids=str)
def test_thin_images_are_seen(see, shape):
    """However wide the view, the network is shown an image and not only what lies beside it."""
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    strategy, engine = see(image)
    strategy.predict([Click(tuple(n // 2 for n in shape), True)])
    for embedding in engine.kept.values():
        assert embedding.low.max() > 0.1


@pytest.mark.parametrize("seed", range(6))
def test_every_click_is_obeyed(make_engine, blobs, seed):
    """Whatever the network says: after each click all voxels clicked so far are as they were clicked."""
    predictor = Predictor(make_engine(additions=True, seed=seed), roi=ROI)
    shape = (24, 70, 41)
    predictor.set_image(blobs(*shape, seed=seed))
    predictor.add_object("a")
    rng = np.random.default_rng(seed)
    clicks = {}
    for n in range(6):
        kji = tuple(int(rng.integers(size)) for size in shape)
        clicks[kji] = n == 0 or bool(rng.random() < 0.5)
        predictor.add_click("a", kji, clicks[kji])
        mask = predictor.predict("a")
        assert {at: bool(mask[at]) for at in clicks} == clicks


def test_the_last_of_two_clicks_on_a_voxel_counts(make_engine, blobs):
    """A user who changes their mind is obeyed."""
    predictor = Predictor(make_engine(additions=True), roi=ROI)
    predictor.set_image(blobs(20, 20, 20))
    predictor.add_object("a")
    for positive in (True, False, True):
        predictor.add_click("a", (10, 10, 10), positive)
        assert predictor.predict("a")[10, 10, 10] == positive


def test_a_click_outside_its_box_is_obeyed(see):
    """A box says where to look first, not where the object ends."""
    strategy, _ = see(ball((60, 60, 60), (10, 10, 10), 4))
    segment = strategy.predict([Click((50, 50, 50), True)], Box((6, 6, 6), (14, 14, 14)))
    assert segment.mask[10, 10, 10]
    assert segment.mask[50, 50, 50]


def test_the_middle_of_a_box_is_no_click_that_others_give_way_to(see):
    """It counts as one for the box's own object alone; a true click keeps its voxel in the label map."""
    strategy, _ = see(ball((60, 60, 60), (10, 10, 10), 4))
    box, middle = Box((6, 6, 6), (14, 14, 14)), Click((10, 10, 10), True)
    boxed, clicked = strategy.predict([], box), strategy.predict([middle])
    assert (boxed.mask[10, 10, 10], boxed.claimed) == (True, ())
    assert clicked.claimed == (middle.kji,)
    assert paint_by_logit([boxed, clicked], (60, 60, 60))[10, 10, 10] == 2


def test_a_click_beside_what_the_network_sees_is_obeyed(see):
    """The mask lies beside the click, and the view that fits the mask no longer shows the click."""
    strategy, _ = see(ball((64, 64, 64), (30, 30, 30), 3))
    segment = strategy.predict([Click((30, 30, 37), True)])
    assert segment.mask[30, 30, 30]
    assert segment.mask[30, 30, 37]


def test_a_clicked_voxel_is_sure_but_not_surer_than_the_network(make_engine, blobs):
    """Obeying lifts a logit to `CLICK_LOGIT` and lowers none that is higher."""
    predictor = Predictor(make_engine(additions=True), roi=ROI)
    predictor.set_image(blobs(20, 20, 20))
    predictor.add_object("a")
    predictor.add_click("a", (10, 10, 10))
    segment = predictor.segment("a")
    at = tuple(x - s.start for x, s in zip((10, 10, 10), segment.box))
    assert segment.logits[at] >= CLICK_LOGIT


def test_an_empty_answer_is_the_clicked_voxel(blobs):
    """A network that sees nothing: the mask is the clicks alone, and a further click starts a new search."""
    engine = Seeing(threshold=1e6)
    strategy = AdaptiveStrategy(engine, ROI)
    strategy.set_image(blobs(20, 20, 20), (1.0, 1.0, 1.0))
    first = strategy.predict([Click((5, 6, 7), True)])
    assert np.argwhere(first.mask).tolist() == [[5, 6, 7]]
    both = strategy.predict([Click((5, 6, 7), True), Click((5, 6, 9), True)], None, first)
    assert np.argwhere(both.mask).tolist() == [[5, 6, 7], [5, 6, 9]]


def test_intensities_follow_the_weights(blobs):
    """Weights trained on views scaled by themselves get such views, others the whole image's percentiles."""
    image = blobs(32, 32, 32)
    image[:16] *= 100
    click = Click((24, 16, 16), True)
    shown = {}
    for intensity in ("view", "image"):
        engine = Seeing()
        engine.metadata = {"intensity": intensity}
        strategy = AdaptiveStrategy(engine, ROI)
        strategy.set_image(image, (1.0, 1.0, 1.0))
        strategy.predict([click])
        shown[intensity] = engine.kept[engine.keys[0]].low
    assert shown["image"].std() < 0.02, "the dim half has little of the whole image's contrast"
    assert torch.quantile(shown["view"].flatten(), 0.99).item() == pytest.approx(1, abs=0.01)
    assert torch.quantile(shown["view"].flatten(), 0.01).item() == pytest.approx(0, abs=0.01)
