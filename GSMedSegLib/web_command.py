"""`gsmedseg web`: the browser app."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_data_path

from GSMedSegLib.console import command, port, reason, say, when_input_ends
from GSMedSegLib.service.wire import LOCAL_HOSTS
from GSMedSegLib.text_files import read_text
from GSMedSegLib.web.launcher import TOKEN_VARIABLE, launch

if TYPE_CHECKING:
    from GSMedSegLib.service.engines import EngineSource
    from GSMedSegLib.web.address import Address
    from GSMedSegLib.web.autosave import Autosave
    from GSMedSegLib.web.opening import Opened

NEEDED = {"trame_slicer": "web", "aiohttp": "web", "fastapi": "server", "uvicorn": "server"}
"""Packages without which nothing works, and their extras; the last two are for an own engine."""

WAY = """<!DOCTYPE html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>GSMedSeg</title>
<a href="{url}">GSMedSeg</a>
"""
"""Leads a browser to the page."""


def add_web(commands: Any) -> None:
    """Declares the command."""
    from GSMedSegLib.engine_options import add_serving_options

    parser = command(
        commands,
        "web",
        _web,
        "segment in a browser: four views, clicks, masks",
        "Only this computer reaches the page unless --host says otherwise, and only with the token in its "
        f"address, which is taken from --token-file or {TOKEN_VARIABLE}, or made anew. A process serves one "
        "user; --users starts several.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "image",
        nargs="?",
        type=Path,
        help="NIfTI, NRRD, MetaImage or DICOM file, or a folder with DICOM, to open at once",
    )
    what.add_argument("--example", action="store_true", help="open the built-in image at once")
    parser.add_argument("--series", metavar="UID", help="which DICOM series, where the folder has several")
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=port, default=8732, help="0 for any that is free (default: %(default)s)")
    add("--token-file", type=Path, metavar="FILE", help="file with the page's token; for --users, one a line")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM), to encrypt connections")
    add("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    add("--no-browser", action="store_true", help="do not open the page in this computer's browser")
    add(
        "--until-input-ends",
        action="store_true",
        help="end when the standard input is closed, as it is when the program that started this one ends",
    )
    add("--users", type=int, metavar="N", help="N pages for N users, on as many ports from --port on")
    add = parser.add_argument_group("work").add_argument
    add("--user", default="default", metavar="NAME", help="whose work is kept and brought back")
    add("--no-autosave", action="store_true", help="keep no segments and clicks on this computer")
    add("--engine", metavar="URL", help="an engine elsewhere, see gsmedseg serve, in place of an own one")
    add("--engine-token-file", type=Path, metavar="FILE", help="file with that engine's token")
    add_serving_options(parser)


def _web(options: argparse.Namespace) -> int:
    if options.image is not None and not options.image.exists():
        raise ValueError(f"{options.image}: no such file or folder; check the path")
    missing = {extra for name, extra in NEEDED.items() if importlib.util.find_spec(name) is None}
    if options.engine is not None:
        missing.discard("server")
    if missing:
        extras = ",".join(sorted(missing, reverse=True))
        raise RuntimeError(f"gsmedseg web needs more packages: pip install 'gsmedseg[{extras}]'")
    if options.users is not None:
        others = _without(sys.argv[2:], "--users", "--port", "--user", "--token-file")
        tokens = _tokens(options.token_file, options.users)
        return launch(options.users, options.port, others, tokens, options.until_input_ends)
    address = _address(options)
    if options.host not in LOCAL_HOSTS and address.tls is None:
        say("warning: without --tls-cert nothing is encrypted; use a network you trust, or a tunnel")
    return _serve(options, address)


def _serve(options: argparse.Namespace, address: Address) -> int:
    from GSMedSegLib.web.drawing import Trial

    trial = Trial()
    os.environ["WSLINK_READY_MSG"] = ""
    sys.argv = sys.argv[:1]  # trame reads arguments of its own from there
    import trame_slicer.core
    import trame_slicer.rca_view  # noqa: F401 - takes its time, which the trial uses

    trial.finish()
    from GSMedSegLib.service.engines import OwnEngine
    from GSMedSegLib.web.app import WebApp
    from GSMedSegLib.web.autosave import Autosave

    autosave, not_kept = None, ""
    if not options.no_autosave:
        autosave = Autosave(_work_folder() / _file_name(options.user))
        not_kept = _claim(autosave, options.user)
        if not_kept:
            say(f"warning: {not_kept}")
            autosave = None
    source = _engine(options)
    name = options.engine or f"engine: this computer, {Path(options.weights).name}"
    try:
        app = WebApp(source, autosave, name, not_kept)
        if options.until_input_ends:
            when_input_ends(app.end)
        with tempfile.TemporaryDirectory(prefix="gsmedseg-") as folder:
            way = None if options.no_browser else Path(folder) / "open.html"
            app.run(address, _first(options), lambda url: _tell(url, way))
    finally:
        if isinstance(source, OwnEngine):
            source.stop()
    return 0


def _claim(autosave: Autosave, user: str) -> str:
    """Has the user's folder for this page alone; why nothing is kept, where it cannot be had."""
    try:
        if not autosave.claim():
            return f"not kept: another page of the user {user} is open; start this one with another --user"
        autosave.tidy()
    except OSError as error:
        return f"not kept: {reason(error)}"
    return ""


def _first(options: argparse.Namespace) -> tuple[str, Callable[[], Opened]] | None:
    """The image to open at once: what it is called, and a function that reads it."""
    from GSMedSegLib.web.opening import open_example, open_path

    if options.example:
        return "the example", open_example
    if options.image is not None:
        return options.image.name, lambda: open_path(options.image, options.series)
    return None


def _without(arguments: Sequence[str], *names: str) -> list[str]:
    """Arguments without some options and their values."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in names:
            kept.append(argument)
        skip = not skip and argument in names
    return kept


def _tell(url: str, way: Path | None) -> None:
    """Says where the page is, and opens it.

    Args:
        url: of the page, its token included.
        way: file to be written that leads to the page, for what a browser is started with, every user of
            the computer sees; None for no browser.
    """
    print(f"open {url}", flush=True)
    has_screen = not sys.platform.startswith("linux") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if way is not None and has_screen:
        way.touch(mode=0o600)
        way.write_text(WAY.format(url=escape(url)), encoding="utf-8")
        threading.Thread(target=webbrowser.open, args=(way.as_uri(),), daemon=True).start()


def _engine(options: argparse.Namespace) -> EngineSource:
    from GSMedSegLib.service.engines import OwnEngine, ServerEngine

    if options.engine is not None:
        token = _read(options.engine_token_file) or os.environ.get("GSMEDSEG_TOKEN", "").strip()
        return ServerEngine(options.engine, token)
    return OwnEngine(
        arguments=[
            f"--weights={options.weights}",
            f"--device={options.device}",
            f"--precision={options.precision}",
            f"--cache-gb={options.cache_gb}",
        ]
    )


def _address(options: argparse.Namespace) -> Address:
    """Where the page is served.

    Raises:
        ValueError: a token that is too short, or a certificate without its key.
        OSError: a file that cannot be read.
    """
    from GSMedSegLib.web.address import Address

    token = (
        _read(options.token_file) or os.environ.get(TOKEN_VARIABLE, "").strip() or secrets.token_urlsafe(24)
    )
    _check_token(token)
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together; give both, or neither")
    tls = None if options.tls_cert is None else (options.tls_cert, options.tls_key)
    for path in tls or ():
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give the certificate and its key in PEM format")
    return Address(options.host, options.port, token, tls)


def _check_token(token: str) -> None:
    if len(token) < 16 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in token):
        raise ValueError("a token has 16 or more ASCII letters, digits, - and _; choose a longer one")


def _tokens(path: Path | None, users: int) -> list[str] | None:
    """The tokens of several users' pages; None for new ones, when there is no file.

    Raises:
        ValueError: fewer than users, one twice, or one that is too short.
        OSError: the file cannot be read.
    """
    if path is None:
        return None
    tokens = _read(path).split()
    for token in tokens:
        _check_token(token)
    if len(tokens) < users or len(set(tokens)) < len(tokens):
        raise ValueError(
            f"{path}: {users} users need {users} different tokens, one a line; "
            f"the file has {len(tokens)}, {len(set(tokens))} of them different"
        )
    return tokens[:users]


def _read(path: Path | None) -> str:
    return "" if path is None else read_text(path).strip()


def _work_folder() -> Path:
    """Where users' work is kept: under GSMEDSEG_HOME, else with the user's data, which nobody tidies up."""
    home = os.environ.get("GSMEDSEG_HOME")
    return (Path(home).expanduser() if home else user_data_path("gsmedseg", appauthor=False)) / "web"


def _file_name(name: str) -> str:
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ValueError(f"--user is letters, digits, - and _, got {name!r}")
    return name
