"""The command `gsmedseg weights`: list, fetch, import and convert."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from GSMedSegLib.console import command, tell


def add_weights(commands: Any) -> None:
    """Declares the command and its actions."""
    about = "list, fetch, import or convert the weights of the network"
    parser = commands.add_parser(
        "weights", help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False
    )
    nested = parser.add_subparsers(metavar="ACTION", required=True)
    command(nested, "list", _list_weights, "list the weights known by name")
    fetch = command(nested, "fetch", _fetch_weights, "download public weights, after showing their terms")
    fetch.add_argument("name", metavar="NAME", help="see gsmedseg weights list")
    fetch.add_argument("--accept-terms", action="store_true", help="accept the terms without being asked")
    fetch.add_argument("--url", help="another place with the same file, such as a mirror inside a hospital")
    take = command(nested, "import", _import_weights, "copy a checkpoint into the store, to use it by name")
    take.add_argument(
        "file", type=Path, metavar="FILE", help="any .safetensors or PyTorch checkpoint of a VISTA3D network"
    )
    take.add_argument("--name", help="what to call it (default: the name of the file)")
    convert = command(nested, "convert", _convert_weights, "write weights of any form as .safetensors")
    convert.add_argument("source", metavar="IN", help="a name, or a checkpoint file")
    convert.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    convert.add_argument(
        "--dtype", default="fp16", choices=("fp32", "fp16", "bf16"), help="(default: %(default)s)"
    )


def _list_weights(options: argparse.Namespace) -> int:
    from GSMedSegLib.model_store import list_weights

    rows = [("NAME", "HERE", "MB", "LICENCE", "ABOUT")]
    for entry in list_weights():
        size_mb = entry.size_mb if entry.path is None else round(entry.path.stat().st_size / 1e6)
        licence = "yours" if entry.licence is None else entry.licence.name
        here = "no" if entry.path is None else "yes"
        rows.append((entry.name, here, "?" if size_mb is None else str(size_mb), licence, entry.about))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _fetch_weights(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from GSMedSegLib.model_store import fetch

    def accept(terms: str) -> bool:
        print(terms, flush=True)
        if options.accept_terms or not sys.stdin.isatty():
            return bool(options.accept_terms)
        try:
            return input("Do you accept these terms? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    with tqdm(unit="B", unit_scale=True, desc=options.name, file=sys.stderr, disable=None, delay=0.5) as bar:
        path = fetch(
            options.name,
            accept_terms=accept,
            progress=lambda done, total: tell(bar, done, total),
            url=options.url,
        )
    print(path)
    return 0


def _import_weights(options: argparse.Namespace) -> int:
    from GSMedSegLib.model_store import import_file

    path = import_file(options.file, options.name)
    print(f"{path.stem}: {path}")
    return 0


def _convert_weights(options: argparse.Namespace) -> int:
    from GSMedSegLib.atomic import check_target
    from GSMedSegLib.model_store import convert

    check_target(options.target)
    convert(options.source, options.target, options.dtype)
    print(options.target)
    return 0
