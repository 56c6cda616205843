"""What a user has before them: an image, its segments, and the clicks on them; no page, no server."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.cropped import Cropped
from GSMedSegLib.mrml.interaction import Interaction
from GSMedSegLib.mrml.ledgers import named_ledger
from GSMedSegLib.mrml.segments import Overwrite, is_locked, new_segmentation, read_mask, set_locked
from GSMedSegLib.prompts import Click, ClickLedger, ObjectPrompts
from GSMedSegLib.service.background import Background, Told
from GSMedSegLib.service.engines import EngineSource
from GSMedSegLib.service.remote_image import RemoteImage
from GSMedSegLib.service.wire import Question
from GSMedSegLib.volume_io import Volume

PERCENTILES = (0.5, 99.5)
"""Of the voxels, between which an image is shown at first."""

WARM_UP = "warm-up"

PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#7f8cff", "#a6d854")
"""Colours of new segments, told apart also by those who see colours otherwise; of those used least the first.

Source: the first six are Okabe and Ito's, Color Universal Design, 2008.
"""

_MOST_SAMPLES = 200_000


@dataclass(frozen=True)
class Row:
    """A segment as a list shows it.

    Attributes:
        id: of the segment.
        name: its name.
        color: as "#rrggbb".
        visible: whether it is shown.
        locked: whether nothing may change it.
        clicks: how many there are on it.
        volume_ml: its size.
    """

    id: str
    name: str
    color: str
    visible: bool
    locked: bool
    clicks: int
    volume_ml: float


class Workspace:
    """One image at a time, with the segments of it.

    Everything is called from the main thread. Masks arrive in `poll`, which is to be called again and again.

    Args:
        scene: the MRML scene.
        source: where the engine comes from.
    """

    def __init__(self, scene: Any, source: EngineSource) -> None:
        self._scene = scene
        self._background = Background(source)
        self._interaction: Interaction | None = None
        self._sizes_ml: dict[str, float] = {}
        self._began_s = 0.0
        self._overwrite, self._smoothing_mm, self._wants_hint = Overwrite.NOTHING, 0.0, False
        self._opacity = 0.5
        self.image: Volume | None = None
        """What is segmented."""
        self.volume: Any = None
        self.segmentation: Any = None
        self.segment_id = ""
        """The segment that clicks are for; empty when there is none yet."""
        self.last_s = 0.0
        """How long the last mask took, from the click to the segment."""
        self.changes = 0
        """Grows with every change of segments or clicks."""
        self.changed_segments: set[str] = set()
        """Segments whose voxels are others since somebody last emptied this."""

    # The image

    def open(self, image: Volume) -> None:
        """Begin with an image; what was there before is gone.

        Raises:
            ValueError: an image that cannot be segmented.
        """
        self.close_image()
        volume = self._scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", image.name)
        slicer.util.updateVolumeFromArray(volume, image.array)
        matrix = vtk.vtkMatrix4x4()
        for row in range(4):
            for column in range(4):
                matrix.SetElement(row, column, float(image.ijk_to_ras[row, column]))
        volume.SetIJKToRASMatrix(matrix)
        volume.CreateDefaultDisplayNodes()
        display = volume.GetDisplayNode()
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        display.AutoWindowLevelOff()
        self.image, self.volume = image, volume
        self.set_range(*self.typical_range())
        self._begin(new_segmentation(volume, image.name))

    def restore(self, segmentation: Any, segment_id: str) -> None:
        """Go on with a segmentation of the same image, in place of the one there is.

        Args:
            segmentation: a node of the scene, with its clicks in the scene, too.
            segment_id: that clicks are for.

        Raises:
            ValueError: its clicks belong to another grid.
        """
        old = self.segmentation
        self._begin(segmentation)
        if old is not None:
            self._scene.RemoveNode(old)
        ids = segmentation.GetSegmentation().GetSegmentIDs()
        self.segment_id = segment_id if segment_id in ids else (ids[0] if ids else "")
        self.changed_segments.update(ids)

    def close_image(self) -> None:
        """Let go of the image and of all that belongs to it."""
        if self._interaction is not None:
            self._interaction.cancel()
            self._interaction.close()
        for node in (self.segmentation, self.volume):
            if node is not None:
                self._scene.RemoveNode(node)
        self._interaction = self.segmentation = self.volume = self.image = None
        self.segment_id = ""
        self._sizes_ml.clear()
        self.changed_segments.clear()
        self.changes += 1

    def close(self) -> None:
        """End; what is being answered is dropped."""
        self._background.close()

    def full_range(self) -> tuple[float, float]:
        """The lowest and the highest voxel."""
        array = self._image().array
        return float(array.min()), float(array.max())

    def typical_range(self) -> tuple[float, float]:
        """Between which nearly all voxels are."""
        flat = self._image().array.reshape(-1)
        low, high = np.percentile(flat[:: max(1, flat.size // _MOST_SAMPLES)], PERCENTILES)
        return (float(low), float(high)) if high > low else (float(low), float(low) + 1)

    def set_range(self, low: float, high: float) -> None:
        """Show the image from black at `low` to white at `high`."""
        self.volume.GetDisplayNode().SetWindowLevelMinMax(low, max(high, low + 1e-6))

    def shown_range(self) -> tuple[float, float]:
        """What is shown black and white."""
        display = self.volume.GetDisplayNode()
        return display.GetWindowLevelMin(), display.GetWindowLevelMax()

    # Segments

    def rows(self) -> list[Row]:
        """The segments in order."""
        if self.segmentation is None:
            return []
        segments, display = self.segmentation.GetSegmentation(), self.segmentation.GetDisplayNode()
        ledger = self.interaction.ledger
        return [
            Row(
                name,
                segments.GetSegment(name).GetName(),
                _hex(segments.GetSegment(name).GetColor()),
                bool(display.GetSegmentVisibility(name)),
                is_locked(self.segmentation, name),
                len(ledger.clicks(name)) if name in ledger.objects else 0,
                self._size_ml(name),
            )
            for name in segments.GetSegmentIDs()
        ]

    def add_segment(self, name: str = "") -> str:
        """Add an empty segment and choose it; its ID."""
        segments = self._node().GetSegmentation()
        used = [_hex(segments.GetSegment(one).GetColor()) for one in segments.GetSegmentIDs()]
        color = min(PALETTE, key=used.count)
        self.segment_id = segments.AddEmptySegment("", name.strip(), _rgb(color))
        self.changes += 1
        return self.segment_id

    def choose(self, segment_id: str) -> None:
        """Click for another segment from now on.

        Raises:
            ValueError: no such segment.
        """
        self._segment(segment_id)
        self.segment_id = segment_id

    def rename(self, segment_id: str, name: str) -> None:
        """Give a segment another name.

        Raises:
            ValueError: no such segment, or an empty name.
        """
        if not name.strip():
            raise ValueError("a segment needs a name; enter one")
        self._segment(segment_id).SetName(name.strip())
        self.changes += 1

    def recolor(self, segment_id: str, color: str) -> None:
        """Give a segment another colour.

        Args:
            segment_id: whose.
            color: as "#rrggbb".

        Raises:
            ValueError: no such segment, or no such colour.
        """
        if re.fullmatch("#[0-9a-fA-F]{6}", color) is None:
            raise ValueError(f"a colour is written #rrggbb, got {color!r}")
        self._segment(segment_id).SetColor(*_rgb(color))
        self.changes += 1

    def remove(self, segment_id: str) -> None:
        """Take a segment away, with its clicks; this cannot be undone.

        Raises:
            ValueError: no such segment, or one that is locked.
        """
        self._segment(segment_id)
        if is_locked(self.segmentation, segment_id):
            raise ValueError("the segment is locked; unlock it first")
        self.interaction.clear(segment_id)
        self.segmentation.GetSegmentation().RemoveSegment(segment_id)
        if self.segment_id == segment_id:
            ids = self.segmentation.GetSegmentation().GetSegmentIDs()
            self.segment_id = ids[-1] if ids else ""
        self._touched_all(segment_id)

    def set_visible(self, segment_id: str, visible: bool) -> None:
        """Show or hide a segment."""
        self._segment(segment_id)
        self.segmentation.GetDisplayNode().SetSegmentVisibility(segment_id, visible)
        self.changes += 1

    def set_lock(self, segment_id: str, locked: bool) -> None:
        """Lock a segment, or let it be changed again."""
        self._segment(segment_id)
        set_locked(self.segmentation, segment_id, locked)
        self.changes += 1

    def set_opacity(self, opacity: float) -> None:
        """How much segments cover the image, 0 to 1; their outlines stay."""
        self._opacity = opacity
        if self.segmentation is not None:
            self.segmentation.GetDisplayNode().SetOpacity2DFill(opacity)

    def mask(self, segment_id: str) -> Cropped:
        """A segment's voxels on the image's grid."""
        return read_mask(self._node(), segment_id, self.volume)

    def labels(self) -> tuple[NDArray[np.uint16], list[str]]:
        """(K, J, I) labels 1, 2, … and the segments' names; where segments overlap the later one counts."""
        labels = np.zeros(self._image().shape, np.uint16)
        names = []
        for number, row in enumerate(self.rows(), start=1):
            mask = self.mask(row.id)
            labels[mask.box][mask.array] = number
            names.append(row.name)
        return labels, names

    # Clicks

    @property
    def interaction(self) -> Interaction:
        """The clicks on the image.

        Raises:
            RuntimeError: there is no image.
        """
        if self._interaction is None:
            raise RuntimeError("open an image first")
        return self._interaction

    @property
    def busy(self) -> bool:
        """Whether a mask is waited for."""
        return self._interaction is not None and self._interaction.busy

    def click(self, ras: ArrayLike, positive: bool) -> None:
        """Click at a point of the world (mm), and ask for the mask.

        Raises:
            RuntimeError: there is no image.
            ValueError: the point is outside the image, or the segment is locked.
        """
        interaction = self.interaction
        with self._chosen() as segment_id:
            interaction.add_click(segment_id, ras, positive)
        self._ask()

    def box(self, corners_ras: ArrayLike) -> None:
        """Draw a box, given its corners (N, 3) in the world (mm), and ask for the mask.

        Raises:
            RuntimeError: there is no image.
            ValueError: the box misses the image, or the segment is locked.
        """
        interaction = self.interaction
        with self._chosen() as segment_id:
            interaction.set_box(segment_id, corners_ras)
        self._ask()

    def undo(self) -> None:
        """Take back the last step, clicks and mask; its segment becomes the chosen one."""
        self._began_s = time.monotonic()
        self._stepped(self.interaction.undo())

    def redo(self) -> None:
        """Bring back what `undo` took; its segment becomes the chosen one."""
        self._began_s = time.monotonic()
        self._stepped(self.interaction.redo())

    def clear(self) -> None:
        """Take all clicks off the chosen segment, and its voxels; can be undone."""
        if self.segment_id:
            self.interaction.clear(self.segment_id)
            self._touched_all(self.segment_id)

    def cancel(self) -> None:
        """Drop what is waited for, with the clicks that asked for it."""
        if self._interaction is not None:
            self._interaction.cancel()
            self.changes += 1

    def set_options(
        self, overwrite: Overwrite | None = None, smoothing_mm: float | None = None, hint: bool | None = None
    ) -> None:
        """How masks are made and put into segments from now on; None leaves one as it is."""
        self._overwrite = self._overwrite if overwrite is None else overwrite
        self._smoothing_mm = self._smoothing_mm if smoothing_mm is None else smoothing_mm
        self._wants_hint = self._wants_hint if hint is None else hint
        if self._interaction is not None:
            self._interaction.overwrite = self._overwrite
            self._interaction.smoothing_mm = self._smoothing_mm
            self._interaction.wants_hint = self._wants_hint

    def clicks_ras(self) -> list[tuple[NDArray[np.float64], bool]]:
        """World coordinates (mm) of the chosen segment's clicks, and whether each is a foreground click."""
        if self._interaction is None or not self.segment_id:
            return []
        return self._interaction.clicks_ras(self.segment_id)

    def hint_ras(self) -> NDArray[np.float64] | None:
        """World coordinates (mm) of the place where a next click would help, if one is wanted and known."""
        known = self._interaction is not None and self._wants_hint
        return self.interaction.hint_ras(self.segment_id) if known else None

    def ledger(self) -> ClickLedger:
        """All clicks, objects named as their segments are, for `gsmedseg segment --clicks`."""
        return named_ledger(self.interaction.ledger, self.segmentation)

    def warm_up(self) -> None:
        """Have the engine start before the first click; what comes of it is told with the tag `WARM_UP`."""
        tiny = np.arange(512).astype(np.uint8).reshape(8, 8, 8)  # a constant image is refused

        def send(source: EngineSource) -> RemoteImage:
            return RemoteImage(source, tiny, np.eye(4))

        question = Question(ObjectPrompts((Click((4, 4, 4), True),)))
        self._background.ask(WARM_UP, WARM_UP, send, question)

    def poll(self) -> list[Told]:
        """Puts masks that have arrived into their segments.

        Returns:
            what became of the questions, or how far they are.
        """
        told = self._background.poll()
        if not told:
            return []
        warm = [one for one in told if one.tag == WARM_UP]
        if self._interaction is None:
            return warm
        own: Sequence[Told] = self._interaction.update(told)
        for one in own:
            if one.answer is not None:
                self.last_s = time.monotonic() - self._began_s
                assert isinstance(one.tag, tuple)
                self._touched_all()
        return [*warm, *own]

    # Inside

    def _begin(self, segmentation: Any) -> None:
        interaction = Interaction(self.volume, segmentation, self._background)
        if self._interaction is not None:
            self._interaction.cancel()
        self._interaction, self.segmentation = interaction, segmentation
        self._sizes_ml.clear()
        self.set_options()
        self.set_opacity(self._opacity)
        self.changes += 1

    def _ask(self) -> None:
        self._began_s = time.monotonic()
        self.changes += 1
        self.interaction.segment(self.segment_id)

    @contextlib.contextmanager
    def _chosen(self) -> Iterator[str]:
        """The chosen segment, or a new one, which goes again when what it is made for is refused."""
        if self.segment_id:
            yield self.segment_id
            return
        segment_id = self.add_segment()
        try:
            yield segment_id
        except ValueError:
            self._node().GetSegmentation().RemoveSegment(segment_id)
            self.segment_id = ""
            raise

    def _stepped(self, segment_id: str | None) -> None:
        if segment_id is None:
            return
        if self._node().GetSegmentation().GetSegment(segment_id) is not None:
            self.segment_id = segment_id
        self._touched_all(segment_id)

    def _touched_all(self, *gone: str) -> None:
        """What changes one segment may take from others, or give back to them."""
        self._touched(*gone, *self._node().GetSegmentation().GetSegmentIDs())

    def _touched(self, *segment_ids: str) -> None:
        self.changes += 1
        self.changed_segments.update(segment_ids)
        for segment_id in segment_ids:
            self._sizes_ml.pop(segment_id, None)

    def _size_ml(self, segment_id: str) -> float:
        if segment_id not in self._sizes_ml:
            voxel_mm3 = abs(float(np.linalg.det(self._image().ijk_to_ras[:3, :3])))
            self._sizes_ml[segment_id] = self.mask(segment_id).array.sum() * voxel_mm3 / 1000
        return self._sizes_ml[segment_id]

    def _image(self) -> Volume:
        if self.image is None:
            raise RuntimeError("open an image first")
        return self.image

    def _node(self) -> Any:
        if self.segmentation is None:
            raise RuntimeError("open an image first")
        return self.segmentation

    def _segment(self, segment_id: str) -> Any:
        segment = self._node().GetSegmentation().GetSegment(segment_id)
        if segment is None:
            raise ValueError(f"there is no segment {segment_id!r} any more; choose another one")
        return segment


def _rgb(color: str) -> list[float]:
    return [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
