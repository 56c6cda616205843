"""What a user does with one volume and one segmentation: clicks, boxes, undo, redo, and what comes of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import vtk
from numpy.typing import ArrayLike

from GSMedSegLib.cropped import Cropped, Voxel, crop
from GSMedSegLib.intensity import to_grey
from GSMedSegLib.labels import as_labels
from GSMedSegLib.mrml.ledgers import add_objects, load_ledger, named_ledger, store_ledger
from GSMedSegLib.mrml.segments import (
    Overwrite,
    check_unlocked,
    fit_to_volume,
    make_voxels,
    read_mask,
    write_mask,
)
from GSMedSegLib.mrml.volumes import (
    box_in_world,
    ijk_to_ras_of,
    image_of,
    shape_of,
    voxel_to_world,
    world_to_voxel,
)
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.prompts import Box, Click, ClickLedger, ObjectPrompts
from GSMedSegLib.service.background import Background, Told
from GSMedSegLib.service.engines import EngineSource
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import Question

MASK_TAG = "GSMedSeg.Mask"
"""Tag of a segment: marks the mask that its clicks gave, to notice when it was changed since."""


class Interaction:
    """The clicks on one volume for the segments of one segmentation, kept in the scene.

    A segment that was painted, or edited since its last click, is where the next click starts from; undo goes
    back to it. Masks arrive by `update`, which a timer calls. Segments that give way to another one lose what
    its mask covers now, and get back what an earlier one took.

    Args:
        volume: a scalar volume node.
        segmentation: a segmentation node.
        background: asks the engine; may be replaced by another one while no mask is waited for.
        editor: gives the segment editor node whose masking is respected, or None; asked for every mask.

    Raises:
        ValueError: a volume that cannot be segmented, or clicks in the scene that belong to another grid.
    """

    def __init__(
        self,
        volume: Any,
        segmentation: Any,
        background: Background,
        editor: Callable[[], Any] = lambda: None,
    ) -> None:
        self._image = image_of(volume)
        self.volume, self.segmentation = volume, segmentation
        self.background = background
        self._editor = editor
        self._image_name = _state_of(volume)
        self._fingerprint = _fingerprint(self._image)
        self.overwrite = Overwrite.NOTHING
        self.smoothing_mm = 0.0
        self.wants_hint = False
        self._hint: tuple[str, np.ndarray] | None = None
        self._ledger = load_ledger(segmentation, volume)
        self._applied: dict[str, ObjectPrompts] = {}
        self._waiting: set[str] = set()
        self._asked: set[tuple[str, ObjectPrompts]] = set()
        self._untouched: dict[str, tuple[str, int] | None] = {}
        self._marks: dict[str, str] = {}
        self._taken: dict[str, dict[str, Cropped]] = {}
        segmentation.CreateDefaultDisplayNodes()  # one that a selector made has none, and shows nothing
        fit_to_volume(segmentation, volume)

    @property
    def ledger(self) -> ClickLedger:
        """All clicks; objects are named by segment ID."""
        return self._ledger

    @property
    def stale(self) -> bool:
        """Whether the volume has other voxels, or lies elsewhere, than when this began."""
        return _state_of(self.volume) != self._image_name

    @property
    def busy(self) -> bool:
        """Whether a mask is waited for."""
        return bool(self._waiting)

    def add_click(self, segment_id: str, ras: ArrayLike, positive: bool) -> Voxel:
        """Click at a point of the world.

        Args:
            segment_id: the segment it is about.
            ras: (3,) mm.
            positive: whether the point belongs to it.

        Returns:
            the voxel (k, j, i).

        Raises:
            ValueError: the point is outside the volume, or there is no such segment.
        """
        kji = world_to_voxel(self.volume, ras)
        self._begin(segment_id)
        self._ledger.add_click(segment_id, Click(kji, positive))
        self._store()
        return kji

    def set_box(self, segment_id: str, corners_ras: ArrayLike) -> Box:
        """Draw a box around the object.

        Args:
            segment_id: the segment it is about.
            corners_ras: (N, 3) its corners in the world, mm; what sticks out of the volume is cut off.

        Raises:
            ValueError: the box misses the volume, or there is no such segment.
        """
        box = Box(*box_in_world(self.volume, corners_ras))
        self._begin(segment_id)
        self._ledger.set_box(segment_id, box)
        self._store()
        return box

    def clear(self, segment_id: str) -> None:
        """Take all clicks off a segment, and its voxels; can be undone."""
        self._begin(segment_id)
        self._ledger.clear(segment_id)
        self._store()
        self._follow(segment_id)

    def undo(self) -> str | None:
        """Take back the last step; the segment it was on, or None when there is none.

        A step is a click, a box, a clearing, or what was done to the segment by other means since. Those on
        segments that are gone are passed over, and what a segment had before its first click stays. The mask
        follows, unless none was asked for since the step.

        Raises:
            ValueError: the segment is locked.
        """
        if not self.can_undo:
            return None
        for passed in self._pass_back():  # its next click is to look at what it has
            self._drop(passed)
            self._untouched.pop(passed, None)
            self._applied.pop(passed, None)
        name = self._ledger.last_object()
        assert name is not None
        self._begin(name)
        asked = self._was_asked(name)
        self._ledger.undo()
        self._store()
        if asked:
            self._follow(name)
        return name

    def redo(self) -> str | None:
        """Bring back what `undo` took; the segment it was on, or None when there is nothing.

        The mask follows, unless none was asked for before the step was undone.

        Raises:
            ValueError: the segment is locked.
        """
        if not self.can_redo:
            return None
        self._pass_forth()
        name = self._ledger.next_object()
        assert name is not None
        self._begin(name)  # a segment that was edited since has nothing to bring back
        if not self._ledger.redo():
            return None
        self._store()
        if self._was_asked(name):
            self._follow(name)
        return name

    def segment(self, segment_id: str) -> None:
        """Ask for the mask of a segment's clicks.

        Raises:
            ValueError: no such segment, or one that is locked.
            RuntimeError: there are no clicks and no box that it could follow from.
        """
        self._begin(segment_id)
        prompts = self._prompts(segment_id)
        if not prompts.clicks and prompts.box is None:
            raise RuntimeError("there is no click on this segment yet; click on the object first")
        self._follow(segment_id)

    @property
    def can_undo(self) -> bool:
        """Whether there is something to take back."""
        passed = self._pass_back()
        possible = self._ledger.last_object() is not None
        for _ in passed:
            self._ledger.redo()
        return possible

    @property
    def can_redo(self) -> bool:
        """Whether there is something to bring back."""
        passed = self._pass_forth()
        possible = self._ledger.next_object() is not None
        for _ in range(passed):
            self._ledger.undo()
        return possible

    def _pass_back(self) -> list[str]:
        """Takes back the steps above the last one that undo takes back; the segments that they are on."""
        passed = []
        while (name := self._ledger.last_object()) is not None and not self._is_step(name):
            self._ledger.undo()
            passed.append(name)
        return passed

    def _pass_forth(self) -> int:
        """Brings back the steps before the next one that redo brings back; how many."""
        passed = 0
        while (name := self._ledger.next_object()) is not None:
            self._ledger.redo()
            if self._is_step(name):
                self._ledger.undo()
                break
            passed += 1
        return passed

    def _is_step(self, segment_id: str) -> bool:
        """Whether the last step, which is on this segment, is one for undo and redo."""
        return self._exists(segment_id) and not self._just_begun(segment_id)

    def _follow(self, segment_id: str) -> None:
        """Bring a segment to what its prompts say; without clicks, what it started from, or nothing.

        Background clicks alone give nothing: they count when a foreground click comes.
        """
        prompts = self._prompts(segment_id)
        self._asked.add((segment_id, prompts))
        self._drop(segment_id)
        if not self._exists(segment_id):
            return
        points_at_it = prompts.box is not None or any(click.positive for click in prompts.clicks)
        if not points_at_it and (prompts.mask is None or not prompts.clicks):
            empty = crop(np.zeros(shape_of(self.volume), bool))
            self._apply(segment_id, prompts, empty if prompts.mask is None else prompts.mask)
            return
        image, matrix = self._image, ijk_to_ras_of(self.volume)

        def send(source: EngineSource) -> RemoteImage:
            return RemoteImage(source, image, matrix)

        question = Question(prompts, self.smoothing_mm, self.wants_hint)
        self._waiting.add(segment_id)
        self.background.ask(self._tag(segment_id), self._image_name, send, question)

    def update(self, told: Sequence[Told]) -> list[Told]:
        """Put masks that have arrived into their segments.

        A segment that was painted while its mask was made keeps the paint as a step, and the clicks since are
        asked for again on top of it.

        Args:
            told: what `Background.poll` gave.

        Returns:
            what of it this asked for.
        """
        own = []
        for one in told:
            if not isinstance(one.tag, tuple) or one.tag[0] is not self:
                continue
            segment_id = one.tag[1]
            if one.answer is not None or one.error is not None:
                self._waiting.discard(segment_id)
            if not self._exists(segment_id):
                continue
            if one.answer is not None:
                if self._painted_meanwhile(segment_id):
                    continue
                try:
                    self._apply(segment_id, one.question.prompts, one.answer.mask)
                except (ValueError, RuntimeError) as error:  # locked since it was asked for
                    own.append(replace(one, answer=None, error=error))
                    continue
                kji = one.answer.hint_kji
                self._hint = None if kji is None else (segment_id, voxel_to_world(self.volume, kji))
            own.append(one)
        return own

    def cancel(self) -> list[str]:
        """Drop the masks that are waited for, and the clicks that asked for them; the segments stay.

        Returns:
            the segments.
        """
        dropped = sorted(self._waiting)
        if not dropped:
            return dropped
        for segment_id in dropped:
            self._drop(segment_id)
        self._return_to_masks(dropped)
        for segment_id in dropped:
            self._return_to_masks([segment_id])
        self._store()
        return dropped

    def _return_to_masks(self, segment_ids: Sequence[str]) -> None:
        """Goes through the steps on some segments, back or else forth, to where they show what they have."""
        ledger = self._ledger

        def others() -> list[str]:
            return [one for one in segment_ids if self._prompts(one) != self._applied[one]]

        for step, opposite, name in (
            (ledger.undo, ledger.redo, ledger.last_object),
            (ledger.redo, ledger.undo, ledger.next_object),
        ):
            taken = 0
            while name() in others():
                step()
                taken += 1
            if not others():
                return
            for _ in range(taken):
                opposite()

    def close(self) -> None:
        """Let the engine forget the image; the clicks stay in the scene."""
        self.background.forget(self._image_name)

    def clicks_ras(self, segment_id: str) -> list[tuple[np.ndarray, bool]]:
        """World coordinates, mm, of a segment's clicks, and whether each is a foreground click."""
        return [
            (voxel_to_world(self.volume, click.kji), click.positive)
            for click in self._prompts(segment_id).clicks
        ]

    def hint_ras(self, segment_id: str) -> np.ndarray | None:
        """(3,) world coordinates, mm, of where a segment's next click would help; None: not known."""
        return self._hint[1] if self._hint is not None and self._hint[0] == segment_id else None

    def save_clicks(self, path: str | os.PathLike[str]) -> None:
        """Write the clicks for `gsmedseg segment --clicks`, objects named as their segments are.

        Raises:
            OSError: the file cannot be written.
        """
        named_ledger(self._ledger, self.segmentation).save(path)

    def save_case(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Write image and segments as a training case (.npz).

        Args:
            path: of the file.

        Returns:
            how many segments with voxels it has, and how many voxels several of them claimed: such a case
            has one label for each voxel, the last segment's.

        Raises:
            ValueError: no segment has voxels.
            OSError: the file cannot be written.
        """
        labels = np.zeros(shape_of(self.volume), np.uint16)
        count = shared = 0
        for segment_id in self.segmentation.GetSegmentation().GetSegmentIDs():
            mask = read_mask(self.segmentation, segment_id, self.volume)
            if mask.array.size:
                count += 1
                shared += int((labels[mask.box][mask.array] > 0).sum())
                labels[mask.box][mask.array] = count
        if count == 0:
            raise ValueError("no segment has voxels; a training case needs at least one object")
        i, j, k = self.volume.GetSpacing()
        write_case(
            path, Case(Path(path).stem, to_grey(self._image), (k, j, i), as_labels(labels, "the segments"))
        )
        return count, shared

    def _exists(self, segment_id: str) -> bool:
        return self.segmentation.GetSegmentation().GetSegment(segment_id) is not None

    def _was_asked(self, segment_id: str) -> bool:
        """Whether a mask of what a segment's prompts are now was asked for, or is shown."""
        return (segment_id, self._prompts(segment_id)) in self._asked

    def _drop(self, segment_id: str) -> None:
        """Waits no longer for a segment's mask."""
        self.background.cancel(self._tag(segment_id))
        self._waiting.discard(segment_id)

    def _tag(self, segment_id: str) -> tuple[Interaction, str]:
        """Of a question: the same segment may be asked about on another volume."""
        return self, segment_id

    def _prompts(self, segment_id: str) -> ObjectPrompts:
        return self._ledger.prompts(segment_id) if segment_id in self._ledger.objects else ObjectPrompts()

    def _store(self) -> None:
        # One that was deleted has no clicks any more.
        if self.segmentation.GetScene() is not None and self.volume.GetScene() is not None:
            store_ledger(self._ledger, self.segmentation, self.volume)

    def _begin(self, segment_id: str) -> None:
        """Declares a segment, and takes up what was done to it by other means since its clicks gave its mask.

        Raises:
            ValueError: no such segment, one that is locked, or one that cannot be turned into voxels.
        """
        if self.segmentation.GetSegmentation().GetSegment(segment_id) is None:
            raise ValueError("choose a segment to click for, or add one")
        check_unlocked(self.segmentation, segment_id)
        make_voxels(self.segmentation, self.volume)
        add_objects(self._ledger, [segment_id])
        if segment_id in self._waiting:
            return
        mask = self._changed_mask(segment_id)
        if mask is not None:
            self._start_from(segment_id, mask)
            self._store()
        self._asked.add((segment_id, self._applied.setdefault(segment_id, self._prompts(segment_id))))

    def _changed_mask(self, segment_id: str) -> Cropped | None:
        """A segment's mask, if it was changed by other means since its clicks gave it."""
        if self._labelmap_time(segment_id) == self._untouched.get(segment_id):  # reading would be in vain
            return None
        mask = read_mask(self.segmentation, segment_id, self.volume)
        self._untouched[segment_id] = self._labelmap_time(segment_id)
        return mask if self._mark(mask) != self._written(segment_id) else None

    def _start_from(self, segment_id: str, mask: Cropped) -> None:
        """Takes what a segment has now as a step."""
        self._ledger.set_mask(segment_id, mask)
        self._shows(segment_id, mask)

    def _painted_meanwhile(self, segment_id: str) -> bool:
        """Whether a segment was painted since its mask was asked for; then its new clicks are asked again."""
        mask = self._changed_mask(segment_id)
        if mask is None:
            return False
        before, now = self._applied[segment_id], self._prompts(segment_id)
        self._start_from(segment_id, mask)
        if now.clicks[: len(before.clicks)] == before.clicks:
            for click in now.clicks[len(before.clicks) :]:
                self._ledger.add_click(segment_id, click)
        self._store()
        if self._prompts(segment_id) != self._applied[segment_id]:
            self._follow(segment_id)
        return True

    def _written(self, segment_id: str) -> str:
        """The mark of the mask that the clicks gave; that of nothing when they gave none yet."""
        if self._prompts(segment_id) != ObjectPrompts():
            if segment_id in self._marks:  # the tag goes back with the segment editor's undo
                return self._marks[segment_id]
            value = vtk.mutable("")
            if self.segmentation.GetSegmentation().GetSegment(segment_id).GetTag(MASK_TAG, value):
                return str(value)
        return self._mark(crop(np.zeros(shape_of(self.volume), bool)))

    def _mark(self, mask: Cropped) -> str:
        """A checksum of a mask; another one on another image, whose clicks did not give it."""
        return hashlib.sha256(mask.digest + self._fingerprint).hexdigest()

    def _apply(self, segment_id: str, prompts: ObjectPrompts, mask: Cropped) -> None:
        written = write_mask(
            self.segmentation,
            segment_id,
            self.volume,
            mask,
            self.overwrite,
            self._editor(),
            self._taken.setdefault(segment_id, {}),
        )
        for taken in self._taken.values():  # the segment has what its own clicks say; nothing is owed to it
            taken.pop(segment_id, None)
        self._shows(segment_id, written, prompts)

    def _shows(self, segment_id: str, mask: Cropped, prompts: ObjectPrompts | None = None) -> None:
        """Notes what a segment has, and what prompts that follows from; all of them by default."""
        self._marks[segment_id] = self._mark(mask)
        self.segmentation.GetSegmentation().GetSegment(segment_id).SetTag(MASK_TAG, self._marks[segment_id])
        self._applied[segment_id] = self._prompts(segment_id) if prompts is None else prompts
        self._untouched[segment_id] = self._labelmap_time(segment_id)
        if self.hint_ras(segment_id) is not None:
            self._hint = None

    def _labelmap_time(self, segment_id: str) -> tuple[str, int] | None:
        """Changes with every change of a segment's voxels, or of its neighbours' in the same labelmap."""
        labelmap = self.segmentation.GetBinaryLabelmapInternalRepresentation(segment_id)
        return None if labelmap is None else (labelmap.__this__, labelmap.GetMTime())

    def _just_begun(self, segment_id: str) -> bool:
        """Whether the last step on a segment is the mask that it began with, before any click."""
        prompts = self._prompts(segment_id)
        if prompts.mask is None or prompts.clicks or prompts.box is not None:
            return False
        self._ledger.undo()
        begun = not self._ledger.has_steps(segment_id)
        self._ledger.redo()
        return begun


def _fingerprint(image: np.ndarray) -> bytes:
    """Tells images apart by some thousand voxels, whatever they are called."""
    k, j, i = (max(1, n // 16) for n in image.shape)
    some = image[::k, ::j, ::i].astype(np.float64)
    return hashlib.sha256(str(image.shape).encode() + some.tobytes()).digest()


def _state_of(volume: Any) -> str:
    """Names a volume's voxels and where they lie; another text after either has changed."""
    image = volume.GetImageData()
    return f"{volume.GetID()} {image and image.GetMTime()} {ijk_to_ras_of(volume).tolist()}"
