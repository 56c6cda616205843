"""Labelled cases to train on: found, checked, split by patient, read when needed and kept for a while."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_source import CaseSource, Reading, find_sources
from GSMedSegLib.sharding import Ranks
from Training.config import Config, Source
from Training.volumes import LabelledVolume


@dataclass(frozen=True)
class Finding:
    """What a look at a case found.

    Attributes:
        name: of the case.
        state: of its files, as they were then.
        problem: why it cannot be trained on; empty when it can.
        labels: in it; none where nothing is labelled, which is no problem but no use either.
    """

    name: str
    state: list[list[object]]
    problem: str
    labels: list[int]


def check_cases(
    sources: Sequence[CaseSource], known: Path, seen: Callable[[CaseSource], None] = lambda source: None
) -> list[Finding]:
    """Read every case once; those that were looked at before, and did not change, are not read again.

    Args:
        sources: the cases.
        known: a file with what was found before; it is brought up to date.
        seen: called after each.

    Raises:
        OSError: that file cannot be written.
    """
    before = _read_findings(known)
    found = []
    for source in sources:
        state: list[list[object]] = [
            [str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] if f.exists() else [str(f), 0, 0]
            for f in source.files
        ]
        finding = before.get(source.name)
        if finding is None or finding.state != state:
            finding = _look(source, state)
        found.append(finding)
        seen(source)
    known.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(known) as temporary:
        Path(temporary).write_text(json.dumps([asdict(f) for f in found]), encoding="utf-8")
    return found


def _look(source: CaseSource, state: list[list[object]]) -> Finding:
    try:
        case = source.load().case
        if case.truth is None:
            raise ValueError("it has no labels")
        if case.image.min() == case.image.max():
            raise ValueError("its image is constant, there is nothing to see in it")
        labels = [int(v) for v in np.unique(case.truth) if v]
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return Finding(source.name, state, " ".join(str(error).split()) or type(error).__name__, [])
    return Finding(source.name, state, "", labels)


def _read_findings(known: Path) -> dict[str, Finding]:
    if not known.exists():
        return {}
    try:
        return {entry["name"]: Finding(**entry) for entry in json.loads(known.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError):
        return {}  # only a record of work that can be done again


def patient_of(source: CaseSource, pattern: str = "") -> str:
    """Whose case it is.

    Args:
        source: the case.
        pattern: a regular expression that finds the patient in the case's name: its first group, or all.

    Raises:
        ValueError: the pattern is not found in the name.
    """
    if not pattern:
        return source.patient
    found = re.search(pattern, source.name)
    if found is None:
        raise ValueError(
            f"the pattern {pattern!r} for the patient is not found in the case name {source.name!r}"
        )
    return found.group(1) if found.groups() else found.group()


def split_by_patient(
    sources: Iterable[CaseSource], share: float, seed: int, pattern: str = ""
) -> tuple[list[CaseSource], list[CaseSource]]:
    """Keep the cases of some patients for validation: always the same ones, whatever cases are added.

    Patients are taken in the order of a hash of seed and name.

    Args:
        sources: all cases.
        share: of the patients, rounded, but at least one and not all; 0 for none.
        seed: of the split.
        pattern: see `patient_of`.

    Returns:
        training cases and validation cases.

    Raises:
        ValueError: a share of a single patient.
    """
    by_patient: dict[str, list[CaseSource]] = {}
    for source in sources:
        by_patient.setdefault(patient_of(source, pattern), []).append(source)
    if share == 0:
        return [s for several in by_patient.values() for s in several], []
    if len(by_patient) < 2:
        raise ValueError(
            f"a split needs two patients, got {len(by_patient)}; give validation cases of their own as `path`"
        )
    count = min(max(1, math.floor(share * len(by_patient) + 0.5)), len(by_patient) - 1)
    order = sorted(by_patient, key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).digest())
    kept = set(order[:count])
    parts: tuple[list[CaseSource], list[CaseSource]] = ([], [])
    for patient, several in by_patient.items():
        parts[patient in kept].extend(several)
    return parts


@dataclass(frozen=True)
class Data:
    """The cases of a run.

    Attributes:
        training: every source, with its training cases if it has cases.
        validation: cases kept for validation.
    """

    training: list[tuple[Source, list[CaseSource]]]
    validation: list[CaseSource]

    @property
    def count(self) -> int:
        """Of all training cases."""
        return sum(len(cases) for _, cases in self.training)


def find_data(config: Config) -> Data:
    """The cases that the settings name, split by patient.

    Raises:
        ValueError: no data, none left to train on, or validation cases that are trained on.
        OSError: no such folder.
    """
    if not config.data:
        raise ValueError(
            "there is nothing to train on; give a folder of cases as --data, or sources in the file"
        )
    wanted, root = config.validation, Path(config.root)
    training: list[tuple[Source, list[CaseSource]]] = []
    validation: list[CaseSource] = []
    for source in config.data:
        cases: list[CaseSource] = []
        if source.kind == "cases":
            if len(source.window) not in (0, 2):
                raise ValueError(f"window: expected two grey values, got {list(source.window)}")
            window = (source.window[0], source.window[1]) if source.window else None
            found = find_sources(root / source.path, reading=Reading(window=window))
            share = 0.0 if wanted.path else wanted.share
            cases, kept = split_by_patient(found, share, config.seed, wanted.patient)
            if kept:
                names = {case.name for case in kept}
                limited = find_sources(
                    root / source.path, reading=Reading(wanted.limit_objects or None, window)
                )
                validation += [case for case in limited if case.name in names]
        training.append((source, cases))
    if wanted.path:
        validation = find_sources(root / wanted.path, reading=Reading(wanted.limit_objects or None))
    trained_on = {file.resolve() for _, cases in training for case in cases for file in case.files}
    both = [case.name for case in validation if trained_on.intersection(f.resolve() for f in case.files)]
    if both:
        raise ValueError(
            f"these cases are trained on and validated with: {', '.join(both[:5])}; take them out of one"
        )
    if wanted.limit_cases and len(validation) > wanted.limit_cases:
        step = len(validation) / wanted.limit_cases
        validation = [validation[int(n * step)] for n in range(wanted.limit_cases)]
    return Data(training, validation)


def look_at(data: Data, output: Path) -> list[Finding]:
    """What is in every case; those known from an earlier look are not read again."""
    cases = [case for _, several in data.training for case in several] + data.validation
    with tqdm(total=len(cases), unit="case", desc="checking", disable=None, file=sys.stderr) as bar:
        return check_cases(cases, output / "checked.json", lambda case: bar.update() and None)


def without_broken(data: Data, config: Config, ranks: Ranks) -> Data:
    """The cases that can be trained on; those without labels are left out of training, and nothing is lost.

    Raises:
        ValueError: a case is broken, and `skip_broken` is not set; or nothing is left.
    """
    findings = ranks.agree(look_at(data, Path(config.output)) if ranks.first else [])
    broken = {finding.name: finding.problem for finding in findings if finding.problem}
    if broken and not config.skip_broken:
        first = "; ".join(f"{name}: {problem}" for name, problem in list(broken.items())[:3])
        raise ValueError(
            f"{len(broken)} of {len(findings)} cases are broken ({first}); --check lists them all, "
            "--skip_broken true leaves them out"
        )
    useless = broken.keys() | {finding.name for finding in findings if not finding.labels}
    training = [
        (source, [case for case in cases if case.name not in useless]) for source, cases in data.training
    ]
    for source, cases in training:
        if source.kind == "cases" and not cases:
            raise ValueError(f"{source.path}: no case with labels is left to train on")
    return Data(training, [case for case in data.validation if case.name not in useless])


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
