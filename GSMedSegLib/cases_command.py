"""The command `gsmedseg make-cases`, and the options of all that read labelled data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from GSMedSegLib.console import FAILED, command, reason, say

if TYPE_CHECKING:
    from GSMedSegLib.case_source import CaseSource


def add_make_cases(commands: Any) -> None:
    """Declares the command."""
    parser = command(
        commands,
        "make-cases",
        _make_cases,
        "write challenge cases (.npz) with boxes from labelled volumes",
        "example: gsmedseg make-cases my-data cases --window=-160,240",
    )
    add_source_options(parser)
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT_DIR", help="gets CASE.npz, classes.json, modalities.json"
    )
    parser.add_argument("--no-boxes", action="store_true", help="as for vessels and other thin structures")
    parser.add_argument(
        "--split-truth",
        action="store_true",
        help="write the truth to OUTPUT_DIR/gts and the rest to OUTPUT_DIR/imgs, as validation data has it",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Declares where labelled cases are and how they are read."""
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="folder with challenge cases (.npz), with CASE/image and CASE/label files, or with images and "
        "labels folders; or a .txt file that lists such",
    )
    parser.add_argument("--truth", type=Path, metavar="DIR", help="where challenge cases have their gts")
    parser.add_argument("--modality", default="", help="of all cases (default: as their names say)")
    parser.add_argument(
        "--objects",
        type=int,
        metavar="N",
        help="at most N objects of 100 voxels or more per case, evenly spaced by size",
    )
    parser.add_argument(
        "--window",
        type=_window,
        metavar="LOW,HIGH",
        help="grey values that become 0 and 255 (default: the percentiles 0.5 and 99.5; for evaluate, what "
        "the weights were trained in, if they name it)",
    )


def find_sources_of(options: argparse.Namespace) -> list[CaseSource]:
    """The cases that the options name.

    Raises:
        ValueError: no case, or labels and images that do not belong together.
        OSError: no such folder.
    """
    from GSMedSegLib.case_source import Reading, find_sources

    reading = Reading(options.objects, options.window)
    return find_sources(options.data, truth=options.truth, modality=options.modality, reading=reading)


def check_apart(output: Path, data: Path) -> None:
    """Raises ValueError when results would go into the folder that the data is in."""
    if output.exists() and output.samefile(data):
        raise ValueError(f"{output} holds the data itself; choose another folder for the results")


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers LOW,HIGH, got {text!r}") from None
    return low, high


def _make_cases(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from GSMedSegLib.case_source import (
        CLASS_NAMES,
        MODALITY_NAMES,
        UNKNOWN,
        modality_in,
        read_class_names,
        read_modalities,
    )

    sources = find_sources_of(options)
    check_apart(options.output, options.data)
    read = {file.resolve() for source in sources for file in source.files}
    for target in (target for source in sources for target in _targets(source, options)):
        if target.resolve() in read:
            raise ValueError(f"{target} is one of the files to be read; choose another OUTPUT_DIR")
    options.output.mkdir(parents=True, exist_ok=True)
    named = options.output / "imgs" if options.split_truth else options.output
    named.mkdir(exist_ok=True)
    failed, written = [], 0
    classes, modalities = read_class_names(named), read_modalities(named)  # cases made before keep theirs
    try:
        with tqdm(sources, unit="case", file=sys.stderr, disable=None) as bar:
            for source in bar:
                try:
                    classes[source.name] = list(_write(source, options))
                    written += 1
                    if source.modality not in (UNKNOWN, modality_in(source.name)):
                        modalities[source.name] = source.modality
                    else:
                        modalities.pop(source.name, None)
                except (ValueError, OSError, MemoryError) as error:
                    failed.append(source.name)
                    bar.write(f"gsmedseg: error: {source.name}: {reason(error)}", file=sys.stderr)
    finally:  # broken off, too: the cases that are there keep their names
        if written:
            _write_names(named / CLASS_NAMES, classes)
        if modalities or (named / MODALITY_NAMES).exists():
            _write_names(named / MODALITY_NAMES, modalities)
    print(f"{written} {'case' if written == 1 else 'cases'} in {options.output}")
    if failed:
        say(f"error: {len(failed)} of {len(sources)} cases failed: {', '.join(failed)}")
    return FAILED if failed else 0


def _write_names(file: Path, names: Mapping[str, Any]) -> None:
    from GSMedSegLib.atomic import atomic_path

    with atomic_path(file) as temporary:
        text = json.dumps(names, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _targets(source: CaseSource, options: argparse.Namespace) -> list[Path]:
    """The file of a case, and that of its truth where it is to be apart."""
    folders = [options.output]
    if options.split_truth:
        folders = [options.output / "imgs", options.output / "gts"]
    return [folder / f"{source.name}.npz" for folder in folders]


def _write(source: CaseSource, options: argparse.Namespace) -> tuple[str, ...]:
    """Writes a case; returns the names of its classes."""
    from dataclasses import replace

    from GSMedSegLib.case_source import with_boxes
    from GSMedSegLib.challenge import numbered_truth
    from GSMedSegLib.npz import write_case, write_truth

    labelled = source.load()
    truth, labels = numbered_truth(labelled.case)
    case = replace(labelled.case, truth=truth, clicks=None, prev_pred=None)
    if options.no_boxes:
        case = replace(case, boxes=None)
    elif case.boxes is None:
        case = with_boxes(case)
    target, *apart = _targets(source, options)
    for file in apart:
        file.parent.mkdir(exist_ok=True)
        write_truth(file, truth)
        case = replace(case, truth=None)
    write_case(target, case)
    return labelled.classes or tuple(str(label) for label in labels)
