"""Clicks go in, masks come out; what a mask depends on is the image and the ledger, nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from GSMedSegLib.checkpoint import write_safetensors
from GSMedSegLib.geometry import spacing_kji_mm
from GSMedSegLib.hint import next_click
from GSMedSegLib.intensity import to_grey
from GSMedSegLib.predictor import REMEMBERED_BYTES, STRATEGIES, Predictor, load_engine
from GSMedSegLib.prompts import Box, Click, ClickLedger

SHAPE = (20, 36, 28)
OBLIQUE = np.array(
    [[0.0, -0.6, 2.4, 10.0], [0.7, 0.0, 0.1, -20.0], [0.1, 0.5, 1.9, 30.0], [0.0, 0.0, 0.0, 1.0]]
)
CLICKS = (
    ((10, 18, 14), True),
    ((3, 30, 20), False),
    ((12, 5, 25), True),
    ((19, 0, 0), False),
    ((0, 35, 27), True),
)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    """Each strategy."""
    return request.param


@pytest.fixture
def make_predictor(make_engine, blobs, strategy):
    """Predictors with an image set, all alike; a network with the additions, which take the previous mask."""

    def make(shape=SHAPE, matrix=None, ledger=None, remembered_bytes=REMEMBERED_BYTES, **engine):
        predictor = Predictor(make_engine(additions=True, **engine), strategy, 16, remembered_bytes)
        predictor.set_image(blobs(*shape), matrix, ledger)
        return predictor

    return make


def click_through(predictor, name="a", clicks=CLICKS):
    """Adds the object and its clicks; the logits after each click, as (logits, box)."""
    predictor.add_object(name)
    segments = []
    for kji, positive in clicks:
        predictor.add_click(name, kji, positive)
        segments.append(predictor.segment(name))
    return segments


def assert_same_bits(ours, theirs):
    """Box and logits equal, NaN for NaN."""
    assert ours.box == theirs.box
    assert torch.equal(ours.logits.isnan(), theirs.logits.isnan())
    assert torch.equal(ours.logits.nan_to_num(7.0), theirs.logits.nan_to_num(7.0))
    assert np.array_equal(ours.mask, theirs.mask)


def test_every_click_has_its_say(make_predictor):
    """A mask of the image's shape and type bool; each click of this set changes the logits."""
    predictor = make_predictor()
    segments = click_through(predictor)
    mask = predictor.predict("a")
    assert mask.shape == SHAPE
    assert mask.dtype == bool
    assert mask.any()
    assert not mask.all()
    for before, after in pairwise(segments):
        assert before.box != after.box or not torch.equal(
            before.logits.nan_to_num(7), after.logits.nan_to_num(7)
        )


def test_undo_and_redo_give_the_same_bits(make_predictor):
    """Back to every earlier state and forth again: the logits of then, not merely like them."""
    predictor = make_predictor()
    segments = click_through(predictor)
    for n in range(len(CLICKS) - 1, 0, -1):
        assert predictor.undo()
        assert_same_bits(predictor.segment("a"), segments[n - 1])
    for n in range(1, len(CLICKS)):
        assert predictor.redo()
        assert_same_bits(predictor.segment("a"), segments[n])
    assert not predictor.redo()


@pytest.mark.parametrize("cache_gb", [2.0, 0.0], ids=["cached", "nothing cached"])
def test_undo_and_redo_without_memory(make_predictor, cache_gb):
    """Earlier masks and embeddings forgotten: computed again, bit for bit."""
    segments = click_through(make_predictor())
    predictor = make_predictor(cache_gb=cache_gb, remembered_bytes=0)
    for segment, expected in zip(click_through(predictor), segments):
        assert_same_bits(segment, expected)
    assert len(predictor._known) == 1
    for n in (3, 2, 1, 0):
        predictor.undo()
        assert_same_bits(predictor.segment("a"), segments[n])
    for n in (1, 2, 3, 4):
        predictor.redo()
        assert_same_bits(predictor.segment("a"), segments[n])


def test_undo_spares_the_network(make_predictor):
    """What was seen before comes from memory: neither encoder nor progress is called."""
    predictor = make_predictor()
    click_through(predictor)
    encoded = predictor._strategy.engine.encoded
    calls = []
    predictor.undo()
    predictor.segment("a", lambda done, total: calls.append((done, total)))
    predictor.redo()
    predictor.segment("a", lambda done, total: calls.append((done, total)))
    assert predictor._strategy.engine.encoded == encoded
    assert calls == []


def test_a_saved_ledger_replays_to_the_same_bits(make_predictor, tmp_path):
    """Saved, loaded, given to a new predictor: the same masks at once, without the steps in between."""
    predictor = make_predictor(matrix=OBLIQUE)
    segments = click_through(predictor)
    other = click_through(predictor, "b", CLICKS[2:4])
    predictor.ledger.save(tmp_path / "clicks.json")
    fresh = make_predictor(matrix=OBLIQUE, ledger=ClickLedger.load(tmp_path / "clicks.json"))
    assert fresh.objects == ("a", "b")
    assert_same_bits(fresh.segment("a"), segments[-1])
    assert_same_bits(fresh.segment("b"), other[-1])
    assert np.array_equal(fresh.labels(), predictor.labels())


def test_a_detour_leaves_no_trace(make_predictor):
    """Click, undo, click elsewhere: as if the first had never been; so with a clearing."""
    straight = click_through(make_predictor())[-1]
    predictor = make_predictor()
    predictor.add_object("a")
    predictor.add_click("a", (1, 1, 1))
    predictor.predict("a")
    predictor.undo()
    predictor.add_click("a", (15, 30, 5))
    predictor.add_click("a", (15, 30, 6), False)
    predictor.predict("a")
    predictor.clear("a")
    for kji, positive in CLICKS:
        predictor.add_click("a", kji, positive)
    assert_same_bits(predictor.segment("a"), straight)


def test_objects_are_independent(make_predictor):
    """Clicks taken in turns on three objects give what each gives alone."""
    sets = {"a": CLICKS[:3], "b": CLICKS[2:], "c": (((5, 20, 20), True), ((5, 20, 24), False))}
    alone = {name: click_through(make_predictor(), name, clicks)[-1] for name, clicks in sets.items()}
    predictor = make_predictor()
    for name in sets:
        predictor.add_object(name)
    for n in range(3):
        for name, clicks in sets.items():
            if n < len(clicks):
                predictor.add_click(name, *clicks[n])
                predictor.predict(name)
    for name, expected in alone.items():
        assert_same_bits(predictor.segment(name), expected)


def test_two_predictors_may_share_an_engine(make_engine, blobs, strategy):
    """Two images open at once, clicked in turns: no embedding of one answers for the other."""
    engine = make_engine(additions=True)
    images = blobs(*SHAPE, seed=1), blobs(*SHAPE, seed=2)
    alone = []
    for image in images:
        predictor = Predictor(make_engine(additions=True), strategy, roi=16)
        predictor.set_image(image)
        alone.append(click_through(predictor))
    pair = [Predictor(engine, strategy, roi=16) for _ in images]
    for predictor, image in zip(pair, images):
        predictor.set_image(image)
        predictor.add_object("a")
    for n, click in enumerate(CLICKS):
        for predictor, expected in zip(pair, alone):
            predictor.add_click("a", *click)
            assert_same_bits(predictor.segment("a"), expected[n])


def test_a_second_image_starts_afresh(make_predictor, blobs):
    """Objects, clicks and masks of the first are gone; the second is segmented as if it were the first."""
    predictor = make_predictor((40, 36, 40))
    click_through(predictor)
    predictor.set_image(blobs(*SHAPE))
    assert predictor.objects == ()
    for segment, expected in zip(click_through(predictor), click_through(make_predictor())):
        assert_same_bits(segment, expected)


def test_before_an_image_there_is_nothing(make_engine, strategy):
    """Every verb that needs an image names the missing call."""
    predictor = Predictor(make_engine(), strategy, roi=16)
    for verb in (
        lambda: predictor.ledger,
        lambda: predictor.objects,
        lambda: predictor.add_object("a"),
        lambda: predictor.add_click("a", (0, 0, 0)),
        lambda: predictor.set_box("a", Box((0, 0, 0), (1, 1, 1))),
        lambda: predictor.predict("a"),
        lambda: predictor.segment("a"),
        lambda: predictor.labels(),
        predictor.undo,
        predictor.redo,
        predictor.clear,
    ):
        with pytest.raises(RuntimeError, match="there is no image yet; call set_image first"):
            verb()


def test_without_a_prompt_there_is_no_mask(make_predictor):
    """Nothing to start from: the missing call is named, also after all has been taken back."""
    predictor = make_predictor()
    predictor.add_object("a")
    predictor.add_object("b")
    missing = r"has no foreground click yet; call add_click first"
    with pytest.raises(RuntimeError, match=rf"object 'a' {missing}"):
        predictor.predict("a")
    predictor.add_click("a", (10, 18, 14))
    predictor.predict("a")
    with pytest.raises(RuntimeError, match=rf"object 'b' {missing}"):
        predictor.predict("b")
    predictor.undo()
    with pytest.raises(RuntimeError, match=rf"object 'a' {missing}"):
        predictor.predict("a")


def test_what_each_strategy_can_start_from(make_predictor, strategy):
    """A background click alone will do for the seed method, as in MONAI; a box for the adaptive one."""
    predictor = make_predictor()
    predictor.add_object("click")
    predictor.add_click("click", (10, 18, 14), positive=False)
    predictor.add_object("box")
    predictor.set_box("box", Box((4, 10, 8), (14, 25, 20)))
    can, cannot = ("box", "click") if strategy == "adaptive" else ("click", "box")
    assert predictor.predict(can).shape == SHAPE
    with pytest.raises(RuntimeError, match=f"object '{cannot}' has no foreground click yet"):
        predictor.predict(cannot)
    labels = predictor.labels()
    assert np.array_equal(labels > 0, predictor.predict(can))
    if strategy == "adaptive":
        assert labels[9, 17, 14] == 2, "the middle of the box"


def test_a_background_click_may_come_first(make_predictor):
    """It waits for the first foreground click and then counts, however the mask is asked for."""
    clicks = (((3, 30, 20), False), ((10, 18, 14), True), ((12, 5, 25), True))
    predictor = make_predictor()
    predictor.add_object("a")
    predictor.add_click("a", *clicks[0])
    predictor.add_click("a", *clicks[1])
    predictor.predict("a")
    predictor.add_click("a", *clicks[2])
    at_once = make_predictor()
    at_once.add_object("a")
    for click in clicks:
        at_once.add_click("a", *click)
    assert_same_bits(predictor.segment("a"), at_once.segment("a"))


def test_wrong_names_and_places(make_predictor):
    """Unknown object, taken name, click outside, click of two numbers: nothing is recorded."""
    predictor = make_predictor()
    predictor.add_object("a")
    with pytest.raises(ValueError, match=r"no object 'b'.*add_object"):
        predictor.add_click("b", (0, 0, 0))
    with pytest.raises(ValueError, match="no object 'b'"):
        predictor.predict("b")
    with pytest.raises(ValueError, match="already"):
        predictor.add_object("a")
    with pytest.raises(ValueError, match=r"\(20, 0, 0\) is outside the image"):
        predictor.add_click("a", (20, 0, 0))
    with pytest.raises(ValueError, match=r"three whole numbers in \(k, j, i\) order"):
        predictor.add_click("a", (1, 2))
    assert predictor.ledger.clicks("a") == ()
    assert not predictor.undo()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4)), "expected a 3D image"),
        (np.zeros((4, 4, 4, 3)), "choose one channel"),
        (np.zeros((0, 4, 4)), "expected a 3D image"),
        (np.full((4, 4, 4), 5.0), "constant"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 3, np.nan, 1.0), "NaN or infinite"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 3, np.inf, 1.0), "NaN or infinite"),
        (np.arange(64).reshape(4, 4, 4) * 1e300, "voxels must lie between"),
        (np.ones((4, 4, 4), complex), "real numbers"),
        ([[[1, 2]]], "expected a NumPy array"),
        (None, "expected a NumPy array"),
    ],
    ids=["2D", "4D", "empty", "constant", "NaN", "infinite", "huge", "complex", "list", "none"],
)
def test_a_refused_image_changes_nothing(make_predictor, image, message):
    """What is wrong is told, and the image before, its clicks and its masks are still there."""
    predictor = make_predictor()
    before = click_through(predictor, clicks=CLICKS[:2])[-1]
    with pytest.raises(ValueError, match=message):
        predictor.set_image(image)
    predictor._known.clear()
    assert_same_bits(predictor.segment("a"), before)


def test_a_ledger_of_another_image_is_refused(make_predictor, blobs):
    """Clicks never land on an image they were not made on."""
    predictor = make_predictor(matrix=OBLIQUE)
    before = click_through(predictor, clicks=CLICKS[:1])[-1]
    for ledger in (ClickLedger((3, 3, 3)), ClickLedger(SHAPE, np.diag([1.0, 1.0, 9.0, 1.0]))):
        with pytest.raises(ValueError, match="the clicks were made on an image"):
            predictor.set_image(blobs(*SHAPE, seed=5), OBLIQUE, ledger)
    predictor._known.clear()
    assert_same_bits(predictor.segment("a"), before)


def test_wrong_settings_teach(make_engine):
    """Unknown strategies and ROIs that the network cannot take."""
    engine = make_engine()
    with pytest.raises(ValueError, match="expected strategy adaptive or reference; got 'magic'"):
        Predictor(engine, "magic")
    for roi in (0, -16, 18):
        with pytest.raises(ValueError, match=f"a multiple of 4; got {roi}"):
            Predictor(engine, "adaptive", roi)


def test_the_weights_may_name_a_roi(make_engine):
    """By default the adaptive strategy looks through the ROI that the weights were trained on."""
    assert Predictor(make_engine(metadata={"roi": "24"}))._strategy.roi == 24
    assert Predictor(make_engine(metadata={"roi": "24"}), roi=16)._strategy.roi == 16
    assert Predictor(make_engine(metadata={"roi": "24"}), "reference")._strategy.roi == 128


@pytest.mark.parametrize("roi", ["many", "18", "-16", "0"])
def test_metadata_that_cannot_be_a_roi(make_engine, roi):
    """A checkpoint's own words are checked like a user's."""
    with pytest.raises(ValueError, match=r"ROI|roi"):
        Predictor(make_engine(metadata={"roi": roi}))


def test_labels_number_the_objects(make_predictor):
    """In the order added; an object without clicks keeps its number and has no voxels."""
    predictor = make_predictor()
    for name in ("none", "a", "nothing"):
        predictor.add_object(name)
    assert not predictor.labels().any()
    predictor.add_click("a", (10, 18, 14))
    labels = predictor.labels()
    assert labels.shape == SHAPE
    assert np.array_equal(labels == 2, predictor.predict("a"))
    assert set(np.unique(labels)) == {0, 2}


def test_overlapping_objects(make_predictor, strategy):
    """The last wins with the reference strategy, the surer otherwise; computed here from the logits."""
    predictor = make_predictor()
    first = click_through(predictor, "a", CLICKS[:1])[-1]
    second = click_through(predictor, "b", (((11, 16, 15), True),))[-1]
    both = first.mask & second.mask
    assert both.any()
    expected = np.where(second.mask, 2, np.where(first.mask, 1, 0))
    if strategy == "adaptive":
        logits = np.full((2, *SHAPE), -np.inf, np.float32)
        for n, segment in enumerate((first, second)):
            logits[n][segment.box] = segment.logits.numpy()
        expected = np.where(both, 1 + logits.argmax(0), expected)
    assert np.array_equal(predictor.labels(), expected)


def test_progress_counts_the_steps(make_predictor, strategy):
    """Called after every step that needs the network, last with all; `labels` counts those of all objects."""
    predictor = make_predictor()
    for name, clicks in (("a", CLICKS), ("none", ()), ("b", CLICKS[:1])):
        predictor.add_object(name)
        for kji, positive in clicks:
            predictor.add_click(name, kji, positive)
    calls = []
    predictor.segment("a", lambda done, total: calls.append((done, total)))
    assert calls == ([(n, 5) for n in range(1, 6)] if strategy == "adaptive" else [(1, 1)])
    calls.clear()
    predictor.labels(lambda done, total: calls.append((done, total)))
    assert calls == ([(5, 6), (6, 6)] if strategy == "adaptive" else [(1, 2), (2, 2)])


@pytest.mark.parametrize(
    "shape", [(1, 40, 30), (40, 1, 30), (40, 30, 1), (3, 3, 3), (2, 1, 1), (4, 4, 500), (33, 17, 20)], ids=str
)
def test_images_of_odd_sizes(make_predictor, strategy, shape):
    """One voxel thick, tiny, long: clicks in the middle and two corners give masks of the image's shape."""
    predictor = make_predictor(shape)
    last = tuple(n - 1 for n in shape)
    clicks = ((tuple(n // 2 for n in shape), True), ((0, 0, 0), False), (last, True))
    for segment in click_through(predictor, clicks=clicks):
        assert segment.mask.shape == shape
        assert not segment.logits.isinf().any()
        assert strategy == "reference" or not segment.logits.isnan().any()


@pytest.mark.parametrize(
    "matrix",
    [
        OBLIQUE,
        np.diag([-1.0, 1.0, 5.0, 1.0]),
        np.diag([0.02, 0.02, 0.02, 1.0]),
        np.diag([300.0, 1.0, 1.0, 1.0]),
    ],
    ids=["oblique", "thick and mirrored", "microscopy", "absurd"],
)
def test_every_geometry(make_predictor, matrix):
    """Whatever the axes in space, masks come on the image's own grid and replay from the ledger's text."""
    predictor = make_predictor(matrix=matrix)
    last = click_through(predictor)[-1]
    assert last.mask.shape == SHAPE
    fresh = make_predictor(matrix=matrix, ledger=ClickLedger.from_json(predictor.ledger.to_json()))
    assert_same_bits(fresh.segment("a"), last)


def test_weights_from_a_file(make_network, tmp_path, blobs):
    """A checkpoint on disk becomes an engine that answers as the network it was written from."""
    network = make_network(additions=True)
    path = tmp_path / "small.safetensors"
    write_safetensors(path, network.state_dict(), {"roi": "16", "intensity": "view"})
    engine = load_engine(str(path), device="cpu", precision="fp32")
    assert engine.shape == network.shape
    assert engine.metadata["intensity"] == "view"
    predictor = Predictor(engine)
    predictor.set_image(blobs(16, 16, 16))
    assert click_through(predictor, clicks=(((8, 8, 8), True),))[-1].mask[8, 8, 8]


def test_a_click_changes_a_given_mask_around_it_alone(make_engine, blobs):
    """Every change touches the click's own part of the difference; without clicks the mask is as given."""
    predictor = Predictor(make_engine(additions=True), "adaptive", roi=16)
    predictor.set_image(blobs(*SHAPE))
    predictor.add_object("a")
    mask = np.zeros(SHAPE, bool)
    mask[8:12, 10:20, 8:20] = True
    predictor.set_mask("a", mask)
    assert np.array_equal(predictor.predict("a"), mask)
    predictor.add_click("a", (10, 22, 14), True)
    added = predictor.predict("a")
    assert added[mask].all(), "a foreground click takes nothing away"
    assert added[10, 22, 14]
    predictor.add_click("a", (9, 12, 10), False)
    removed = predictor.predict("a")
    assert not removed[9, 12, 10]
    assert not (removed & ~added).any(), "a background click adds nothing"
    assert predictor.undo()
    assert np.array_equal(predictor.predict("a"), added)


def test_the_reference_strategy_takes_no_mask(make_engine, blobs):
    predictor = Predictor(make_engine(additions=True), "reference", roi=16)
    predictor.set_image(blobs(*SHAPE))
    predictor.add_object("a")
    predictor.set_mask("a", np.ones(SHAPE, bool))
    with pytest.raises(RuntimeError, match="use adaptive"):
        predictor.predict("a")


def test_probability_and_mask_say_the_same(make_predictor):
    """A voxel is in the mask where the network gives it more than a half."""
    predictor = make_predictor()
    click_through(predictor, clicks=CLICKS[:2])
    probability = predictor.probability("a")
    assert probability.shape == SHAPE
    np.testing.assert_array_equal(probability > 0.5, predictor.predict("a"))


def test_the_next_click_is_that_of_the_segment_in_the_image_s_millimetres(make_predictor):
    """OBLIQUE has voxels of unequal sides: the hint goes by them."""
    predictor = make_predictor(matrix=OBLIQUE)
    (segment,) = click_through(predictor, clicks=CLICKS[:1])
    spacing = spacing_kji_mm(OBLIQUE)
    assert len(set(np.round(spacing, 3))) == 3
    assert predictor.next_click("a") == next_click(segment, [Click(*CLICKS[0])], spacing)
    with pytest.raises(ValueError, match="b"):
        predictor.next_click("b")


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_weights_look_at_an_image_in_the_window_they_were_trained_in(make_engine, blobs, strategy, dtype):
    """As if the image came in that window; grey values of 8 bits came in one, and stay as they are."""
    windowed = Predictor(make_engine({"window": "-100 200.5"}, additions=True), strategy, 16)
    plain = Predictor(make_engine(additions=True), strategy, 16)
    values = blobs(*SHAPE)
    values = (values - values.min()) * (2000 / np.ptp(values)) - 1000
    image = values.astype(dtype)

    def answer(predictor, image):
        predictor.set_image(image)
        return click_through(predictor, clicks=CLICKS[:2])[-1]

    seen = np.clip((image.astype(np.float32) + 100) / np.float32(300.5), 0, 1)
    assert_same_bits(answer(windowed, image), answer(plain, seen))
    with pytest.raises(AssertionError):
        assert_same_bits(answer(windowed, image), answer(plain, image))
    grey = to_grey(values)
    assert_same_bits(answer(windowed, grey), answer(plain, grey))


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_what_float32_cannot_tell_apart_is_seen(make_engine, blobs, strategy, dtype):
    """The same image around 10⁹, where float32 knows every 64th number: the same logits."""
    image = np.round(blobs(*SHAPE) * 100).astype(dtype)
    answers = []
    for offset in (0, 10**9):
        predictor = Predictor(make_engine({"intensity": "view"}, additions=True), strategy, 16)
        predictor.set_image(image + dtype(offset))
        answers.append(click_through(predictor, clicks=CLICKS[:2])[-1])
    assert_same_bits(*answers)
