"""Training examples: views of cases and of invented scenes, and the objects to click in them.

Every example is drawn from its own number: whatever processes and workers there are, and wherever a run went
on, the same steps see the same views.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.roi import even_inside, outside_mask
from Training import synthetic
from Training.augment import Augmentation
from Training.bent import BentView
from Training.cases import CaseCache
from Training.clicks import TELLING_CLICKS, chance_of_step, further_clicks
from Training.config import Sampling, Source
from Training.regions import GRAINS, load_regions
from Training.volumes import MIN_VOXELS, LabelledVolume, load_case, load_lesions, load_map

MOST_OF_A_VIEW = 0.95
"""An object that fills more of a view than this is not asked for; nor is one of less than `MIN_VOXELS`."""

TRIES = 8
"""Views looked at before one without an object is handed out."""


@dataclass(frozen=True)
class Example:
    """A view to train on.

    Attributes:
        image: (S, S, S) float32, as the network is shown it.
        targets: (M, S, S, S) bool, the objects to be clicked; there may be none.
        labels: of the objects, in the case they are from.
        name: of the case or the scene, for messages.
        seed: of everything that happens to it later.
    """

    image: Tensor
    targets: Tensor
    labels: tuple[int, ...] = ()
    name: str = ""
    seed: tuple[int, ...] = (0,)


class Pool:
    """One source's cases, label maps or scenes.

    Args:
        weight: how often it is drawn from, compared with other pools.
        volumes: what it draws from; None for invented scenes.
        names: of the volumes.
        lesions: shapes to paste into label maps.
        nested: what may be asked for lies within one another: a first click cannot say which is meant.
        membranes: label maps are painted as cells with membranes between them.
    """

    def __init__(
        self,
        weight: float,
        volumes: CaseCache | None,
        names: Sequence[str] = (),
        lesions: Sequence[NDArray[np.bool_]] = (),
        nested: bool = False,
        membranes: bool = False,
    ) -> None:
        self.weight = weight
        self.volumes = volumes
        self.names = list(names)
        self.lesions = list(lesions)
        self.nested = nested
        self.membranes = membranes


def make_pools(
    sources: Sequence[tuple[Source, Sequence[CaseSource]]], root: Path, budget_bytes: int, clip: bool
) -> list[Pool]:
    """The pools of a run; nothing but lesions is read yet.

    Args:
        sources: with the training cases of each that has cases.
        root: what the paths of label maps are relative to.
        budget_bytes: for volumes in memory, shared out evenly.
        clip: see `LabelledVolume`.

    Raises:
        ValueError: a source of label maps without any.
    """
    count = sum(source.kind != "scenes" for source, _ in sources)
    share = budget_bytes // max(1, count)
    pools = []
    for source, cases in sources:
        if source.kind == "scenes":
            pools.append(Pool(source.weight, None))
        elif source.kind == "cases":
            pools += _case_pools(source, cases, share, clip)
        else:
            pools += _map_pools(source, root / source.path, share)
    return pools


def _case_pools(source: Source, cases: Sequence[CaseSource], budget_bytes: int, clip: bool) -> Iterator[Pool]:
    """A pool of cases with their labels, and one with regions of their images."""
    loaders: list[Callable[[], LabelledVolume]] = [functools.partial(load_case, case, clip) for case in cases]
    names = [case.name for case in cases]
    budget_bytes //= 2 if source.regions else 1
    yield Pool((1 - source.regions) * source.weight, CaseCache(loaders, budget_bytes), names)
    if source.regions:
        loaders = [functools.partial(load_regions, case, grain, clip) for grain in GRAINS for case in cases]
        divided = [f"regions of {name}" for _ in GRAINS for name in names]
        yield Pool(source.regions * source.weight, CaseCache(loaders, budget_bytes), divided, nested=True)


def _map_pools(source: Source, folder: Path, budget_bytes: int) -> Iterator[Pool]:
    """A pool for each set of label maps, weighed by the square root of its size."""
    sets = {
        path.name: sorted(path.glob("*.nii.gz"))
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.is_dir() and path.name not in source.lesions
    }
    sets = {name: files for name, files in sets.items() if files}
    if not sets:
        raise ValueError(f"{folder}: no label maps; expected folders with *.nii.gz")
    missing = [name for name in source.lesions if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no folder {missing[0]}, which `lesions` names")
    lesions = [lesion for name in source.lesions for lesion in load_lesions(folder / name)]
    total = sum(len(files) ** 0.5 for files in sets.values())
    for name, files in sets.items():
        cache = CaseCache([functools.partial(load_map, file) for file in files], budget_bytes // len(sets))
        weight = source.weight * len(files) ** 0.5 / total
        names = [f"{name}/{file.name}" for file in files]
        yield Pool(weight, cache, names, lesions, membranes=source.membranes)


class Draws(Dataset[list[Example]]):
    """Number n of the run: a case, and the views cut out of it.

    Args:
        pools: what is drawn from.
        sampling: how.
        by_view: even out the contrast of every view by itself, rather than keep the volume's scale.
        seed: of the run.
    """

    def __init__(self, pools: Sequence[Pool], sampling: Sampling, by_view: bool, seed: int) -> None:
        self.pools = list(pools)
        self.sampling = sampling
        self.by_view = by_view
        self.seed = seed
        self._augmentation = Augmentation(sampling.augmentation)

    def __getitem__(self, number: int) -> list[Example]:
        rng = np.random.default_rng([self.seed, 1, number])
        telling = self._clicks_tell(number)
        weights = np.array([pool.weight if telling or not pool.nested else 0.0 for pool in self.pools])
        pool = self.pools[int(rng.choice(len(weights), p=weights / weights.sum()))]
        volume, name = None, "an invented scene"
        if pool.volumes is not None:
            # Each pass over a pool is a permutation of its own: a single source is shown once an epoch.
            turn, place = divmod(number, len(pool.volumes))
            index = int(np.random.default_rng([self.seed, 2, turn]).permutation(len(pool.volumes))[place])
            volume, name = pool.volumes[index], pool.names[index]
        return [self._example(rng, pool, volume, name, (number, n)) for n in range(self.sampling.views)]

    def _clicks_tell(self, number: int) -> bool:
        """Whether the step of an example has clicks enough to say what the image does not."""
        step = number // self.sampling.cases
        rng = chance_of_step(self.seed, step)
        return further_clicks(rng, self.sampling.more_clicks) >= TELLING_CLICKS

    def _example(
        self,
        rng: np.random.Generator,
        pool: Pool,
        volume: LabelledVolume | None,
        name: str,
        number: tuple[int, int],
    ) -> Example:
        size, seed = self.sampling.roi, (self.seed, 3, *number)
        cuts = self.sampling.cuts if self._clicks_tell(number[0]) else 0.0
        for _ in range(TRIES):
            if volume is None:
                scene = synthetic.invented_scene(rng, size)
            elif volume.pieces:
                scene = self._cut(rng, pool, volume)
            else:
                break
            count = max(self.sampling.objects, self.sampling.candidates)
            chosen = choose_targets(rng, scene.labels, scene.main, count, self.sampling.pieces)
            chosen = [
                (label, cut(rng, mask) if cuts and rng.random() < cuts else mask) for label, mask in chosen
            ]
            if chosen:
                image, targets = self._augmentation.turn(
                    rng, self._shown(rng, scene, volume), torch.from_numpy(np.stack([m for _, m in chosen]))
                )
                return Example(image, targets, tuple(label for label, _ in chosen), name, seed)
        nothing = torch.zeros(0, size, size, size, dtype=torch.bool)
        return Example(torch.zeros(size, size, size), nothing, (), name, seed)

    def _cut(self, rng: np.random.Generator, pool: Pool, volume: LabelledVolume) -> synthetic.Scene:
        """A view of a volume; a label map is painted."""
        size = self.sampling.roi
        view, label = volume.crop(rng, size) if self.sampling.crop == "voxels" else volume.view(rng, size)
        bent = None
        if self.sampling.bent and rng.random() < self.sampling.bent:
            bent = BentView.draw(rng, view)
        labels = volume.labels_in(view) if bent is None else bent.labels(volume.labels)
        if volume.image is None and not pool.membranes:
            return synthetic.painted_scene(rng, labels, label, pool.lesions)
        shape = volume.labels.shape
        outside = outside_mask(view, shape).numpy() if bent is None else bent.outside(shape)
        if volume.image is None:
            gap = 2 * synthetic.distance_to_border(labels)
            return replace(synthetic.packed(rng, labels, gap, label), outside=outside)
        samples = volume.image.sample(view) if bent is None else bent.samples(volume.image)
        return synthetic.Scene(samples.numpy(), labels, label, outside)

    def _shown(
        self, rng: np.random.Generator, scene: synthetic.Scene, volume: LabelledVolume | None
    ) -> Tensor:
        """A scene's image as the network sees it. What is invented was made noisy already."""
        image = torch.from_numpy(np.ascontiguousarray(scene.image, dtype=np.float32))
        if volume is not None and volume.image is not None:
            image = self._augmentation.intensity(rng, image)
        outside = torch.zeros(image.shape, dtype=torch.bool)
        if scene.outside is not None:
            outside = torch.from_numpy(scene.outside)
        if self.by_view:
            return even_inside(image, outside)
        if volume is None or volume.image is None:  # no volume to take the scale from
            low, high = (float(q) for q in np.percentile(scene.image, (1, 99)))
            image = ((image - low) / max(high - low, 1e-6)).clamp(0, 1)
        return torch.where(outside, 0.0, image)


def choose_targets(
    rng: np.random.Generator, labels: NDArray[Any], main: int, count: int, pieces: float
) -> list[tuple[int, NDArray[np.bool_]]]:
    """Up to `count` masks among a view's labels, `main` first, each with its label.

    The other labels are drawn without replacement by the square root of their size: `u ** (1 / w)` orders
        them so.

    Args:
        rng: the source of chance.
        labels: (S, S, S) integers, 0 for nothing.
        main: the label wanted most.
        count: of masks.
        pieces: how often one connected component of a label is taken instead of all.

    Source: Efraimidis and Spirakis, Information Processing Letters 2006.
    """
    values, voxels = np.unique(labels, return_counts=True)
    usable = (values != 0) & (voxels >= MIN_VOXELS) & (voxels <= MOST_OF_A_VIEW * labels.size)
    luck = rng.random(len(values)) ** (1 / np.sqrt(voxels))
    luck[values == main] = 1
    order = [int(v) for v in values[usable][np.argsort(-luck[usable])]]
    masks = []
    for value in order[:count]:
        mask = labels == value
        if rng.random() < pieces:
            parts, n = ndimage.label(mask, np.ones((3, 3, 3)))
            if n > 1:
                sizes = np.bincount(parts.ravel())[1:].astype(float)
                mask = parts == 1 + int(rng.choice(n, p=sizes / sizes.sum()))
        if mask.sum() >= MIN_VOXELS:
            masks.append((value, mask))
    return masks


def cut(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A quarter to three quarters of a mask, on one side of a random plane; all of it where it is small."""
    at = np.argwhere(mask)
    along = at @ rng.standard_normal(3)
    part = at[along <= np.quantile(along, rng.uniform(0.25, 0.75))]
    if len(part) < MIN_VOXELS:
        return mask
    cut_off = np.zeros_like(mask)
    cut_off[tuple(part.T)] = True
    return cut_off


class Share(Sampler[int]):
    """The numbers that one of several processes draws: of every step's cases each takes its own.

    Args:
        start, stop: steps.
        cases: of a step.
        rank, size: of the processes.
    """

    def __init__(self, start: int, stop: int, cases: int, rank: int, size: int) -> None:
        self.slots = range(rank, cases, size)
        """Of every step's cases those that are this process's."""
        self.numbers = [step * cases + slot for step in range(start, stop) for slot in self.slots]

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def stream(draws: Draws, share: Share, workers: int) -> Iterator[list[Example]]:
    """The views of one case after the other, made by other processes where there are workers.

    Raises:
        RuntimeError: a case cannot be read any more, or a worker is gone; from the iterator.
        MemoryError: there is too little of it; from the iterator.
    """
    loader: DataLoader[list[Example]] = DataLoader(
        draws,
        batch_size=None,
        sampler=share,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_begin_worker if workers else None,
    )
    return _in_one_line(iter(loader))


def _in_one_line(examples: Iterator[list[Example]]) -> Iterator[list[Example]]:
    """Torch makes a worker's whole traceback its message; the reason is the last line."""
    try:
        yield from examples
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[-1]
        kind = MemoryError if isinstance(error, MemoryError) else RuntimeError
        raise kind(f"an example could not be made, {reason}") from error


def _begin_worker(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
    for name in (signal.SIGTERM, signal.SIGINT):  # sent to all processes at once; the run ends its workers
        signal.signal(name, signal.SIG_IGN)
