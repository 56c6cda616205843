"""Series of results: the same objects and the same rule of clicks for every strategy and every method."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from GSMedSegLib.case_segmenter import CaseSegmenter
from GSMedSegLib.challenge import CaseResult, Segmenter
from GSMedSegLib.checkpoint import sha256_of
from GSMedSegLib.engine import Engine
from GSMedSegLib.evaluation import ResultStore, evaluate
from GSMedSegLib.model_store import resolve
from GSMedSegLib.peers import PEERS
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine
from Testing.benchmarks.objects import DevObject

LIBRARY = Path(__file__).parents[2] / "GSMedSegLib"

PROTOCOL = ("case_segmenter", "case_source", "challenge", "intensity", "metrics", "simulation", "volume_io")
"""Files of the library that decide on every result."""

OURS = (
    *("cropped", "decoder", "engine", "geometry", "layers", "network", "predictor", "prompt_maps"),
    *("prompts", "roi", "segment"),
)
"""Files that decide on those of our strategies, ..."""

STRATEGY = {"adaptive": ("adaptive", "edits", "guided"), "reference": ("reference",)}
"""... and files that decide on those of one."""


@dataclass(frozen=True)
class Series:
    """What is measured: a strategy of ours with some weights, or a method to compare with.

    Attributes:
        name: of the strategy or the method.
        weights: a name or a file; a method has no use for them.
        precision: "auto", "fp32", "bf16" or "fp16".
        surfaces: measure surface Dice too.
    """

    name: str
    weights: str
    precision: str
    surfaces: bool

    @property
    def ours(self) -> bool:
        """Whether it is a strategy."""
        return self.name in STRATEGIES

    def settings(self) -> dict[str, str]:
        """All that decides on its results, code too: what was computed by other code is not mixed in."""
        files = (*PROTOCOL, *((*OURS, *STRATEGY[self.name]) if self.ours else ("peers",)))
        code = hashlib.sha256(b"".join((LIBRARY / f"{file}.py").read_bytes() for file in files))
        settings = {"series": self.name, "surfaces": str(self.surfaces), "code": code.hexdigest()}
        if self.ours:
            settings["weights SHA-256"] = sha256_of(resolve(self.weights))
            settings["precision"] = self.precision
        return settings


@dataclass(frozen=True)
class Task:
    """The objects of one case, which share the image, in a series.

    Attributes:
        series: what is measured.
        folder: keeps the results of it with these settings.
        settings: of the series when the run began, though its code may be edited meanwhile.
        objects: of the case.
    """

    series: Series
    folder: Path
    settings: dict[str, str]
    objects: tuple[DevObject, ...]


def run(
    series: Sequence[Series], objects: Sequence[DevObject], folder: Path, jobs: int
) -> Iterator[tuple[Series, list[CaseResult]]]:
    """Plays the objects in every series; what is in the stores already is taken from there.

    Args:
        series: each is measured with the same objects.
        objects: of all cases.
        folder: keeps the results: a folder in it for each series with its settings.
        jobs: processes, which share the processors; 1 for none but this.

    Yields:
        the results of the objects of one case, in the order in which they are done.
    """
    by_case = [tuple(several) for _, several in itertools.groupby(objects, lambda one: one.case)]
    by_case.sort(key=lambda several: -len(several) * several[0].nbytes)  # the longest first
    tasks = []
    for one in series:
        settings = one.settings()
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        own = folder / f"{one.name}-{digest[:12]}"
        ResultStore(own, settings)  # made before processes want to make it at once
        tasks += [Task(one, own, settings, several) for several in by_case]
    if jobs == 1:
        yield from map(Player().play, tasks)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # the same on every system
    with context.Pool(jobs, _begin, (threads,)) as pool:
        yield from pool.imap_unordered(_play, tasks)


class Player:
    """Plays tasks one after the other; the network is loaded once for all that need it."""

    def __init__(self) -> None:
        self._engine: tuple[str, Engine] | None = None
        self._segmenter: tuple[Series, Segmenter] | None = None

    def play(self, task: Task) -> tuple[Series, list[CaseResult]]:
        """The results of a task, as far as they are not there yet, computed and kept."""
        sources = [one.source for one in task.objects]
        store = ResultStore(task.folder, task.settings)
        done = [result for result in map(store.read, sources) if result]
        if len(done) == len(sources):
            return task.series, done
        segmenter = self._segmenter_for(task.series)
        return task.series, list(evaluate(segmenter, sources, store, surfaces=task.series.surfaces))

    def _segmenter_for(self, series: Series) -> Segmenter:
        if self._segmenter is None or self._segmenter[0] != series:
            self._segmenter = (series, self._load(series))
        return self._segmenter[1]

    def _load(self, series: Series) -> Segmenter:
        if not series.ours:
            return PEERS[series.name]()
        if self._engine is None or self._engine[0] != series.weights:
            self._engine = (series.weights, load_engine(series.weights, precision=series.precision))
        return CaseSegmenter(Predictor(self._engine[1], series.name))


_player = Player()
"""Of a process of the pool."""


def _begin(threads: int) -> None:
    import torch

    from GSMedSegLib.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)


def _play(task: Task) -> tuple[Series, list[CaseResult]]:
    return _player.play(task)
