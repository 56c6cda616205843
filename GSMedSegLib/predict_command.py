"""The command `gsmedseg predict`: challenge cases in, labels out."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from GSMedSegLib.console import FAILED, command, reason, say
from GSMedSegLib.engine_options import add_engine_options, load_predictor

if TYPE_CHECKING:
    from GSMedSegLib.batch import Outcome
    from GSMedSegLib.case_segmenter import CaseSegmenter
    from GSMedSegLib.engine import Engine
    from GSMedSegLib.pace import Effort, PacedSegmenter
    from GSMedSegLib.predictor import Predictor

STARTED = time.perf_counter()
"""About when the process began: a time limit counts what is loaded, too."""


def add_predict(commands: Any) -> None:
    """Declares the command."""
    parser = command(
        commands,
        "predict",
        _predict,
        "segment all challenge cases (.npz) of a folder from the clicks in them",
        "on several GPUs: torchrun --nproc_per_node=4 -m GSMedSegLib.cli predict INPUT_DIR OUTPUT_DIR",
    )
    parser.add_argument("input", type=Path, metavar="INPUT_DIR", help="folder with the cases")
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT_DIR",
        help="gets a file with segs, of the same name, for every case",
    )
    parser.add_argument("--save-nifti", action="store_true", help="write CASE.nii.gz too")
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="allowed per class for all six runs of a case; answers with less care rather than too late "
        "(the challenge's is 90; default: none)",
    )
    add_engine_options(parser, strategy="reference", precision="fp32")


def _predict(options: argparse.Namespace) -> int:
    from GSMedSegLib.atomic import check_target
    from GSMedSegLib.batch import find_cases
    from GSMedSegLib.sharding import join_ranks

    if options.time_limit is not None and not options.time_limit > 0:
        raise ValueError(f"--time-limit must be above 0 seconds, got {options.time_limit:g}")
    cases = find_cases(options.input)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.output.samefile(options.input):
        raise ValueError(
            f"{options.output} holds the cases, which the results would replace; choose another OUTPUT_DIR"
        )
    check_target(options.output / cases[0].name)
    with join_ranks() as ranks:
        mine = ranks.share(cases, [path.stat().st_size for path in cases])
        mine_done = _run(options, mine, quiet=not ranks.first)
        outcomes = [outcome for several in ranks.gather(mine_done) for outcome in several]
        turned = sum(outcome.spacing_reversed for outcome in outcomes)
        if turned and (options.strategy == "adaptive" or options.save_nifti):
            say(
                f"note: spacing is taken in SimpleITK's order, (x, y, z), where that fits the image better: "
                f"in {turned} of {len(cases)} cases"
            )
        failed = sorted(outcome.name for outcome in outcomes if outcome.error is not None)
        if failed:
            say(f"error: {len(failed)} of {len(cases)} cases failed: {', '.join(failed)}")
        return FAILED if ranks.agree(bool(failed)) else 0


def _run(options: argparse.Namespace, cases: list[Path], quiet: bool) -> list[Outcome]:
    """Segments cases, telling of each; returns what became of them."""
    from tqdm import tqdm

    from GSMedSegLib.batch import SUFFIX, predict_cases

    if not cases:
        return []
    segmenter = _segmenter(options)
    older = {case.name: _written_ns(options.output / case.name) for case in cases}
    done = []
    with tqdm(total=len(cases), unit="case", file=sys.stderr, disable=True if quiet else None) as bar:
        outcomes = predict_cases(
            segmenter,
            cases,
            options.output,
            save_nifti=options.save_nifti,
            started=lambda path: bar.set_postfix_str(path.name),
        )
        for outcome in outcomes:
            done.append(outcome)
            if outcome.error is None:
                bar.write(
                    f"{outcome.name}: {outcome.classes} {'class' if outcome.classes == 1 else 'classes'}",
                    file=sys.stdout,
                )
            else:
                there = options.output / f"{outcome.name}{SUFFIX}"
                before = older[there.name]
                is_old = before is not None and _written_ns(there) == before
                note = f"; {there} is of an earlier run" if is_old else ""
                bar.write(f"gsmedseg: error: {outcome.name}: {reason(outcome.error)}{note}", file=sys.stderr)
            for number in outcome.empty:
                why = "came out empty"
                if number in outcome.unclicked:
                    why = "has no foreground click and stays empty"
                    if options.strategy == "reference":
                        why += " (a box alone is enough with --strategy adaptive)"
                bar.write(f"gsmedseg: warning: {outcome.name}: class {number} {why}", file=sys.stderr)
            for warning in outcome.warnings:
                bar.write(f"gsmedseg: warning: {outcome.name}: {warning}", file=sys.stderr)
            bar.update()
    return done


def _written_ns(result: Path) -> int | None:
    """When a result was written; None where there is none."""
    try:
        return result.stat().st_mtime_ns
    except OSError:
        return None


def _segmenter(options: argparse.Namespace) -> CaseSegmenter | PacedSegmenter:
    from GSMedSegLib.case_segmenter import CaseSegmenter
    from GSMedSegLib.pace import PacedSegmenter

    predictor = load_predictor(options)
    if options.time_limit is None:
        return CaseSegmenter(predictor)
    spent_s = time.perf_counter() - STARTED
    return PacedSegmenter(_efforts(options, predictor), options.time_limit, predictor.further_click, spent_s)


def _efforts(options: argparse.Namespace, predictor: Predictor) -> list[Effort]:
    """What can be done with less and less care: bfloat16, then half and quarter resolution."""
    import torch

    from GSMedSegLib.case_segmenter import CaseSegmenter
    from GSMedSegLib.engine import has_bf16
    from GSMedSegLib.pace import Effort
    from GSMedSegLib.predictor import REFERENCE_ROI, Predictor, load_engine

    given = predictor.engine
    rounds = given.precision == torch.float32 and has_bf16(given.device)

    @functools.cache
    def quick() -> Engine:
        return load_engine(options.weights, str(given.device), "bf16") if rounds else given

    def coarse(shrink: int, roi: int | None) -> CaseSegmenter:
        return CaseSegmenter(Predictor(quick(), options.strategy, roi), shrink)

    efforts = [Effort("full care", lambda: CaseSegmenter(predictor))]
    if rounds:
        efforts.append(Effort("bfloat16", lambda: coarse(1, options.roi)))
    for shrink, name in ((2, "half resolution"), (4, "quarter resolution")):
        roi = options.roi
        if options.strategy == "reference":  # its windows keep their size in millimetres
            roi = (options.roi or REFERENCE_ROI) // shrink
            if roi % given.shape.stride:
                break
        efforts.append(Effort(name, functools.partial(coarse, shrink, roi)))
    return efforts
