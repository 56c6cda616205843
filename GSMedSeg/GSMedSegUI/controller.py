"""What the panel does, without Qt: an engine, an image, a segmentation, and clicks on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from slicer.i18n import tr as _

from GSMedSegLib.mrml.interaction import Interaction
from GSMedSegLib.mrml.segments import Overwrite, new_segmentation
from GSMedSegLib.mrml.volumes import image_of
from GSMedSegLib.service.background import Background, Told
from GSMedSegLib.service.engines import EngineSource, OwnEngine
from GSMedSegUI.process import own_engine

POLL_S = 0.01


class Controller:
    """Clicks go in, masks come out; one at a time, on whatever is selected.

    Everything is called from the main thread. Masks arrive in `poll`, which a timer calls.

    Args:
        scene: the MRML scene.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self.engine: EngineSource | None = None
        """The engine that was chosen; None while there is only the one that scripts start with."""
        self._own = own_engine()
        self._background: Background | None = None
        self._interactions: dict[tuple[str, str], Interaction] = {}
        self.interaction: Interaction | None = None
        self._segment_id = ""
        self._options = (Overwrite.NOTHING, 0.0, False)
        self.auto = True
        self._began_s = 0.0
        self.last_s = 0.0
        """How long the last mask took, from the click to the segment."""

    @property
    def segment_id(self) -> str:
        """The chosen segment; where it was removed, the first one. Empty for none."""
        if self.interaction is not None:
            segments = self.interaction.segmentation.GetSegmentation()
            if not self._segment_id or segments.GetSegment(self._segment_id) is None:
                self._segment_id = segments.GetNthSegmentID(0) if segments.GetNumberOfSegments() else ""
        return self._segment_id

    @segment_id.setter
    def segment_id(self, segment_id: str) -> None:
        self._segment_id = segment_id

    def use_engine(self, source: EngineSource) -> None:
        """Take masks from another engine from now on; the one before ends, if it is this program's own."""
        if source is self.engine:
            return
        self.drop_engine()
        self.engine = source
        self._background = Background(source)
        if self.interaction is not None:
            self.select(self.interaction.volume, self.interaction.segmentation)

    def drop_engine(self) -> None:
        """Ask the engine for nothing more, and end it if it is this program's own.

        What is waited for is dropped, with the clicks that asked for it; other steps stay. Until another one
        is chosen, the one that scripts start with is asked.
        """
        self.cancel()
        for engine in (self.engine, self._own):
            if isinstance(engine, OwnEngine):
                engine.stop()
        if self._background is not None:
            self._background.close()  # after them: it waits for an engine that goes on elsewhere
            self._background = None
        self.engine, self._own = None, own_engine()

    def new_segmentation(self, volume: Any) -> Any:
        """An empty segmentation node on a volume."""
        return new_segmentation(volume)

    def select(self, volume: Any, segmentation: Any) -> None:
        """Work on a volume and a segmentation; either may be None.

        Where the volume has other voxels by now, another frame of a sequence say, masks that are waited for
        are still those of the ones before.

        Raises:
            ValueError: a volume that cannot be segmented, or clicks in the scene that do not fit it.
        """
        self.interaction = None
        self._forget_interactions(deleted_only=True)
        if volume is not None:
            image_of(volume)  # one that cannot be segmented is told before the first click on it
        if volume is None or segmentation is None:
            return
        if self._background is None:
            self._background = Background(self._own)
        key = (volume.GetID(), segmentation.GetID())
        known = self._interactions.pop(key, None)
        if known is not None and (
            (known.stale and not known.busy) or (known.volume, known.segmentation) != (volume, segmentation)
        ):
            known.cancel()
            known.close()
            known = None
        if known is None:
            known = Interaction(volume, segmentation, self._background, self._editor)
        else:
            known.background = self._background
        self._interactions[key] = known
        self.interaction = known
        self.set_options(*self._options)

    def add_segment(self, name: str = "") -> str:
        """Add an empty segment and choose it; its ID."""
        segments = self._selected().segmentation.GetSegmentation()
        self.segment_id = segments.AddEmptySegment("", name)
        return self.segment_id

    def click(self, ras: np.ndarray, positive: bool) -> None:
        """Click at a point of the world (mm).

        Raises:
            RuntimeError: nothing is selected, or the image changed while a mask is being made on it.
            ValueError: the point is outside the image.
        """
        interaction = self._up_to_date()
        if not self.segment_id:
            self.add_segment()
        interaction.add_click(self.segment_id, ras, positive)
        if self.auto:
            self.segment()

    def box(self, corners_ras: np.ndarray) -> None:
        """Draw a box, given its corners (N, 3) in the world (mm).

        Raises:
            RuntimeError: nothing is selected, or the image changed while a mask is being made on it.
            ValueError: the box misses the image.
        """
        interaction = self._up_to_date()
        if not self.segment_id:
            self.add_segment()
        interaction.set_box(self.segment_id, corners_ras)
        if self.auto:
            self.segment()

    def segment(self) -> None:
        """Ask for the mask of the chosen segment's clicks.

        Raises:
            RuntimeError: nothing is selected, or there is no click yet.
            ValueError: the segment is locked.
        """
        self._began_s = time.monotonic()
        self._up_to_date().segment(self.segment_id)

    def undo(self) -> None:
        """Take back the last step; its segment becomes the chosen one."""
        self._began_s = time.monotonic()
        self.segment_id = self._up_to_date().undo() or self.segment_id

    def redo(self) -> None:
        """Bring back what `undo` took; its segment becomes the chosen one."""
        self._began_s = time.monotonic()
        self.segment_id = self._up_to_date().redo() or self.segment_id

    def clear(self) -> None:
        """Take all clicks off the chosen segment."""
        if self.segment_id:
            self._up_to_date().clear(self.segment_id)

    def accept(self) -> str:
        """Be done with the chosen segment: a new, empty one is added and chosen."""
        return self.add_segment()

    def cancel(self) -> None:
        """Drop what is waited for, on any image, with the clicks that asked for it."""
        for interaction in self._interactions.values():
            interaction.cancel()

    def set_options(self, overwrite: Overwrite, smoothing_mm: float, wants_hint: bool) -> None:
        """How masks are made and put into segments from now on."""
        self._options = (overwrite, smoothing_mm, wants_hint)
        if self.interaction is not None:
            self.interaction.overwrite = overwrite
            self.interaction.smoothing_mm = smoothing_mm
            self.interaction.wants_hint = wants_hint

    @property
    def busy(self) -> bool:
        """Whether a mask is waited for."""
        return any(interaction.busy for interaction in self._interactions.values())

    def poll(self, wait_s: float = 0.0) -> list[Told]:
        """Puts masks that have arrived into their segments; what was told.

        Args:
            wait_s: how long to let the thread that talks to the engine work meanwhile.
        """
        if self._background is None:
            return []
        told = self._background.poll(wait_s)
        own = []
        for interaction in list(self._interactions.values()):
            own += interaction.update(told)
        if any(one.answer is not None for one in own):
            self.last_s = time.monotonic() - self._began_s
        return own

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """Polls until nothing is waited for; for scripts.

        Raises:
            EngineError: the mask could not be made.
            ValueError: the image or the clicks cannot be used.
        """
        while self.busy:
            for told in self.poll(POLL_S):
                if told.error is not None:
                    raise told.error
            if check is not None:
                check()

    def forget_scene(self) -> None:
        """Let go of all nodes."""
        self._forget_interactions()
        self.interaction = None
        self.segment_id = ""

    def close(self) -> None:
        """Let go of all nodes, and end the engine, if it is this program's own."""
        self.drop_engine()
        self.forget_scene()

    def _forget_interactions(self, deleted_only: bool = False) -> None:
        """Drops what is waited for, and the images; of all, or where volume or segmentation were deleted."""
        for key, interaction in list(self._interactions.items()):
            nodes = (interaction.volume, interaction.segmentation)
            if not deleted_only or any(node.GetScene() is None for node in nodes):
                interaction.cancel()
                interaction.close()
                del self._interactions[key]

    def _selected(self) -> Interaction:
        if self.interaction is None:
            raise RuntimeError(_("choose an image and a segmentation first"))
        return self.interaction

    def _up_to_date(self) -> Interaction:
        """The selected one, on the voxels that the image has now."""
        interaction = self._selected()
        if self._background is None or interaction.stale:
            self.select(interaction.volume, interaction.segmentation)
            interaction = self._selected()
        if interaction.stale:
            raise RuntimeError(
                _(
                    "a mask is still being made for the image as it was before (another frame?); do this "
                    "again when it is there, or cancel it"
                )
            )
        return interaction

    def _editor(self) -> Any:
        """The segment editor's own node, whose masking is respected; None when it was never opened."""
        return self._scene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
