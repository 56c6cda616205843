"""The challenge's protocol on cases that were not trained on, and what it says before and after."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.case_segmenter import CaseSegmenter
from GSMedSegLib.case_source import CaseSource
from GSMedSegLib.challenge import CaseResult, failed_case, play
from GSMedSegLib.engine import Engine
from GSMedSegLib.metrics import auc
from GSMedSegLib.network import Network
from GSMedSegLib.predictor import Predictor
from GSMedSegLib.sharding import Ranks
from Training.config import Config


def validate(
    network: Network,
    sources: Sequence[CaseSource],
    config: Config,
    metadata: Mapping[str, str],
    device: str,
    ranks: Ranks,
    *,
    surfaces: bool = False,
    done: Callable[[CaseSource], None] = lambda source: None,
) -> dict[str, Any]:
    """Play every case, the cases shared out over the processes.

    Args:
        network: left as it is.
        sources: the cases.
        config: of the run.
        metadata: what the weights say about themselves.
        device: to run on.
        ranks: the processes; all of them get the answer.
        surfaces: score surfaces too, which takes longer.
        done: called after each case of this process.

    Returns:
        "dice" and "nsd": means over the cases after clicks 1 to 5; "dsc_auc" and "nsd_auc"; "cases": the
        DSC_AUC of each; "failed": why cases that failed did. nsd is 0 where surfaces are not scored.
    """
    engine = Engine(copy.deepcopy(network), device, "auto", metadata=metadata)
    roi = config.sampling.roi if config.validation.strategy == "adaptive" else None
    segmenter = CaseSegmenter(Predictor(engine, config.validation.strategy, roi))
    results = []
    for source in ranks.share(sources, [s.nbytes for s in sources]):
        results.append(_play(segmenter, source, surfaces))
        done(source)
    gathered = [result for several in ranks.gather(results) for result in several]
    curve = summary(gathered) if ranks.first else {}
    return ranks.agree(curve)


def _play(segmenter: CaseSegmenter, source: CaseSource, surfaces: bool) -> CaseResult:
    try:
        return play(segmenter, source.load().case, modality=source.modality, surfaces=surfaces).result
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return failed_case(source.name, source.modality, (), False, str(error) or type(error).__name__)


def summary(results: Sequence[CaseResult]) -> dict[str, Any]:
    """The means of some results; see `validate`."""
    ordered = sorted(results, key=lambda result: result.name)
    dices = np.array([[r.mean_dice for r in result.click_rounds] for result in ordered])
    surfaces = np.array([[r.mean_surface_dice for r in result.click_rounds] for result in ordered])
    dice, nsd = (values.mean(0).tolist() for values in (dices, surfaces))
    return {
        "dice": dice,
        "nsd": nsd,
        "dsc_auc": auc(dice),
        "nsd_auc": auc(nsd),
        "cases": {result.name: result.dice_auc for result in ordered},
        "failed": {result.name: "; ".join(result.errors) for result in ordered if result.errors},
    }


def table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Both as a Markdown table."""
    head = "| | DSC_AUC | NSD_AUC | Dice 1 | 2 | 3 | 4 | 5 |\n" + "| --- " * 8 + "|\n"
    rows = []
    for name, curve in (("before", before), ("after", after)):
        figures = [curve["dsc_auc"], curve["nsd_auc"], *curve["dice"]]
        rows.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in figures) + " |\n")
    return head + "".join(rows)


def draw_curves(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """A picture of Dice and surface Dice against the clicks, before and after training, as PNG.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 2), ("dice", "nsd"), ("Dice", "Surface Dice, 2 mm")):
        for curve, label, style in ((before, "before", "o--"), (after, "after", "o-")):
            axes.plot(range(1, 1 + len(curve[key])), curve[key], style, label=label)
        axes.set(title=title, xlabel="clicks", ylim=(0, 1), xticks=range(1, 6))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(png.getvalue())
