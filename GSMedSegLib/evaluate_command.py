"""The command `gsmedseg evaluate`: the challenge's protocol on labelled data, and a report."""

from __future__ import annotations

import argparse
import datetime
import io
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from GSMedSegLib import __version__
from GSMedSegLib.cases_command import add_source_options, check_apart, find_sources_of
from GSMedSegLib.console import FAILED, command, say
from GSMedSegLib.engine_options import add_engine_options, load_predictor

if TYPE_CHECKING:
    from GSMedSegLib.case_source import CaseSource
    from GSMedSegLib.challenge import CaseResult, Played, Segmenter
    from GSMedSegLib.evaluation import ResultStore
    from GSMedSegLib.sharding import Ranks

CONTAINER = "container:"

PEER_NAMES = ("region-growing", "geodesic", "watershed", "grow-from-seeds", "random-walker")
"""Of `peers.PEERS`, whose libraries take a while to import."""


def add_evaluate(commands: Any) -> None:
    """Declares the command."""
    parser = command(
        commands,
        "evaluate",
        _evaluate,
        "score an engine on labelled data by the challenge's protocol: a box, then five clicks per class",
        "examples: gsmedseg evaluate cases -o report; "
        'gsmedseg evaluate cases -o theirs --engine "container:docker container run --rm '
        '-v {inputs}:/workspace/inputs/ -v {outputs}:/workspace/outputs/ team:latest sh predict.sh"',
    )
    add_source_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="REPORT", help="folder for the report"
    )
    parser.add_argument(
        "--engine",
        default="gsmedseg",
        metavar="NAME",
        help="gsmedseg; container:COMMAND for any challenge container or script; or a simple method to "
        f"compare with: {', '.join(PEER_NAMES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--run-timeout",
        type=float,
        metavar="SECONDS",
        help="end a run of container:COMMAND after so long; it counts as failed (default: never)",
    )
    parser.add_argument(
        "--save-masks", action="store_true", help="keep the last labels of every case in REPORT/masks"
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave the images out of the report, to pass it on"
    )
    add_engine_options(parser, strategy="adaptive", precision="auto")


def _evaluate(options: argparse.Namespace) -> int:
    from GSMedSegLib.case_segmenter import CaseSegmenter
    from GSMedSegLib.evaluation import ResultStore, differences
    from GSMedSegLib.report import check_report_tools
    from GSMedSegLib.sharding import join_ranks

    check_report_tools()
    sources = find_sources_of(options)
    check_apart(options.output, options.data)
    options.output.mkdir(parents=True, exist_ok=True)
    with join_ranks() as ranks:
        segmenter, own = _segmenter(options)
        if options.window is None and isinstance(segmenter, CaseSegmenter) and segmenter.window:
            options.window = segmenter.window  # that its weights were trained in
            sources = find_sources_of(options)
        settings = {**_settings(options), **own}
        if different := differences(ranks.agree(settings), settings):
            raise ValueError(f"this process would not evaluate as the first one does: {different}")
        store = ResultStore(options.output, settings)
        mine = ranks.share(sources, [source.nbytes for source in sources])
        results = _run(segmenter, mine, store, options, quiet=not ranks.first)
        failed = _conclude(options, settings, sources, results, store, ranks)
        return FAILED if ranks.agree(failed) else 0


def _segmenter(options: argparse.Namespace) -> tuple[Segmenter, dict[str, str]]:
    """The engine, and what decides on its answers that the options alone do not say."""
    from GSMedSegLib.case_segmenter import CaseSegmenter
    from GSMedSegLib.container import ContainerSegmenter

    name: str = options.engine
    if name == "gsmedseg":
        predictor = load_predictor(options)
        device, dtype = predictor.engine.device.type, predictor.engine.precision
        return CaseSegmenter(predictor), {"device": device, "precision": str(dtype).removeprefix("torch.")}
    if name.startswith(CONTAINER):
        container = ContainerSegmenter(name.removeprefix(CONTAINER), options.run_timeout)
        return container, container.settings()
    if name in PEER_NAMES:
        from GSMedSegLib.peers import PEERS

        return PEERS[name](), {}
    raise ValueError(
        f"there is no engine {name!r}; expected gsmedseg, container:COMMAND or one of {', '.join(PEER_NAMES)}"
    )


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """What the options say that decides on the results; a folder has those of one such set."""
    from GSMedSegLib.checkpoint import sha256_of
    from GSMedSegLib.model_store import resolve

    settings = {"engine": options.engine, "version": __version__}
    names = ["modality", "objects", "window", "truth"]
    if options.engine == "gsmedseg":
        names += ["weights", "strategy", "roi"]
        settings["weights SHA-256"] = sha256_of(resolve(options.weights))  # a file trained on keeps its name
    for name in names:
        value = getattr(options, name)
        if value is not None and value != "":
            settings[name] = str(value)
    return settings


def _run(
    segmenter: Segmenter,
    sources: list[CaseSource],
    store: ResultStore,
    options: argparse.Namespace,
    quiet: bool,
) -> list[CaseResult]:
    from tqdm import tqdm

    from GSMedSegLib.evaluation import evaluate
    from GSMedSegLib.report import case_picture

    def draw(played: Played) -> bytes:
        png = io.BytesIO()
        case_picture(played.case, classes=played.result.classes).save(png, "PNG")
        return png.getvalue()

    results = []
    with tqdm(total=len(sources), unit="case", file=sys.stderr, disable=True if quiet else None) as bar:
        for result in evaluate(
            segmenter,
            sources,
            store,
            draw=None if options.no_pictures else draw,
            keep_masks=options.save_masks,
            round_done=lambda source, number: bar.set_postfix_str(f"{source.name}, round {number}"),
        ):
            results.append(result)
            for error in result.errors:
                bar.write(f"gsmedseg: error: {result.name}: {' '.join(error.split())}", file=sys.stderr)
            bar.update()
    return results


def _conclude(
    options: argparse.Namespace,
    settings: dict[str, str],
    sources: list[CaseSource],
    results: list[CaseResult],
    store: ResultStore,
    ranks: Ranks,
) -> bool:
    """Puts the results of all processes together, in rank 0; returns whether any case failed."""
    pictures = {r.name: store.picture(r.name) for r in results}
    drawn = {name: path.read_bytes() for name, path in pictures.items() if path.exists()}
    gathered = ranks.gather((results, drawn if ranks.rank else {}))
    if not ranks.first:
        return False
    found = {result.name: result for several, _ in gathered for result in several}
    by_name = {source.name: source for source in sources}
    for several, theirs in gathered[1:]:  # their folder may be on another machine
        for result in several:
            store.write(by_name[result.name], result, theirs.get(result.name))
    from GSMedSegLib.report import write_report

    ordered = [found[source.name] for source in sources]
    shown = {name: store.picture(name) for name in found if store.picture(name).exists()}
    if options.no_pictures:
        shown = {}
    started_anew = options.engine.startswith(CONTAINER)
    write_report(options.output, ordered, {**settings, **_facts(ranks)}, shown, started_anew=started_anew)
    failed = [result.name for result in ordered if result.errors]
    mean = sum(result.dice_auc for result in ordered) / len(ordered)
    cases = "1 case" if len(ordered) == 1 else f"{len(ordered)} cases"
    print(f"{cases}, DSC_AUC {mean:.3f}; see {options.output / 'report.html'}")
    if failed:
        say(f"error: {len(failed)} of {len(ordered)} cases failed: {', '.join(failed)}")
    return bool(failed)


def _facts(ranks: Ranks) -> dict[str, str]:
    """Where and when."""
    import monai
    import torch

    return {
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "processes": str(ranks.size),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"MONAI {monai.__version__}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
