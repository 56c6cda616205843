"""Interactive segmentation of one image: clicks go in, masks come out.

Example:
    predictor = Predictor(load_engine("compact"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    predictor.add_object("liver")
    predictor.add_click("liver", (40, 120, 96))
    mask = predictor.predict("liver")
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from GSMedSegLib.adaptive import DEFAULT_ROI, AdaptiveStrategy
from GSMedSegLib.checkpoint import read_checkpoint
from GSMedSegLib.cropped import Voxel, crop
from GSMedSegLib.engine import Engine
from GSMedSegLib.geometry import spacing_kji_mm
from GSMedSegLib.hint import Hint, next_click
from GSMedSegLib.intensity import scale
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.model_store import resolve
from GSMedSegLib.network import build_network
from GSMedSegLib.prompts import Box, Click, ClickLedger, ObjectPrompts
from GSMedSegLib.reference import ReferenceStrategy
from GSMedSegLib.segment import Segment, empty_segment, given_segment, paint_by_logit, paint_in_order

STRATEGIES = ("adaptive", "reference")

REFERENCE_ROI = 128
"""Voxels per side of the seed method's windows."""

REMEMBERED_BYTES = 2**29
"""Memory for earlier masks of one image."""


class Strategy(Protocol):
    """How clicks become logits."""

    name: str
    stepwise: bool
    """Whether the clicks have to be gone through one by one."""
    edits: bool
    """Whether it can start from a mask."""
    further_click: float
    """What a further click takes, as a share of a first one's time."""

    def set_image(self, image: NDArray[np.generic], spacing_kji_mm: tuple[float, float, float]) -> None:
        """Take an image (K, J, I)."""

    def can_start(self, clicks: Sequence[Click], box: Box | None) -> bool:
        """Whether these prompts are enough for a mask."""

    def predict(
        self, clicks: Sequence[Click], box: Box | None = None, before: Segment | None = None
    ) -> Segment:
        """Segment one object from its clicks; `before` is the segment without the last of them."""


def load_engine(
    weights: str = "compact", device: str = "auto", precision: str = "auto", cache_gb: float = 2.0
) -> Engine:
    """An engine for named weights or a checkpoint file.

    Args:
        weights: "compact", the name of fetched weights, or a path.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" (bf16 where the processor has it), "fp32", "bf16" or "fp16".
        cache_gb: memory for encoded regions.

    Raises:
        ValueError: unknown weights, or a file that is no sound VISTA3D checkpoint.
        OSError: a file that cannot be read.
    """
    checkpoint = read_checkpoint(resolve(weights), check_finite=True)
    network = build_network(checkpoint.tensors)
    return Engine(network, device, precision, cache_gb, metadata=checkpoint.metadata)


class Predictor:
    """Segments the objects of one image from clicks.

    Every mask is a function of the image and the object's prompts alone: undoing and redoing, or replaying a
    saved ledger, gives the same bits.

    Args:
        engine: from `load_engine`.
        strategy: "adaptive" (views that follow the object) or "reference" (the seed method's windows).
        roi: voxels per side of what the network sees at once; by default what the weights were trained on
            (adaptive), or 128 (reference).
        remembered_bytes: for earlier masks, so that undo and redo need no network; what is forgotten is
            computed again.

    Attributes:
        engine: as given.
        window: lowest and highest grey value that the weights were trained in; None for all of an image.

    Raises:
        ValueError: unknown strategy, or a ROI that the network cannot take.
    """

    def __init__(
        self,
        engine: Engine,
        strategy: str = "adaptive",
        roi: int | None = None,
        remembered_bytes: int = REMEMBERED_BYTES,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"expected strategy {' or '.join(STRATEGIES)}; got {strategy!r}")
        wanted: int | str | None = roi
        if wanted is None:
            wanted = engine.metadata.get("roi", DEFAULT_ROI) if strategy == "adaptive" else REFERENCE_ROI
        size = int(wanted) if str(wanted).isdecimal() else 0
        if size == 0 or size % engine.shape.stride:
            raise ValueError(f"expected a ROI side that is a multiple of {engine.shape.stride}; got {wanted}")
        self.engine = engine
        self._strategy: Strategy
        if strategy == "adaptive":
            self._strategy = AdaptiveStrategy(engine, size)
        else:
            self._strategy = ReferenceStrategy(engine, size)
        window = engine.metadata.get("window", "").split()
        self.window = (float(window[0]), float(window[1])) if window else None
        self._ledger: ClickLedger | None = None
        self._ijk_to_ras = np.eye(4)
        self._known: OrderedDict[ObjectPrompts, Segment] = OrderedDict()
        self._remembered_bytes = remembered_bytes

    def set_image(
        self,
        image: NDArray[np.generic],
        ijk_to_ras: ArrayLike | None = None,
        ledger: ClickLedger | None = None,
    ) -> None:
        """Start on an image; clicks of the image before are forgotten.

        Args:
            image: (K, J, I) real numbers, any range; not copied, so it must stay as it is while it is in use.
                Weights that were trained in a window of grey values see it in that window, unless it has 8
                bits: then it was put into one before.
            ijk_to_ras: (4, 4) voxels (i, j, k) to millimetres; None for cubes of 1 mm.
            ledger: clicks made earlier on this image, to go on from.

        Raises:
            ValueError: not a 3D array, constant, NaN, infinite or beyond 1e36, or a ledger of another image.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(f"expected a NumPy array (k, j, i); got {type(image).__name__}; use np.asarray")
        if image.ndim != 3 or image.size == 0:
            raise ValueError(
                f"expected a 3D image (k, j, i); got shape {image.shape}; choose one channel or time point"
            )
        matrix = np.eye(4) if ijk_to_ras is None else np.asarray(ijk_to_ras, dtype=float)
        if ledger is not None:
            ledger.check_image(image.shape, matrix)
            if ledger.ijk_to_ras is not None:
                matrix = ledger.ijk_to_ras  # formats round it differently; the same clicks give the same bits
        if self.window is not None and image.dtype != np.uint8:
            image = scale(image, self.window)
        self._strategy.set_image(image, spacing_kji_mm(matrix))
        self._ledger = ledger if ledger is not None else ClickLedger(image.shape, matrix)
        self._ijk_to_ras = matrix
        self._known.clear()

    @property
    def ledger(self) -> ClickLedger:
        """The clicks so far.

        Raises:
            RuntimeError: no image yet.
        """
        if self._ledger is None:
            raise RuntimeError("there is no image yet; call set_image first")
        return self._ledger

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects, in the order they were added."""
        return self.ledger.objects

    @property
    def further_click(self) -> float:
        """What a further click takes, as a share of a first one's time; about."""
        return self._strategy.further_click

    def add_object(self, name: str) -> None:
        """Add an object to segment; raises ValueError when the name is taken."""
        self.ledger.add_object(name)

    def add_click(self, object_name: str, kji: Sequence[int], positive: bool = True) -> None:
        """Click on the object, or beside it.

        Args:
            object_name: an object added before.
            kji: array index (k, j, i).
            positive: whether the voxel belongs to the object.

        Raises:
            ValueError: unknown object, or a click outside the image.
        """
        self.ledger.add_click(object_name, Click(cast("Voxel", kji), positive))  # Click checks that it is one

    def set_box(self, object_name: str, box: Box) -> None:
        """Draw a box around the object, for the adaptive strategy's first view; VISTA3D has no box input."""
        self.ledger.set_box(object_name, box)

    def set_mask(self, object_name: str, mask: NDArray[np.bool_]) -> None:
        """Start an object from a mask, for the adaptive strategy to change where it is clicked.

        Args:
            object_name: an object added before; its clicks and box so far no longer count.
            mask: (K, J, I) bool.

        Raises:
            ValueError: unknown object, not a mask, or one of another shape.
        """
        self.ledger.set_mask(object_name, crop(mask))

    def undo(self) -> bool:
        """Take back the last click, box or mask, on whichever object; False when there is none."""
        return self.ledger.undo()

    def redo(self) -> bool:
        """Bring back what `undo` took; False when there is nothing."""
        return self.ledger.redo()

    def clear(self, object_name: str | None = None) -> None:
        """Take all prompts off an object, or off all."""
        self.ledger.clear(object_name)

    def predict(
        self, object_name: str, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.bool_]:
        """(K, J, I) mask of an object; see `segment`."""
        return self.segment(object_name, progress).mask

    def probability(self, object_name: str) -> NDArray[np.float32]:
        """(K, J, I) 0..1, how sure the network is of an object, after all its clicks; see `segment`."""
        return self.segment(object_name).probability

    def next_click(self, object_name: str) -> Hint | None:
        """Where a further click would help most; None when nothing is in doubt. See `hint.next_click`.

        Raises:
            ValueError, RuntimeError: as `segment`.
        """
        segment = self.segment(object_name)
        spacing = spacing_kji_mm(self._ijk_to_ras)
        return next_click(segment, self.ledger.clicks(object_name), spacing)

    def can_segment(self, object_name: str) -> bool:
        """Whether the object has enough prompts for a mask; raises ValueError for an unknown object."""
        return self.can_start(self.ledger.prompts(object_name))

    def can_start(self, prompts: ObjectPrompts) -> bool:
        """Whether these prompts are enough for a mask: the strategy decides, but a mask always is."""
        return prompts.mask is not None or self._strategy.can_start(prompts.clicks, prompts.box)

    def segment(self, object_name: str, progress: Callable[[int, int], None] | None = None) -> Segment:
        """Logits of an object after all its clicks.

        Args:
            object_name: an object added before.
            progress: called with (clicks done, clicks in all) after every click that needed the network.

        Raises:
            ValueError: unknown object.
            RuntimeError: no image yet, or nothing to start from: a foreground click or, with the adaptive
                strategy, a box or a mask; any click with the reference strategy, which takes no mask.
        """
        prompts = self.ledger.prompts(object_name)
        if not self.can_start(prompts):
            raise RuntimeError(f"object {object_name!r} has no foreground click yet; call add_click first")
        return self.segment_from(prompts, progress)

    def segment_from(
        self, prompts: ObjectPrompts, progress: Callable[[int, int], None] | None = None
    ) -> Segment:
        """Logits of an object that the ledger need not know.

        Args:
            prompts: of the object.
            progress: as in `segment`.

        Raises:
            ValueError: prompts outside the image.
            RuntimeError: no image yet, nothing to start from, or a mask for the reference strategy.
        """
        prompts.check_image(self.ledger.shape)
        if prompts.mask is not None and not self._strategy.edits:
            raise RuntimeError(
                f"the {self._strategy.name} strategy starts from clicks, not from a mask; use adaptive"
            )
        if not self.can_start(prompts):
            raise RuntimeError("there is no foreground click yet; give one")
        steps = self._steps(prompts)
        segment = None if prompts.mask is None else given_segment(prompts.mask)
        todo: list[ObjectPrompts] = []
        for step in reversed(steps):
            if step in self._known:
                segment = self._known[step]
                break
            todo.append(step)
        for number, step in enumerate(reversed(todo), start=1 + len(steps) - len(todo)):
            segment = self._strategy.predict(step.clicks, step.box, segment)
            self._remember(step, segment)
            if progress is not None:
                progress(number, len(steps))
        assert segment is not None
        return segment

    def _steps(self, prompts: ObjectPrompts) -> list[ObjectPrompts]:
        """What the network has to be run on, one after the other; nothing when it cannot start."""
        clicks = prompts.clicks
        first = 0 if self._strategy.stepwise else len(clicks)
        if prompts.mask is not None:
            first = 1
        growing = [replace(prompts, clicks=clicks[:n]) for n in range(first, len(clicks) + 1)]
        return [step for step in growing if self.can_start(step)]

    def labels(self, progress: Callable[[int, int], None] | None = None) -> LabelArray:
        """(K, J, I) label map of all objects, 1, 2, … in the order they were added.

        Objects with nothing to start from get no voxels. Where objects overlap the surer one wins; with the
        reference strategy the last.

        Args:
            progress: called with (steps done, steps in all) of all objects, as in `segment`.
        """
        prompts = [self.ledger.prompts(name) for name in self.objects]
        counts = [len(self._steps(one)) for one in prompts]

        def segments() -> Iterator[Segment]:
            for n, one in enumerate(prompts):
                if not self.can_start(one):
                    yield empty_segment(self.ledger.shape)
                    continue
                yield self.segment_from(one)
                if progress is not None:
                    progress(sum(counts[: n + 1]), sum(counts))

        return self.paint(segments(), self.ledger.shape)

    def paint(self, segments: Iterable[Segment], shape: tuple[int, int, int]) -> LabelArray:
        """(K, J, I) label map of segments, 1, 2, … in order; overlaps go as in `labels`."""
        paint = paint_in_order if self._strategy.name == "reference" else paint_by_logit
        return paint(segments, shape)

    def _remember(self, prompts: ObjectPrompts, segment: Segment) -> None:
        self._known[prompts] = segment
        while len(self._known) > 1 and sum(s.nbytes for s in self._known.values()) > self._remembered_bytes:
            self._known.popitem(last=False)
