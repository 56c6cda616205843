"""The options of every command that runs a network, and what they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from GSMedSegLib.predictor import Predictor


def add_engine_options(parser: argparse.ArgumentParser, strategy: str, precision: str) -> None:
    """Declares them.

    Args:
        parser: of the command.
        strategy: the default one.
        precision: the default one.
    """
    add = add_weights_options(parser, precision).add_argument
    add(
        "--strategy",
        default=strategy,
        choices=("adaptive", "reference"),
        help="views that follow the object, or the windows of GS_MedSegFM (default: %(default)s)",
    )
    add(
        "--roi",
        type=int,
        metavar="N",
        help="voxels per side that the network sees at once (default: as trained)",
    )


def add_weights_options(parser: argparse.ArgumentParser, precision: str = "auto") -> Any:
    """Declares those about the network; returns their group.

    Args:
        parser: of the command.
        precision: the default one.
    """
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add(
        "--weights",
        default="compact",
        metavar="NAME|FILE",
        help="see gsmedseg weights list (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--precision",
        default=precision,
        choices=("auto", "fp32", "bf16", "fp16"),
        help="(default: %(default)s)",
    )
    return group


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Declares those of a command whose engine goes on for hours."""
    add_weights_options(parser).add_argument(
        "--cache-gb",
        type=_gigabytes,
        default=0.5,
        metavar="X",
        help="memory for encoded regions, which make further clicks quick (default: %(default)s)",
    )


def load_predictor(options: argparse.Namespace) -> Predictor:
    """The predictor that the options ask for.

    Raises:
        ValueError: unknown weights or device, or a ROI that the network cannot take.
        OSError: weights that cannot be read.
    """
    from GSMedSegLib.predictor import Predictor, load_engine
    from GSMedSegLib.sharding import own_device

    engine = load_engine(options.weights, own_device(options.device), options.precision)
    return Predictor(engine, options.strategy, options.roi)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected gigabytes, 0 or more; got {text!r}")
    return value
