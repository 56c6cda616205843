"""Clicks, boxes, and the ledger that remembers them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from GSMedSegLib.cropped import crop
from GSMedSegLib.prompts import Box, Click, ClickLedger, ObjectPrompts

SHAPE = (10, 20, 30)
OBLIQUE_LEFT_HANDED = np.array([[0.6, 0.8, 0, 7], [-0.8, 0.6, 0, -3], [0, 0, -2.5, 11], [0, 0, 0, 1]])


def ledger_with(*names: str) -> ClickLedger:
    ledger = ClickLedger(SHAPE, OBLIQUE_LEFT_HANDED)
    for name in names:
        ledger.add_object(name)
    return ledger


def state(ledger: ClickLedger) -> dict[str, tuple[tuple[Click, ...], Box | None]]:
    return {name: (ledger.clicks(name), ledger.box(name)) for name in ledger.objects}


def test_a_click_is_plain_whatever_integers_it_was_made_of() -> None:
    click = Click(tuple(np.array([1, 2, 3], np.uint16)), np.True_)  # type: ignore[arg-type]
    assert click == Click((1, 2, 3), True)
    assert [type(index) for index in click.kji] == [int, int, int]
    assert type(click.positive) is bool
    assert len({click, Click((1, 2, 3), True), Click((1, 2, 3), False)}) == 2


@pytest.mark.parametrize("kji", [(1, 2), (1, 2, 3, 4), (1.5, 2, 3), "abc", None])
def test_a_click_needs_three_whole_numbers(kji: Any) -> None:
    with pytest.raises(ValueError, match="three whole numbers"):
        Click(kji, True)


def test_a_click_is_positive_or_negative() -> None:
    with pytest.raises(ValueError, match=r"positive .True. or negative"):
        Click((1, 2, 3), "fg")  # type: ignore[arg-type]


def test_a_box_goes_upwards_and_is_drawn_on_one_of_its_slices() -> None:
    assert Box((1, 2, 3), (1, 2, 3)).mid_k is None
    with pytest.raises(ValueError, match="lowest to its highest"):
        Box((1, 5, 3), (2, 4, 9))
    with pytest.raises(ValueError, match="mid_k"):
        Box((1, 2, 3), (4, 5, 6), mid_k=5)


def test_objects_have_their_own_clicks_in_order() -> None:
    ledger = ledger_with("liver", "spleen")
    ledger.add_click("liver", Click((1, 1, 1), True))
    ledger.add_click("spleen", Click((2, 2, 2), True))
    ledger.add_click("liver", Click((3, 3, 3), False))
    assert ledger.objects == ("liver", "spleen")
    assert ledger.clicks("liver") == (Click((1, 1, 1), True), Click((3, 3, 3), False))
    assert ledger.clicks("spleen") == (Click((2, 2, 2), True),)
    assert ledger.box("liver") is None


def test_undo_follows_the_history_and_not_the_object() -> None:
    ledger = ledger_with("a", "b")
    ledger.add_click("a", Click((1, 1, 1), True))
    ledger.add_click("b", Click((2, 2, 2), True))
    assert ledger.undo()
    assert (len(ledger.clicks("a")), len(ledger.clicks("b"))) == (1, 0)
    assert ledger.redo()
    assert len(ledger.clicks("b")) == 1
    assert not ledger.redo()
    assert ledger.undo()
    assert ledger.undo()
    assert not ledger.undo()
    assert ledger.objects == ("a", "b")


def test_a_new_click_ends_redo() -> None:
    ledger = ledger_with("a")
    ledger.add_click("a", Click((1, 1, 1), True))
    ledger.undo()
    ledger.add_click("a", Click((2, 2, 2), True))
    assert not ledger.redo()


def test_undoing_a_box_brings_the_one_before() -> None:
    ledger = ledger_with("a")
    first, second = Box((0, 0, 0), (2, 2, 2)), Box((1, 1, 1), (9, 19, 29), mid_k=4)
    ledger.set_box("a", first)
    ledger.set_box("a", second)
    assert ledger.box("a") == second
    ledger.undo()
    assert ledger.box("a") == first


def test_clearing_can_be_undone() -> None:
    ledger = ledger_with("a", "b")
    ledger.add_click("a", Click((1, 1, 1), True))
    ledger.set_box("b", Box((0, 0, 0), (2, 2, 2)))
    before = state(ledger)
    ledger.clear("a")
    assert ledger.clicks("a") == ()
    assert ledger.box("b") is not None
    ledger.clear()
    assert ledger.box("b") is None
    ledger.clear()  # nothing left: no step that undo would seem to ignore
    ledger.undo()
    ledger.undo()
    assert state(ledger) == before


@given(st.data())
def test_any_history_undone_and_redone_is_the_same_and_survives_json(data: st.DataObject) -> None:
    ledger = ledger_with("a", "b")
    voxels = st.tuples(*(st.integers(0, size - 1) for size in SHAPE))
    for _ in range(data.draw(st.integers(0, 12))):
        name, verb = (
            data.draw(st.sampled_from("ab")),
            data.draw(st.sampled_from(["click", "box", "clear", "undo", "redo"])),
        )
        if verb == "click":
            ledger.add_click(name, Click(data.draw(voxels), data.draw(st.booleans())))
        elif verb == "box":
            corners = np.sort([data.draw(voxels), data.draw(voxels)], axis=0)
            ledger.set_box(name, Box(tuple(corners[0]), tuple(corners[1])))
        elif verb == "clear":
            ledger.clear(data.draw(st.sampled_from([name, None])))
        else:
            getattr(ledger, verb)()
    while ledger.redo():
        pass
    text, before = ledger.to_json(), state(ledger)
    steps = 0
    while ledger.undo():
        steps += 1
    assert all(value == ((), None) for value in state(ledger).values())
    for _ in range(steps):
        assert ledger.redo()
    assert ledger.to_json() == text
    again = ClickLedger.from_json(text)
    assert again.to_json() == text
    assert state(again) == before


def test_the_file_has_positions_in_millimetres() -> None:
    """From (7, -3, 11): 10 steps along (0.6, -0.8, 0), 5 along (0.8, 0.6, 0), 2 along (0, 0, -2.5)."""
    ledger = ledger_with("Läsion")
    ledger.add_click("Läsion", Click((2, 5, 10), True))
    data = json.loads(ledger.to_json())
    assert (data["format"], data["version"], data["shape"]) == ("gsmedseg-clicks", 1, [10, 20, 30])
    np.testing.assert_allclose(data["ijk_to_ras"], OBLIQUE_LEFT_HANDED)
    (event,) = data["events"]
    np.testing.assert_allclose(event.pop("ras"), [17, -8, 6])
    assert event == {"event": "click", "object": "Läsion", "kji": [2, 5, 10], "positive": True}


def test_without_a_matrix_there_are_no_millimetres() -> None:
    ledger = ClickLedger(SHAPE)
    ledger.add_object("a")
    ledger.add_click("a", Click((1, 2, 3), True))
    assert "ras" not in json.loads(ledger.to_json())["events"][0]
    assert ClickLedger.from_json(ledger.to_json()).ijk_to_ras is None


def test_what_was_undone_is_not_saved(tmp_path: Path) -> None:
    ledger = ledger_with("a")
    ledger.add_click("a", Click((1, 1, 1), True))
    ledger.add_click("a", Click((2, 2, 2), True))
    ledger.undo()
    ledger.save(tmp_path / "clicks.json")
    loaded = ClickLedger.load(tmp_path / "clicks.json")
    assert loaded.clicks("a") == (Click((1, 1, 1), True),)
    assert not loaded.redo()


def test_wrong_prompts_are_refused_and_leave_no_trace() -> None:
    ledger = ledger_with("a")
    before = ledger.to_json()
    for kji in ((10, 0, 0), (0, -1, 0), (0, 0, 30)):
        with pytest.raises(ValueError, match="outside the image"):
            ledger.add_click("a", Click(kji, True))
    with pytest.raises(ValueError, match="outside the image"):
        ledger.set_box("a", Box((0, 0, 0), (9, 19, 30)))
    with pytest.raises(ValueError, match="no object 'b'; the objects are: 'a'"):
        ledger.add_click("b", Click((0, 0, 0), True))
    with pytest.raises(ValueError, match="no object 'b'"):
        ledger.clear("b")
    with pytest.raises(ValueError, match="already"):
        ledger.add_object("a")
    with pytest.raises(ValueError, match="needs a name"):
        ledger.add_object(" ")
    assert ledger.to_json() == before


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3), (3, 3, 3, 3)])
def test_a_ledger_is_for_a_3d_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image"):
        ClickLedger(shape)


def test_check_image_wants_the_same_grid() -> None:
    ledger = ledger_with("a")
    ledger.check_image(SHAPE, OBLIQUE_LEFT_HANDED)
    ledger.check_image(SHAPE)
    ClickLedger(SHAPE).check_image(SHAPE, OBLIQUE_LEFT_HANDED)
    with pytest.raises(ValueError, match="of shape"):
        ledger.check_image((10, 20, 31), OBLIQUE_LEFT_HANDED)
    moved = OBLIQUE_LEFT_HANDED.copy()
    moved[0, 3] += 0.5
    with pytest.raises(ValueError, match="another position"):
        ledger.check_image(SHAPE, moved)


K_FLIPPED = OBLIQUE_LEFT_HANDED @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 9], [0, 0, 0, 1]])
"""The same ten slices, counted from the other end, as Slicer has them: right-handed."""


def test_an_image_with_its_slices_from_the_other_end_is_the_same() -> None:
    assert ledger_with("a").flips(SHAPE, K_FLIPPED) == (0,)
    assert ledger_with("a").flips(SHAPE, OBLIQUE_LEFT_HANDED) == ()
    assert ClickLedger(SHAPE).flips(SHAPE, OBLIQUE_LEFT_HANDED) == ()


def test_an_image_that_is_more_than_flipped_is_another_one() -> None:
    ledger = ledger_with("a")
    shifted, permuted, about_origin = K_FLIPPED.copy(), K_FLIPPED[:, [1, 0, 2, 3]], OBLIQUE_LEFT_HANDED.copy()
    shifted[2, 3] += 2.5
    about_origin[:3, 2] *= -1
    for other in (shifted, permuted, about_origin):
        with pytest.raises(ValueError, match="another position"):
            ledger.flips(SHAPE, other)
    with pytest.raises(ValueError, match="of shape"):
        ledger.flips((11, 20, 30), K_FLIPPED)


def test_a_flipped_ledger_says_the_same_of_the_flipped_image() -> None:
    """Clicks, boxes and masks, what was undone too; the original stays as it is."""
    marked = np.zeros(SHAPE, bool)
    marked[1:4, 2, 3] = True
    ledger = ledger_with("a", "b")
    ledger.add_click("a", Click((1, 2, 3), True))
    ledger.clear("a")
    ledger.set_box("a", Box((1, 2, 3), (4, 5, 6), mid_k=2))
    ledger.set_mask("b", crop(marked))
    ledger.set_mask("b", crop(marked & False))
    ledger.add_click("b", Click((9, 0, 0), False))
    for _ in range(2):
        ledger.undo()
    before = ledger.to_json()
    flipped = ledger.flipped((0,))
    assert ledger.to_json() == before
    assert flipped.flips(SHAPE, OBLIQUE_LEFT_HANDED) == (0,)
    assert flipped.ijk_to_ras is not None
    np.testing.assert_allclose(flipped.ijk_to_ras, K_FLIPPED)
    assert flipped.prompts("a") == ObjectPrompts((), Box((5, 2, 3), (8, 5, 6), mid_k=7))
    assert flipped.prompts("b") == ObjectPrompts(mask=crop(marked[::-1]))
    assert flipped.redo()
    assert flipped.prompts("b") == ObjectPrompts(mask=crop(marked & False))
    assert flipped.redo()
    assert flipped.clicks("b") == (Click((0, 0, 0), False),)
    assert not flipped.redo()
    for _ in range(4):
        flipped.undo()
    assert flipped.undo()
    assert flipped.clicks("a") == (Click((8, 2, 3), True),)
    assert ClickLedger.from_json(flipped.flipped((0,)).to_json()).clicks("a") == (Click((1, 2, 3), True),)


def changed(**changes: Any) -> str:
    ledger = ledger_with("a")
    ledger.add_click("a", Click((1, 2, 3), True))
    return json.dumps({**json.loads(ledger.to_json()), **changes})


CLICK = {"event": "click", "object": "a", "kji": [1, 2, 3], "positive": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": "gsmedseg-cl', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a click ledger"),
        (changed(format="other"), "not a click ledger"),
        (changed(version=2), "update GSMedSeg"),
        (changed(shape="big"), '"shape" must be of type list'),
        (changed(shape=[1, 2]), "three whole numbers"),
        (changed(ijk_to_ras=[[1]]), "4x4"),
        (changed(objects=["a", "a"]), "already"),
        (changed(objects=[1]), "needs a name"),
        (changed(events=[CLICK, 7]), "event 2 .* expected a JSON object"),
        (changed(events=[{}]), 'event 1 .* "event" is missing'),
        (changed(events=[{**CLICK, "event": "lasso"}]), "click, box, mask or clear, got 'lasso'"),
        (changed(events=[{**CLICK, "object": "b"}]), "no object 'b'"),
        (changed(events=[{**CLICK, "kji": [1, 2, 30]}]), "event 1 .* outside the image"),
        (changed(events=[{**CLICK, "kji": [1, 2, 3.5]}]), "three whole numbers"),
        (changed(events=[{**CLICK, "kji": [True, False, True]}]), "three whole numbers"),
        (changed(events=[{**CLICK, "positive": 1}]), '"positive" must be of type bool'),
        (changed(events=[{**CLICK, "ras": [0, 0, 0]}]), "not in voxel"),
        (changed(events=[{**CLICK, "ras": [0, 0]}]), "three millimetre positions"),
        (changed(events=[{**CLICK, "ras": [float("nan"), 0, 0]}]), "not in voxel"),
        (changed(events=[{"event": "box", "object": "a", "min_kji": [0, 0, 0]}]), '"max_kji" is missing'),
    ],
)
def test_damaged_ledgers_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clicks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ClickLedger.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "clicks.json"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"clicks\.json: not a click ledger: not UTF-8 text$"):
        ClickLedger.load(path)
    with pytest.raises(FileNotFoundError):
        ClickLedger.load(tmp_path / "none.json")


def test_a_full_disk_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clicks.json"
    ledger = ledger_with("a")
    ledger.save(path)
    before = path.read_text()

    def write_half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[:10].encode(encoding))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    ledger.add_click("a", Click((1, 1, 1), True))
    with pytest.raises(OSError, match="No space left"):
        ledger.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_mask_stands_for_all_that_was_said_before() -> None:
    mask = crop(np.ones((2, 2, 2), bool), (4, 5, 6), (1, 1, 1))
    ledger = ClickLedger((4, 5, 6))
    ledger.add_object("a")
    ledger.add_click("a", Click((0, 0, 0), True))
    ledger.set_mask("a", mask)
    ledger.add_click("a", Click((3, 3, 3), False))
    assert ledger.prompts("a") == ObjectPrompts((Click((3, 3, 3), False),), None, mask)
    again = ClickLedger.from_json(ledger.to_json())
    assert again.prompts("a") == ledger.prompts("a")
    assert again.renamed({"a": "b"}).prompts("b") == ledger.prompts("a")
    assert ledger.undo()
    assert ledger.undo()
    assert ledger.prompts("a") == ObjectPrompts((Click((0, 0, 0), True),))


def test_masks_of_other_images_are_refused() -> None:
    ledger = ClickLedger((4, 5, 6))
    ledger.add_object("a")
    with pytest.raises(ValueError, match="the mask has"):
        ledger.set_mask("a", crop(np.ones((2, 2, 2), bool)))
    with pytest.raises(ValueError, match="is bool"):
        ledger.set_mask("a", crop(np.ones((4, 5, 6), np.uint8)))
