"""Labelled cases to train on: found, checked, split by patient, read when needed and kept for a while."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_source import SMALLEST_OBJECT, CaseSource, Reading, find_sources
from GSMedSegLib.sharding import Ranks
from Training.checkpoints import seen_before
from Training.config import Config, Source, Validation
from Training.seen import Trace, patient_of, seen_among, trace_of
from Training.volumes import MIN_VOXELS, LabelledVolume


@dataclass(frozen=True)
class Finding:
    """What a look at a case found.

    Attributes:
        name: of the case.
        state: of its files, as they were then, and how they were read.
        problem: why it cannot be trained on; empty when it can.
        labels: that have a piece of at least `MIN_VOXELS` voxels; a case without any is no problem, but of no
            use.
        passing: whether the problem may be over the next time, as with a share that is away.
    """

    name: str
    state: list[list[object]]
    problem: str
    labels: list[int]
    passing: bool = False


def check_cases(
    sources: Sequence[CaseSource], known: Path, seen: Callable[[CaseSource], None] = lambda source: None
) -> list[Finding]:
    """Read every case once; those that were looked at before, and did not change, are not read again.

    Args:
        sources: the cases.
        known: a file with what was found before; it is brought up to date, also when this is broken off.
        seen: called after each.

    Returns:
        a finding for each case, in order.

    Raises:
        OSError: that file cannot be written.
    """
    record = {json.dumps(finding.state): finding for finding in _read_findings(known)}
    found: list[Finding] = []
    known.parent.mkdir(parents=True, exist_ok=True)
    try:
        for source in sources:
            state: list[list[object]] = [
                [str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] if f.exists() else [str(f), 0, 0]
                for f in source.files
            ] + [[source.reading]]
            key = json.dumps(state)
            record[key] = record.get(key) or _look(source, state)
            found.append(record[key])
            seen(source)
    finally:  # broken off, too: what was not come to yet is still known from before
        kept = [asdict(finding) for finding in record.values() if not finding.passing]
        with atomic_path(known) as temporary:
            Path(temporary).write_text(json.dumps(kept), encoding="utf-8")
    return found


def _look(source: CaseSource, state: list[list[object]]) -> Finding:
    try:
        case = source.load().case
        if case.truth is None:
            raise ValueError("it has no labels")
        if case.image.min() == case.image.max():
            raise ValueError("its image is constant, there is nothing to see in it")
        pieces = LabelledVolume(case.truth, case.spacing_kji_mm, None).pieces
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        passing = isinstance(error, (OSError, MemoryError))
        return Finding(source.name, state, " ".join(str(error).split()) or type(error).__name__, [], passing)
    return Finding(source.name, state, "", sorted({piece.label for piece in pieces}))


def _read_findings(known: Path) -> list[Finding]:
    if not known.exists():
        return []
    try:
        return [Finding(**entry) for entry in json.loads(known.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        return []  # only a record of work that can be done again


def choose_patients(
    patients: Iterable[str], share: float, seed: int, seen: Collection[str] = frozenset()
) -> set[str]:
    """Those whose cases are kept for validation: the first of all patients in the order of a hash.

    The same patients are chosen from the same patients; others, when patients are added.

    Args:
        patients: of all sources together, for one may have cases in several.
        share: of the patients that were not seen, rounded, but at least one, and not all if there are two; 0
            for none.
        seed: of the order.
        seen: patients that the weights were trained on already: never chosen.

    Raises:
        ValueError: a share of a single patient, or all were seen.
    """
    everyone = set(patients)
    if share == 0:
        return set()
    if len(everyone) < 2:
        raise ValueError(
            f"a split needs two patients, got {len(everyone)}; give validation cases of their own as `path`, "
            "or share 0 to do without"
        )
    unseen = everyone.difference(seen)
    if not unseen:
        raise ValueError(
            "the weights to start from were trained on all these patients, by their names or their images; "
            "none is left to validate with: give others as `path`, a `patient` pattern that tells people of "
            "the same name apart, or share 0 to do without"
        )
    count = min(max(1, math.floor(share * len(unseen) + 0.5)), max(1, len(unseen) - 1))
    order = sorted(unseen, key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).digest())
    return set(order[:count])


@dataclass(frozen=True)
class Data:
    """The cases of a run.

    Attributes:
        training: every source, with its training cases if it has cases.
        validation: cases kept for validation.
        before: what the weights to start from were trained on.
        left_out: how many patients of these cases are never chosen for validation because of that.
    """

    training: list[tuple[Source, list[CaseSource]]]
    validation: list[CaseSource]
    before: frozenset[Trace] = frozenset()
    left_out: int = 0

    @property
    def count(self) -> int:
        """Of all training cases."""
        return sum(len(cases) for _, cases in self.training)


def find_data(config: Config, ranks: Ranks | None = None) -> Data:
    """The cases that the settings name, split by patient.

    Args:
        config: of the run.
        ranks: the processes that train together; the first decides on the split. This one alone by default.

    Raises:
        ValueError: no data, none left to train on, or validation cases that are trained on or were by the run
            whose weights this one starts from.
        OSError: no such folder.
    """
    if not config.data:
        raise ValueError(
            "there is nothing to train on; give a folder of cases as --data, or sources in the file"
        )
    wanted, ranks = config.validation, ranks or Ranks()
    found = {
        source: find_sources(Path(config.root) / source.path, reading=_reading(source))
        for source in config.data
        if source.kind == "cases"
    }
    before = seen_before(config.output, config.init)
    everything = [case for cases in found.values() for case in cases]
    patients = [patient_of(case, wanted.patient) for case in everything]
    known = seen_among(everything, wanted.patient, before) if ranks.first else []
    seen = ranks.agree({patient_of(case, wanted.patient) for case in known})
    share = 0.0 if wanted.path else wanted.share
    kept = choose_patients(patients, share, config.seed, seen)
    training: list[tuple[Source, list[CaseSource]]] = []
    validation: list[CaseSource] = []
    for source in config.data:
        cases = found.get(source, [])
        held_back = {case.name for case in cases if patient_of(case, wanted.patient) in kept}
        training.append((source, [case for case in cases if case.name not in held_back]))
        if held_back:
            limited = find_sources(
                Path(config.root) / source.path, reading=_reading(source, wanted.limit_objects)
            )
            validation += [case for case in limited if case.name in held_back]
        if source.kind == "cases" and not training[-1][1]:
            raise ValueError(
                f"{source.path}: all its patients are kept for validation, none is left to train on"
                + ("; the weights to start from know those of the other sources" if seen else "")
                + "; give validation cases of their own as `path`, or share 0 to do without"
            )
    if wanted.path:
        validation = find_sources(
            Path(config.root) / wanted.path, reading=Reading(wanted.limit_objects or None, window_of(config))
        )
    problem = ranks.agree(_in_both(training, validation, before, wanted) if ranks.first else "")
    if problem:
        raise ValueError(problem)
    if wanted.limit_cases and len(validation) > wanted.limit_cases:
        step = len(validation) / wanted.limit_cases
        validation = [validation[int(n * step)] for n in range(wanted.limit_cases)]
    return Data(training, validation, before, len(seen) if share else 0)


def _in_both(
    training: Iterable[tuple[Source, list[CaseSource]]],
    validation: Sequence[CaseSource],
    before: Collection[Trace],
    wanted: Validation,
) -> str:
    """What is wrong where cases to validate with, or copies of them, are trained on now or were before.

    Args:
        training: the cases of every source.
        validation: the cases to validate with.
        before: what the weights to start from were trained on.
        wanted: the settings.
    """
    if not validation:
        return ""
    pattern = "" if wanted.path else wanted.patient
    now = [trace_of(case, pattern) for _, cases in training for case in cases]
    if both := [case.name for case in seen_among(validation, pattern, now)]:
        return (
            "these cases, copies of them or others of their patients, are trained on and validated with: "
            f"{', '.join(both[:5])}; take them out of one"
        )
    if earlier := [case.name for case in seen_among(validation, pattern, before)]:
        return (
            f"the weights to start from were trained on cases of {wanted.path}, or others of their patients: "
            f"{', '.join(earlier[:5])}; give others to validate with"
        )
    return ""


def window_of(config: Config) -> tuple[float, float] | None:
    """The grey values that become 0 and 255 in all sources of cases; None where they do not share them."""
    windows = {_window(source) for source in config.data if source.kind == "cases"}
    return windows.pop() if len(windows) == 1 else None


def _reading(source: Source, objects: int = 0) -> Reading:
    """How a source's cases are read, with at most so many objects; 0 for all."""
    return Reading(objects or None, _window(source))


def _window(source: Source) -> tuple[float, float] | None:
    if len(source.window) not in (0, 2):
        raise ValueError(f"window: expected two grey values, got {list(source.window)}")
    return (source.window[0], source.window[1]) if source.window else None


def look_at(data: Data, output: Path) -> list[Finding]:
    """What is in every case; those known from an earlier look are not read again."""
    cases = [case for _, several in data.training for case in several] + data.validation
    with tqdm(total=len(cases), unit="case", desc="checking", disable=None, file=sys.stderr) as bar:
        return check_cases(cases, output / "checked.json", lambda case: bar.update() and None)


def without_broken(data: Data, config: Config, ranks: Ranks) -> Data:
    """The cases that can be used; what is left out, and why, is told.

    Raises:
        ValueError: a case is broken, and `skip_broken` is not set; or nothing is left.
    """
    findings = ranks.agree(look_at(data, Path(config.output)) if ranks.first else [])
    broken = [finding for finding in findings if finding.problem]
    if broken and not config.skip_broken:
        first = "; ".join(f"{finding.name}: {finding.problem}" for finding in broken[:3])
        raise ValueError(
            f"{len(broken)} of {len(findings)} cases are broken ({first}); --check lists them all, "
            "--skip_broken true leaves them out"
        )
    found = iter(findings)  # in the order in which `look_at` takes the cases

    def usable(cases: list[CaseSource], too_small: str) -> list[CaseSource]:
        kept = []
        for case in cases:
            finding = next(found)
            if not finding.problem and finding.labels:
                kept.append(case)
            elif ranks.first:
                print(f"left out: {case.name}: {finding.problem or too_small}", file=sys.stderr)
        return kept

    too_small = f"no label has {MIN_VOXELS} voxels in one piece"
    training = [(source, usable(cases, too_small)) for source, cases in data.training]
    for source, cases in training:
        if source.kind == "cases" and not cases:
            raise ValueError(f"{source.path}: no case with labels is left to train on")
    if config.validation.limit_objects:
        too_small = f"no label has {SMALLEST_OBJECT} voxels; limit_objects 0 takes smaller ones"
    validation = usable(data.validation, too_small)
    if data.validation and not validation:
        raise ValueError(
            "of the cases to validate with none is left; give others as `path`, or limit_objects 0 "
            "where their objects are small"
        )
    return replace(data, training=training, validation=validation)


class CaseCache:
    """Volumes read when they are asked for; the least recently used go when they take too many bytes.

    Args:
        loaders: one for each volume; they may be called again.
        budget_bytes: the latest volume is kept even when it is larger.
    """

    def __init__(self, loaders: Sequence[Callable[[], LabelledVolume]], budget_bytes: int) -> None:
        self._loaders = list(loaders)
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[int, LabelledVolume] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loaders)

    def __getitem__(self, index: int) -> LabelledVolume:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        volume = self._loaders[index]()
        self._kept[index] = volume
        while len(self._kept) > 1 and sum(v.nbytes for v in self._kept.values()) > self._budget_bytes:
            self._kept.popitem(last=False)
        return volume

    @property
    def kept(self) -> Iterator[int]:
        """The volumes in memory, least recently used first."""
        return iter(self._kept)
