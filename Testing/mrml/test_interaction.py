"""Clicks in a scene, a real engine behind them, and masks in segments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.mrml.conftest import OBLIQUE, slicer, turned, vtk  # isort: skip - skips without Slicer

from GSMedSegLib.cropped import crop  # isort: skip
from GSMedSegLib.hint import next_click  # isort: skip
from GSMedSegLib.mrml.interaction import Interaction  # isort: skip
from GSMedSegLib.mrml.segments import Overwrite, is_voxels, new_segmentation, read_mask  # isort: skip
from GSMedSegLib.mrml.segments import set_locked, write_mask  # isort: skip
from GSMedSegLib.mrml.volumes import ijk_to_ras_of, image_of, voxel_to_world  # isort: skip
from GSMedSegLib.npz import read_case
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.prompts import Box, Click, ClickLedger, ObjectPrompts
from GSMedSegLib.service.background import Background, Told
from GSMedSegLib.service.engines import ServerEngine
from GSMedSegLib.service.wire import Question
from GSMedSegLib.volume_io import read_volume
from Testing.dicom_series import write_series
from Testing.lib.command_line import write
from Testing.service.conftest import TOKEN, Served, wait_until

MOVED = turned(30, (11.0, -7.0, 100.0))
FIRST, SECOND, BESIDE = (8, 8, 8), (12, 16, 20), (2, 20, 4)


class Desk:
    """A volume, its segmentation with the segments a and b, and an engine: what a user has before them."""

    def __init__(self, served: Served, volume: Any, segmentation: Any = None) -> None:
        self.served, self.volume = served, volume
        self.segmentation = segmentation or new_segmentation(volume)
        for name in "ab":
            if self.segmentation.GetSegmentation().GetSegment(name) is None:
                self.segmentation.GetSegmentation().AddEmptySegment(name, name.upper())
        self.background = Background(ServerEngine(served.url, TOKEN, timeout_s=60))
        self.interaction = Interaction(volume, self.segmentation, self.background)

    def click(self, name: str, kji: tuple[int, int, int], positive: bool = True) -> None:
        """A click on a voxel, and its mask."""
        assert self.interaction.add_click(name, voxel_to_world(self.volume, kji), positive) == kji
        self.interaction.segment(name)
        self.wait()

    def wait(self) -> list[Told]:
        """Polls, as a timer does, until no mask is waited for."""
        told: list[Told] = []
        wait_until(
            lambda: told.extend(self.interaction.update(self.background.poll())) or not self.interaction.busy
        )
        for one in told:
            assert one.error is None, one.error
        return told

    def mask(self, name: str) -> np.ndarray:
        """(K, J, I) what the segment has."""
        return read_mask(self.segmentation, name, self.volume).whole()

    def truth(self, prompts: ObjectPrompts) -> np.ndarray:
        """(K, J, I) what the engine makes of the volume's own array, without Slicer and service."""
        predictor = Predictor(self.served.engine)
        predictor.set_image(image_of(self.volume), ijk_to_ras_of(self.volume))
        return predictor.segment_from(prompts).mask


def clicks(*voxels: tuple[int, int, int]) -> ObjectPrompts:
    """Foreground clicks."""
    return ObjectPrompts(tuple(Click(kji, True) for kji in voxels))


@pytest.fixture
def desk(
    serve: Callable[..., AbstractContextManager[Served]], add_volume: Callable[..., Any], image: np.ndarray
) -> Iterator[Desk]:
    """A desk with an oblique volume under a transform."""
    with serve() as served:
        made = Desk(served, add_volume(image, OBLIQUE, MOVED))
        yield made
        made.background.close()


def test_a_click_gives_a_mask_where_numpy_says(desk: Desk):
    desk.click("a", FIRST)
    assert desk.truth(clicks(FIRST)).any()
    assert np.array_equal(desk.mask("a"), desk.truth(clicks(FIRST)))
    assert not desk.mask("b").any()


def test_undo_and_redo_go_all_the_way(desk: Desk):
    desk.click("a", FIRST)
    one = desk.mask("a")
    desk.click("a", BESIDE, False)
    two = desk.mask("a")
    desk.click("b", SECOND)
    three = desk.mask("b")
    for expected in (("b", one * 0, "b"), ("a", one, "a"), ("a", one * 0, "a")):
        assert desk.interaction.undo() == expected[0]
        desk.wait()
        assert np.array_equal(desk.mask(expected[2]), expected[1])
    assert desk.interaction.undo() is None
    assert not desk.interaction.can_undo
    for name, mask in (("a", one), ("a", two), ("b", three)):
        assert desk.interaction.redo() == name
        desk.wait()
        assert np.array_equal(desk.mask(name), mask)
    assert desk.interaction.redo() is None


def test_a_segment_keeps_clear_of_its_neighbour(desk: Desk):
    desk.click("a", FIRST)
    before = desk.mask("a")
    desk.click("b", (8, 8, 9))
    assert np.array_equal(desk.mask("a"), before)
    assert not (desk.mask("b") & before).any()


def test_a_neighbour_loses_only_what_the_mask_has_now(desk: Desk):
    """After a correction, undo, redo, cancel and clearing; also when others are to stay again meanwhile."""
    painted = np.ones(image_of(desk.volume).shape, bool)
    write_mask(desk.segmentation, "a", desk.volume, crop(painted))
    desk.interaction.overwrite = Overwrite.OTHERS
    desk.click("b", FIRST)
    first = desk.mask("b")
    desk.click("b", (8, 8, 7), False)
    second = desk.mask("b")
    assert (first & ~second).any(), "the correction gives something back"
    assert np.array_equal(desk.mask("a"), ~second)
    desk.interaction.overwrite = Overwrite.NOTHING
    desk.background._answers.clear()  # what is remembered here would be there at once
    go = hold_up(desk)
    assert desk.interaction.undo() == "b"
    desk.interaction.cancel()
    go.set()
    assert np.array_equal(desk.mask("a"), ~second)
    desk.interaction.overwrite = Overwrite.OTHERS
    for step, left in (
        (desk.interaction.undo, ~first),
        (desk.interaction.undo, painted),
        (desk.interaction.redo, ~first),
        (lambda: desk.interaction.clear("b"), painted),
    ):
        step()
        desk.wait()
        assert np.array_equal(desk.mask("a"), left)


def test_a_neighbour_that_is_cleared_gets_nothing_back(desk: Desk):
    paint(desk)
    desk.interaction.overwrite = Overwrite.OTHERS
    desk.click("b", FIRST)
    desk.click("a", BESIDE)
    desk.interaction.clear("a")
    desk.interaction.clear("b")
    assert not desk.mask("a").any()


def test_clear_is_a_step_too(desk: Desk):
    desk.click("a", FIRST)
    before = desk.mask("a")
    desk.interaction.clear("a")
    assert not desk.mask("a").any()
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), before)


def test_a_box_in_the_world(desk: Desk):
    """Its corners are in world coordinates, under the transform."""
    low, high = (4, 4, 4), (12, 12, 12)
    corners = [voxel_to_world(desk.volume, [(low, high)[c >> a & 1][a] for a in range(3)]) for c in range(8)]
    box = desk.interaction.set_box("a", corners)
    assert box == Box(low, high)
    desk.interaction.segment("a")
    desk.wait()
    assert np.array_equal(desk.mask("a"), desk.truth(ObjectPrompts((), box)))


def test_a_painted_segment_is_where_clicks_start(desk: Desk):
    """And where undo ends."""
    painted = np.zeros(image_of(desk.volume).shape, bool)
    painted[7:10, 7:10, 7:10] = True
    write_mask(desk.segmentation, "a", desk.volume, crop(painted))
    desk.click("a", (8, 8, 11))
    prompts = ObjectPrompts((Click((8, 8, 11), True),), None, crop(painted))
    assert np.array_equal(desk.mask("a"), desk.truth(prompts))
    assert desk.mask("a")[painted].all()
    assert desk.interaction.undo() == "a"
    assert np.array_equal(desk.mask("a"), painted)
    assert desk.interaction.undo() is None
    assert np.array_equal(desk.mask("a"), painted)


def test_paint_between_clicks_is_kept_and_undone(desk: Desk):
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    painted = clicked.copy()
    painted[0, 0, :5] = True
    write_mask(desk.segmentation, "a", desk.volume, crop(painted))
    desk.click("a", BESIDE, False)
    assert desk.mask("a")[0, 0, :5].all()
    assert desk.interaction.undo() == "a"
    assert np.array_equal(desk.mask("a"), painted)
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), clicked)


def test_undo_and_redo_go_past_what_a_neighbour_began_with(desk: Desk):
    """Paint that another segment had before its first click stays, and is where clicks on it start again."""
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    write_mask(desk.segmentation, "b", desk.volume, crop(~clicked & (np.arange(28) > 20)))
    painted = desk.mask("b")
    desk.click("b", (17, 2, 19))
    second = desk.mask("b")
    assert not np.array_equal(second, painted)

    def step(what: Callable[[], str | None], name: str, a: np.ndarray, b: np.ndarray) -> None:
        assert what() == name
        desk.wait()
        assert np.array_equal(desk.mask("a"), a)
        assert np.array_equal(desk.mask("b"), b)

    interaction = desk.interaction
    for _ in range(2):
        step(interaction.undo, "b", clicked, painted)
        assert interaction.can_undo
        step(interaction.undo, "a", clicked & False, painted)
        assert not interaction.can_undo
        step(interaction.redo, "a", clicked, painted)
        assert interaction.can_redo
        step(interaction.redo, "b", clicked, second)
        assert not interaction.can_redo
    for _ in range(2):
        interaction.undo()
        desk.wait()
    desk.click("b", (17, 2, 18))
    assert interaction.ledger.prompts("b") == ObjectPrompts((Click((17, 2, 18), True),), None, crop(painted))


def test_paint_after_a_clearing_is_a_step(desk: Desk):
    """Unlike what a segment began with, undo takes it back, and redo brings it again."""
    desk.click("b", SECOND)
    desk.interaction.clear("b")
    desk.wait()
    write_mask(desk.segmentation, "b", desk.volume, crop(np.arange(28) > np.full((20, 24, 1), 20)))
    painted = desk.mask("b")
    desk.click("b", (17, 2, 19))
    second = desk.mask("b")
    for step, expected in (
        (desk.interaction.undo, painted),
        (desk.interaction.undo, painted & False),
        (desk.interaction.redo, painted),
        (desk.interaction.redo, second),
    ):
        assert step() == "b"
        desk.wait()
        assert np.array_equal(desk.mask("b"), expected)
    assert not desk.interaction.can_redo


def test_cancel_after_undo_went_past_paint_takes_the_click(desk: Desk):
    write_mask(desk.segmentation, "b", desk.volume, crop(np.arange(28) > np.full((20, 24, 1), 20)))
    desk.click("a", FIRST)
    desk.click("b", (17, 2, 23))
    for _ in range(2):
        desk.interaction.undo()
        desk.wait()
    write_mask(desk.segmentation, "b", desk.volume, crop(np.zeros((20, 24, 28), bool)))
    desk.interaction.add_click("b", voxel_to_world(desk.volume, SECOND), True)
    desk.interaction.segment("b")
    assert desk.interaction.cancel() == ["b"]
    assert desk.interaction.ledger.clicks("b") == ()
    assert not desk.mask("b").any()


def test_what_the_segment_editor_takes_back_stays_away(desk: Desk):
    """Its undo brings back what a segment is tagged with, too."""
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(desk.segmentation.GetSegmentation())
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    history.SaveState()
    paint(desk)
    desk.click("a", BESIDE, False)
    assert history.RestorePreviousState()
    assert np.array_equal(desk.mask("a"), clicked)
    desk.click("a", (9, 9, 9))
    prompts = ObjectPrompts((Click((9, 9, 9), True),), None, crop(clicked))
    assert desk.interaction.ledger.prompts("a") == prompts


def test_an_image_keeps_its_clicks_under_another_name(desk: Desk):
    """Work that is brought back for a file that was renamed, say."""
    desk.click("a", FIRST)
    desk.volume.SetName("another name")
    again = Desk(desk.served, desk.volume, desk.segmentation)
    again.click("a", BESIDE, False)
    prompts = ObjectPrompts((Click(FIRST, True), Click(BESIDE, False)))
    assert again.interaction.ledger.prompts("a") == prompts
    again.background.close()


@pytest.mark.parametrize("loaded", [False, True], ids=["at once", "begun anew"])
def test_two_images_on_one_grid_go_on_from_each_others_masks(
    desk: Desk, image: np.ndarray, add_volume: Callable[..., Any], loaded: bool
):
    """As T1 and T2: what was corrected on the one is where clicks on the other start."""
    desk.click("a", FIRST)
    second = add_volume(image[::-1].copy(), OBLIQUE, MOVED)
    second.SetName(desk.volume.GetName())
    other = Desk(desk.served, second, desk.segmentation)
    other.click("a", SECOND)
    corrected = other.mask("a")
    assert not np.array_equal(corrected, desk.truth(clicks(FIRST)))
    again = Desk(desk.served, desk.volume, desk.segmentation) if loaded else desk
    again.click("a", BESIDE, False)
    prompts = ObjectPrompts((Click(BESIDE, False),), None, crop(corrected))
    assert again.interaction.ledger.prompts("a") == prompts
    for one in (other, again):
        one.background.close()


def test_a_segmentation_that_a_selector_made_is_shown(scene: Any, desk: Desk):
    """`Create new` adds the bare node; without a display node its masks are not to be seen."""
    bare = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    Interaction(desk.volume, bare, desk.background)
    assert bare.GetDisplayNode().GetVisibility()


@pytest.mark.parametrize("planned", [False, True], ids=["on no image", "on an image of its own"])
def test_surfaces_become_voxels_with_the_first_click(
    scene: Any, desk: Desk, image: np.ndarray, add_volume: Callable[..., Any], planned: bool
):
    """As a radiotherapy plan brings them, or an imported model; looking at them leaves them as they are."""
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(voxel_to_world(desk.volume, FIRST))
    sphere.SetRadius(3.0)
    sphere.SetThetaResolution(40)
    sphere.SetPhiResolution(40)
    sphere.Update()
    surface = slicer.vtkSegment()
    surface.AddRepresentation("Closed surface", sphere.GetOutput())
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segmentation.GetSegmentation().AddSegment(surface, "a")
    if planned:
        fine = add_volume(
            image.repeat(2, 0).repeat(2, 1).repeat(2, 2), OBLIQUE @ np.diag((0.5, 0.5, 0.5, 1.0)), MOVED
        )
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    one = Desk(desk.served, desk.volume, segmentation)
    assert not is_voxels(segmentation)
    one.click("b", SECOND)
    assert is_voxels(segmentation)
    assert (
        segmentation.GetSegmentation().GetSegment("a").GetRepresentation("Closed surface").GetNumberOfPoints()
    )
    own = segmentation.GetSegmentation().GetSegment("a").GetRepresentation("Binary labelmap")
    assert np.allclose(own.GetSpacing(), np.array(desk.volume.GetSpacing()) * (0.5 if planned else 1))
    assert one.mask("b").any()
    assert not (one.mask("a") & one.mask("b")).any()
    ball = one.mask("a")
    assert ball[FIRST]
    assert ball.sum() * np.prod(desk.volume.GetSpacing()) == pytest.approx(4 / 3 * np.pi * 27, rel=0.2)
    one.click("a", (8, 8, 9))
    assert one.interaction.ledger.prompts("a").mask == crop(ball)
    one.background.close()


def test_background_clicks_alone_wait_for_a_foreground_click(desk: Desk):
    desk.click("a", BESIDE, False)
    assert not desk.mask("a").any()
    desk.click("a", FIRST)
    prompts = ObjectPrompts((Click(BESIDE, False), Click(FIRST, True)))
    assert np.array_equal(desk.mask("a"), desk.truth(prompts))


def test_undo_down_to_background_clicks_takes_the_mask_away(desk: Desk):
    desk.click("a", BESIDE, False)
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    assert clicked.any()
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert not desk.mask("a").any()
    assert desk.interaction.redo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), clicked)
    assert desk.interaction.ledger.prompts("a").mask is None


def test_cancel_takes_the_click_back(desk: Desk):
    desk.click("a", FIRST)
    before = desk.mask("a")
    go = hold_up(desk)
    desk.interaction.add_click("a", voxel_to_world(desk.volume, (9, 9, 9)), True)
    desk.interaction.segment("a")
    assert desk.interaction.busy
    assert desk.interaction.cancel() == ["a"]
    assert not desk.interaction.busy
    go.set()
    wait_until(lambda: not desk.background.busy)
    assert desk.interaction.update(desk.background.poll()) == []
    assert np.array_equal(desk.mask("a"), before)
    assert [click.kji for click in desk.interaction.ledger.clicks("a")] == [FIRST]


def test_clicks_in_a_hurry_give_the_last_mask(desk: Desk):
    for kji in (FIRST, (9, 9, 9), (7, 7, 7)):
        desk.interaction.add_click("a", voxel_to_world(desk.volume, kji), True)
        desk.interaction.segment("a")
    desk.wait()
    assert np.array_equal(desk.mask("a"), desk.truth(clicks(FIRST, (9, 9, 9), (7, 7, 7))))


def test_a_click_outside_changes_nothing(desk: Desk):
    with pytest.raises(ValueError, match="outside the image"):
        desk.interaction.add_click("a", voxel_to_world(desk.volume, (-2, 0, 0)), True)
    with pytest.raises(ValueError, match="choose a segment"):
        desk.interaction.add_click("c", voxel_to_world(desk.volume, FIRST), True)
    assert not desk.interaction.can_undo


def test_a_segment_removed_while_its_mask_is_made(desk: Desk):
    desk.interaction.add_click("a", voxel_to_world(desk.volume, FIRST), True)
    desk.interaction.segment("a")
    desk.segmentation.GetSegmentation().RemoveSegment("a")
    desk.wait()
    desk.click("b", FIRST)
    assert desk.mask("b").any()


def test_an_editor_opened_after_the_first_click_counts(desk: Desk, scene: Any):
    opened: list[Any] = []
    desk.interaction = Interaction(
        desk.volume, desk.segmentation, desk.background, lambda: opened[0] if opened else None
    )
    desk.click("a", SECOND)
    assert image_of(desk.volume)[desk.mask("a")].min() < 100
    desk.interaction.clear("a")
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    opened.append(editor)
    editor.SetAndObserveSegmentationNode(desk.segmentation)
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(100, 200)
    desk.click("a", FIRST)
    assert desk.mask("a").any()
    assert image_of(desk.volume)[desk.mask("a")].min() >= 100


def test_the_hint_is_the_engines_own(desk: Desk):
    desk.interaction.wants_hint = True
    desk.click("a", FIRST)
    predictor = Predictor(desk.served.engine)
    predictor.set_image(image_of(desk.volume), ijk_to_ras_of(desk.volume))
    segment = predictor.segment_from(clicks(FIRST))
    hint = next_click(segment, clicks(FIRST).clicks, (2.4, 0.8, 0.5))
    assert hint is not None
    assert np.allclose(desk.interaction.hint_ras("a"), voxel_to_world(desk.volume, hint.kji))


def test_a_hint_goes_with_the_mask_that_it_is_about(desk: Desk):
    desk.interaction.wants_hint = True
    desk.click("b", SECOND)
    desk.click("a", FIRST)
    hint = desk.interaction.hint_ras("a")
    assert hint is not None
    assert desk.interaction.hint_ras("b") is None
    desk.interaction.clear("a")
    assert desk.interaction.hint_ras("a") is None
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.interaction.hint_ras("a"), hint)


def paint(desk: Desk) -> np.ndarray:
    """Paints a block into segment a, by other means than clicks."""
    painted = np.zeros(image_of(desk.volume).shape, bool)
    painted[7:10, 7:10, 7:10] = True
    write_mask(desk.segmentation, "a", desk.volume, crop(painted))
    return painted


def test_a_painted_segment_without_clicks_is_never_emptied(desk: Desk):
    painted = paint(desk)
    with pytest.raises(RuntimeError, match="click on the object first"):
        desk.interaction.segment("a")
    assert desk.interaction.undo() is None
    assert np.array_equal(desk.mask("a"), painted)


def test_paint_after_a_click_is_undone_and_redone_like_a_click(desk: Desk):
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    painted = paint(desk)
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), clicked)
    assert desk.interaction.redo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), painted)


def test_a_locked_segment_takes_no_click(desk: Desk):
    desk.click("a", FIRST)
    before = desk.mask("a")
    set_locked(desk.segmentation, "a", True)
    for step in (lambda: desk.click("a", BESIDE, False), desk.interaction.undo):
        with pytest.raises(ValueError, match="is locked"):
            step()
    assert [click.kji for click in desk.interaction.ledger.clicks("a")] == [FIRST]
    assert np.array_equal(desk.mask("a"), before)


def test_a_segment_locked_while_its_mask_is_made_stays_and_says_so(desk: Desk):
    desk.interaction.add_click("a", voxel_to_world(desk.volume, FIRST), True)
    desk.interaction.segment("a")
    set_locked(desk.segmentation, "a", True)
    told: list[Told] = []

    def done() -> bool:
        told.extend(desk.interaction.update(desk.background.poll()))
        return not desk.interaction.busy

    wait_until(done)
    assert "is locked" in str(told[-1].error)
    assert not desk.mask("a").any()


def hold_up(desk: Desk) -> threading.Event:
    """Holds the engine up until the event is set."""
    go, check = threading.Event(), desk.served.engine.interrupt

    def slow() -> None:
        while not go.wait(0.01):
            check()

    desk.served.engine.interrupt = slow
    return go


def test_cancel_after_loading_keeps_the_earlier_clicks(desk: Desk):
    """As after a scene was loaded: what made the mask is in the scene alone."""
    desk.click("a", FIRST)
    desk.click("a", BESIDE, False)
    again = Desk(desk.served, desk.volume, desk.segmentation)
    go = hold_up(again)
    again.interaction.add_click("a", voxel_to_world(again.volume, (9, 9, 9)), True)
    again.interaction.segment("a")
    assert again.interaction.cancel() == ["a"]
    go.set()
    assert [click.kji for click in again.interaction.ledger.clicks("a")] == [FIRST, BESIDE]
    again.background.close()


def test_cancel_of_an_undo_brings_the_click_back(desk: Desk):
    desk.click("a", FIRST)
    desk.click("a", BESIDE, False)
    before = desk.mask("a")
    desk.background._answers.clear()  # what is remembered here would be there at once
    go = hold_up(desk)
    assert desk.interaction.undo() == "a"
    assert desk.interaction.cancel() == ["a"]
    go.set()
    assert [click.kji for click in desk.interaction.ledger.clicks("a")] == [FIRST, BESIDE]
    assert np.array_equal(desk.mask("a"), before)


@pytest.mark.parametrize("order", ["ab", "ba", "aba"])
def test_cancel_takes_back_what_several_segments_wait_for(desk: Desk, order: str):
    go = hold_up(desk)
    for name in order:
        desk.interaction.add_click(name, voxel_to_world(desk.volume, FIRST if name == "a" else SECOND), True)
        desk.interaction.segment(name)
    assert desk.interaction.cancel() == ["a", "b"]
    go.set()
    assert [desk.interaction.ledger.clicks(name) for name in "ab"] == [(), ()]


def test_paint_while_a_mask_is_made_is_kept_and_clicked_on(desk: Desk):
    desk.click("a", FIRST)
    clicked = desk.mask("a")
    go = hold_up(desk)
    desk.interaction.add_click("a", voxel_to_world(desk.volume, (9, 9, 9)), True)
    desk.interaction.segment("a")
    painted = clicked.copy()
    painted[:3, :3, :3] = True
    write_mask(desk.segmentation, "a", desk.volume, crop(painted))
    go.set()
    desk.wait()
    assert desk.interaction.ledger.prompts("a") == ObjectPrompts(
        (Click((9, 9, 9), True),), None, crop(painted)
    )
    assert desk.mask("a")[:3, :3, :3].all()
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), painted)
    assert desk.interaction.undo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), desk.truth(clicks(FIRST, (9, 9, 9))))


def test_a_neighbours_change_is_no_paint(desk: Desk):
    """Segments share a labelmap: what changes one changes the time of both."""
    paint(desk)
    go = hold_up(desk)
    desk.interaction.add_click("a", voxel_to_world(desk.volume, FIRST), True)
    desk.interaction.segment("a")
    beside = np.zeros(image_of(desk.volume).shape, bool)
    beside[16:19, 20:23, 2:5] = True
    write_mask(desk.segmentation, "b", desk.volume, crop(beside))
    go.set()
    desk.wait()
    assert desk.interaction.undo() == "a"
    assert not desk.interaction.can_undo, "the paint and the click were all"


def test_an_answer_goes_into_the_volume_it_was_asked_for(
    desk: Desk, image: np.ndarray, add_volume: Callable[..., Any]
):
    """Two volumes in different places, and one segmentation: a user who looks at CT and MR in turn."""
    apart = OBLIQUE.copy()
    apart[:3, 3] += (5.0, 5.0, 5.0)
    other = Interaction(add_volume(image, apart, MOVED), desk.segmentation, desk.background)
    desk.interaction.add_click("a", voxel_to_world(desk.volume, FIRST), True)
    desk.interaction.segment("a")
    told: list[Told] = []
    wait_until(lambda: told.extend(desk.background.poll()) or any(one.answer for one in told))
    assert other.update(told) == []
    assert desk.interaction.update(told)
    assert np.array_equal(desk.mask("a"), desk.truth(clicks(FIRST)))


def test_clicks_move_with_their_volume(desk: Desk):
    """As after Center Volume, or a corrected spacing."""
    desk.click("a", FIRST)
    desk.volume.SetOrigin(1.0, 2.0, 3.0)
    desk.volume.SetSpacing(1.0, 1.0, 2.0)
    assert desk.interaction.stale
    again = Interaction(desk.volume, desk.segmentation, desk.background)
    assert not again.stale
    assert again.ledger.clicks("a") == (Click(FIRST, True),)
    ((ras, positive),) = again.clicks_ras("a")
    assert positive
    assert np.allclose(ras, voxel_to_world(desk.volume, FIRST))


@pytest.mark.parametrize("deleted", ["segmentation", "volume"])
def test_a_deleted_node_is_let_go_of(desk: Desk, scene: Any, deleted: str):
    hold_up(desk).set()
    desk.click("a", FIRST)
    desk.interaction.add_click("a", voxel_to_world(desk.volume, (9, 9, 9)), True)
    desk.interaction.segment("a")
    scene.RemoveNode(getattr(desk, deleted))
    assert desk.interaction.cancel() == ["a"]
    desk.interaction.close()
    nodes = scene.GetNodesByClass("vtkMRMLTextNode")
    nodes.UnRegister(None)
    kept = [one for one in nodes if one.GetAttribute("GSMedSeg.Clicks")]
    assert len(kept) == 1, "no second one for the node that is gone"


def test_the_clicks_are_replayed_without_slicer(desk: Desk, tmp_path: Path):
    desk.click("a", FIRST)
    desk.click("b", SECOND)
    desk.interaction.save_clicks(tmp_path / "clicks.json")
    ledger = ClickLedger.load(tmp_path / "clicks.json")
    assert ledger.objects == ("A", "B")
    predictor = Predictor(desk.served.engine)
    predictor.set_image(image_of(desk.volume), ijk_to_ras_of(desk.volume), ledger)
    assert np.array_equal(predictor.predict("A"), desk.mask("a"))


def test_clicks_on_deleted_segments_are_not_saved(desk: Desk, tmp_path: Path):
    """And the others have the order of the segments, which numbers the labels."""
    desk.segmentation.GetSegmentation().AddEmptySegment("c", "C")
    for name in "cba":
        desk.click(name, SECOND if name == "b" else FIRST)
    desk.segmentation.GetSegmentation().RemoveSegment("b")
    desk.interaction.save_clicks(tmp_path / "clicks.json")
    ledger = ClickLedger.load(tmp_path / "clicks.json")
    assert ledger.objects == ("A", "C")
    assert [ledger.clicks(name) for name in "AC"] == [(Click(FIRST, True),)] * 2
    assert ledger.undo()
    assert ledger.undo()
    assert not ledger.can_undo
    assert ledger.ijk_to_ras is not None


def test_undo_and_redo_pass_over_deleted_segments(desk: Desk):
    desk.click("a", FIRST)
    one = desk.mask("a")
    desk.click("b", SECOND)
    desk.segmentation.GetSegmentation().RemoveSegment("b")
    assert desk.interaction.undo() == "a"
    assert not desk.mask("a").any()
    assert not desk.interaction.can_undo
    assert desk.interaction.redo() == "a"
    desk.wait()
    assert np.array_equal(desk.mask("a"), one)
    assert not desk.interaction.can_redo
    assert desk.interaction.redo() is None


@pytest.mark.parametrize("deleted", [False, True], ids=["cancel", "scene closed"])
def test_undo_past_a_deleted_segment_waits_for_it_no_longer(desk: Desk, scene: Any, deleted: bool):
    """Cancelling and closing, in that state, go to their end."""
    desk.click("a", FIRST)
    go = hold_up(desk)
    desk.interaction.add_click("b", voxel_to_world(desk.volume, SECOND), True)
    desk.interaction.segment("b")
    desk.segmentation.GetSegmentation().RemoveSegment("b")
    assert desk.interaction.undo() == "a"
    if deleted:
        scene.RemoveNode(desk.segmentation)
    assert not desk.interaction.busy
    assert desk.interaction.cancel() == []
    desk.interaction.close()
    go.set()
    wait_until(lambda: not desk.background.busy)
    assert desk.interaction.update(desk.background.poll()) == []


def questions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[ObjectPrompts]:
    """What the engine is asked for from now on."""
    asked: list[ObjectPrompts] = []
    ask = desk.background.ask

    def note(tag: Any, image: Any, make_image: Any, question: Question) -> None:
        asked.append(question.prompts)
        ask(tag, image, make_image, question)

    monkeypatch.setattr(desk.background, "ask", note)
    return asked


def test_undo_and_redo_of_clicks_without_a_mask_ask_for_none(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """As with `Segment after every click` off; what the mask was made of takes it along."""
    asked = questions(desk, monkeypatch)
    interaction, third = desk.interaction, (9, 9, 9)
    one, two = clicks(FIRST), clicks(FIRST, SECOND)

    def step(what: Callable[[], str | None], left: ObjectPrompts, *wanted: ObjectPrompts) -> None:
        asked.clear()
        assert what() == "a"
        desk.wait()
        assert interaction.ledger.prompts("a") == left
        assert asked == list(wanted)

    for kji in (FIRST, SECOND):
        interaction.add_click("a", voxel_to_world(desk.volume, kji), True)
    step(interaction.undo, one)
    step(interaction.undo, clicks())
    step(interaction.redo, one)
    step(interaction.redo, two)
    assert not desk.mask("a").any()
    interaction.segment("a")
    desk.wait()
    interaction.add_click("a", voxel_to_world(desk.volume, third), True)
    step(interaction.undo, two)
    assert np.array_equal(desk.mask("a"), desk.truth(two))
    step(interaction.undo, one, one)
    assert np.array_equal(desk.mask("a"), desk.truth(one))
    step(interaction.redo, two, two)
    step(interaction.redo, clicks(FIRST, SECOND, third))
    assert np.array_equal(desk.mask("a"), desk.truth(two))


def test_undo_of_a_click_without_a_mask_leaves_the_one_that_is_made(desk: Desk):
    go = hold_up(desk)
    for kji in (FIRST, SECOND):
        desk.interaction.add_click("a", voxel_to_world(desk.volume, kji), True)
        if kji == FIRST:
            desk.interaction.segment("a")
    assert desk.interaction.undo() == "a"
    assert desk.interaction.busy
    go.set()
    desk.wait()
    assert np.array_equal(desk.mask("a"), desk.truth(clicks(FIRST)))


def test_undo_after_loading_takes_the_mask_along(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """What was asked for is not in the scene; that the clicks gave the mask is."""
    desk.click("a", FIRST)
    desk.click("a", BESIDE, False)
    again = Desk(desk.served, desk.volume, desk.segmentation)
    asked = questions(again, monkeypatch)
    for step in (again.interaction.undo, again.interaction.redo):
        assert step() == "a"
        again.wait()
        prompts = again.interaction.ledger.prompts("a")
        assert asked[-1] == prompts
        assert np.array_equal(again.mask("a"), again.truth(prompts))
    assert len(asked) == 2
    again.background.close()


def test_clicks_on_a_left_handed_file_are_replayed_on_the_file(
    desk: Desk, image: np.ndarray, scene: Any, tmp_path: Path
):
    """Slicer turns it right-handed: its slices are counted from the other end than in the file."""
    file = write(tmp_path / "las.nii.gz", image, np.diag((-2.0, 2.0, 3.0, 1.0)))
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(file))
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "las")
    assert storage.ReadData(volume)
    shown = Desk(desk.served, volume)
    shown.click("a", FIRST)
    shown.interaction.save_clicks(tmp_path / "clicks.json")
    shown.background.close()
    read, ledger = read_volume(file), ClickLedger.load(tmp_path / "clicks.json")
    flips = ledger.flips(read.shape, read.ijk_to_ras)
    assert flips == (0,)
    assert np.array_equal(np.flip(read.array, flips), image_of(volume))
    assert ledger.flipped(flips).clicks("A") == (Click((image.shape[0] - 1 - FIRST[0], *FIRST[1:]), True),)


def test_a_training_case(desk: Desk, tmp_path: Path):
    with pytest.raises(ValueError, match="at least one object"):
        desk.interaction.save_case(tmp_path / "case.npz")
    desk.click("a", FIRST)
    assert desk.interaction.save_case(tmp_path / "case.npz") == (1, 0)
    case = read_case(tmp_path / "case.npz")
    assert np.array_equal(case.truth, desk.mask("a"))
    assert case.spacing_mm == pytest.approx((2.4, 0.8, 0.5))
    size = int(desk.mask("a").sum())
    write_mask(desk.segmentation, "b", desk.volume, crop(desk.mask("a")), Overwrite.OVERLAP)
    assert desk.interaction.save_case(tmp_path / "case.npz") == (2, size)
    assert np.array_equal(read_case(tmp_path / "case.npz").truth == 2, desk.mask("a"))


def test_the_next_frame_of_a_sequence_is_noticed(desk: Desk, image: np.ndarray):
    assert not desk.interaction.stale
    slicer.util.updateVolumeFromArray(desk.volume, image[::-1].copy())
    assert desk.interaction.stale


def test_a_sequence_is_segmented_frame_by_frame(desk: Desk, image: np.ndarray, slicer_app: Any):
    """A real sequence and its browser: each frame shown gives the mask of its own voxels."""
    scene = slicer_app.scene
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)  # makes the scene know the kinds of nodes
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "beat")
    for frame, array in enumerate((image, image[::-1].copy())):
        slicer.util.updateVolumeFromArray(desk.volume, array)
        sequence.SetDataNodeAtValue(desk.volume, str(frame))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    masks = []
    for frame, clicked in ((0, FIRST), (1, (image.shape[0] - 1 - FIRST[0], *FIRST[1:]))):
        browser.SetSelectedItemNumber(frame)
        logic.UpdateProxyNodesFromSequences(browser)
        shown = browser.GetProxyNode(sequence)
        one = Desk(desk.served, shown)
        one.click("a", clicked)
        assert np.array_equal(one.mask("a"), one.truth(clicks(clicked)))
        masks.append(one.mask("a"))
        one.background.close()
    assert masks[0].any()
    assert not np.array_equal(*masks)


def test_a_scene_is_saved_loaded_and_gone_on_with(desk: Desk, tmp_path: Path, slicer_app: Any):
    """An oblique DICOM series under a transform: clicks, undo, redo, .mrb, and more clicks after loading."""
    image = image_of(desk.volume)
    scene = slicer_app.scene
    scene.Clear(False)
    written = write_series(image, tmp_path / "dicom")
    (volume,) = slicer_app.io_manager.load_volumes([str(path) for path in written])
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, MOVED[row, column])
    transform.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    first = Desk(desk.served, volume)
    loaded = image_of(volume)
    assert np.allclose(np.abs(ijk_to_ras_of(volume)[:3, :3]), np.abs(OBLIQUE[:3, :3]), atol=1e-3)
    ball = np.argwhere(loaded > 80)
    in_first = tuple(int(x) for x in ball[len(ball) // 2])
    first.click("a", in_first)
    one = first.mask("a")
    first.click("a", (1, 1, 1), False)
    first.click("b", (18, 2, 2))
    assert first.interaction.undo() == "b"
    first.wait()
    assert first.interaction.redo() == "b"
    first.wait()
    masks = {name: first.mask(name) for name in "ab"}
    truth = ObjectPrompts((Click(in_first, True), Click((1, 1, 1), False)))
    assert np.array_equal(masks["a"], first.truth(truth))
    world = voxel_to_world(volume, in_first)
    first.background.close()

    path = tmp_path / "scene.mrb"
    assert scene.WriteToMRB(str(path))
    scene.Clear(False)
    (tmp_path / "unpacked").mkdir()
    scene.SetURL(str(path))
    assert scene.ReadFromMRB(str(path))
    volume = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    again = Desk(desk.served, volume, scene.GetFirstNodeByClass("vtkMRMLSegmentationNode"))
    assert np.abs(voxel_to_world(volume, in_first) - world).max() < 0.5 * min(volume.GetSpacing())
    for name, mask in masks.items():
        assert np.array_equal(again.mask(name), mask)
    assert again.interaction.ledger.prompts("a") == truth
    again.click("a", (1, 2, 1), False)
    assert again.interaction.ledger.prompts("a").mask is None  # the mask is the one its clicks gave
    assert again.interaction.undo() == "a"
    again.wait()
    assert np.array_equal(again.mask("a"), masks["a"])
    assert again.interaction.undo() == "b"
    assert again.interaction.undo() == "a"
    again.wait()
    assert np.array_equal(again.mask("a"), one)
    again.background.close()
