"""What was trained on: remembered with the weights, so that it validates none that start from them."""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from GSMedSegLib.case_source import CaseSource

_HEADERS = (".mhd", ".nhdr")
"""Without the image, which is in another file."""
_PIECES, _PIECE_BYTES = 9, 1 << 14
"""Of an image's file so many, evenly spaced from its beginning to its end, tell it from others."""


class Trace(NamedTuple):
    """A case that was trained on.

    Attributes:
        name: of the case; other people's cases may have the same.
        digest: of its image, wherever that is and whatever labels go with it; empty where nothing is known.
        files: where they were.
        patient: whose it was; empty where nobody had said.
    """

    name: str
    digest: str
    files: tuple[str, ...]
    patient: str


def patient_of(source: CaseSource, pattern: str = "") -> str:
    """Whose case it is.

    Args:
        source: the case.
        pattern: a regular expression that finds the patient in the case's name: its first group, or all.

    Raises:
        ValueError: the pattern is none, or not found in the name.
    """
    if not pattern:
        return source.patient
    found = _found(pattern, source.name)
    if found is None:
        raise ValueError(
            f"the pattern {pattern!r} for the patient is not found in the case name {source.name!r}"
        )
    return found


def trace_of(source: CaseSource, pattern: str = "") -> Trace:
    """What is to be remembered of a case that is trained on; `pattern` as in `patient_of`."""
    patient = patient_of(source, pattern) if _is_known(source, pattern) else ""
    return Trace(source.name, _digest(source), _files(source), patient)


def seen_among(sources: Iterable[CaseSource], pattern: str, traces: Collection[Trace]) -> list[CaseSource]:
    """The cases that were trained on, or others of whose patients were.

    Args:
        sources: the cases.
        pattern: as in `patient_of`; it may find patients in the names of earlier cases, too.
        traces: of what was trained on.
    """
    if not traces:
        return []
    files = {file for trace in traces for file in trace.files}
    digests = {trace.digest for trace in traces if trace.digest}
    patients = {trace.patient for trace in traces if trace.patient}
    if pattern:
        patients |= {found for trace in traces if (found := _found(pattern, trace.name)) is not None}
    return [
        source
        for source in sources
        if files.intersection(_files(source))
        or _digest(source) in digests
        or (_is_known(source, pattern) and patient_of(source, pattern) in patients)
    ]


def _is_known(source: CaseSource, pattern: str) -> bool:
    """Whether somebody said whose case it is."""
    return bool(pattern) or source.patient != source.name


def _files(source: CaseSource) -> tuple[str, ...]:
    return tuple(str(file.resolve()) for file in source.files)


def _digest(source: CaseSource) -> str:
    image = source.files[0]  # its labels may have been corrected
    try:
        state = image.stat()
        return _digest_of(image, state.st_size, state.st_mtime_ns)
    except (OSError, KeyError, zipfile.BadZipFile):  # the look at the cases tells it
        return ""


@functools.cache
def _digest_of(image: Path, nbytes: int, changed_ns: int) -> str:
    """Of an image in this state: the checksum that a challenge file has of it, else pieces of the file.

    Raises:
        OSError, BadZipFile, KeyError: it cannot be read, or is no such file.
    """
    if image.suffix.lower() == ".npz":
        with zipfile.ZipFile(image) as archive:
            member = archive.getinfo("imgs.npy")
        return f"{member.CRC:08x} {member.file_size}"
    if image.suffix.lower() in _HEADERS:
        return ""
    digest = hashlib.sha256(str(nbytes).encode())
    with image.open("rb") as stream:
        for n in range(_PIECES):
            stream.seek(n * max(0, nbytes - _PIECE_BYTES) // (_PIECES - 1))
            digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()


def _found(pattern: str, name: str) -> str | None:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} for the patient is not one: {error}") from error
    if found is None:
        return None
    return found.group(1) if found.groups() else found.group()
