"""`gsmedseg serve`: the engine for clients elsewhere, and for the Slicer module on the same computer."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from GSMedSegLib.console import FAILED, command, port, say, when_input_ends
from GSMedSegLib.service.wire import LOCAL_HOSTS
from GSMedSegLib.text_files import read_text


def add_serve(commands: Any) -> None:
    """Declares the command."""
    from GSMedSegLib.engine_options import add_serving_options

    parser = command(
        commands,
        "serve",
        _serve,
        "serve the engine to 3D Slicer and other clients",
        "Only programs on this computer reach it unless --host says otherwise. Its token is taken from the "
        "environment variable GSMEDSEG_TOKEN or the file given; without either, a new one is made and shown.",
    )
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=port, default=8731, help="0 for any that is free (default: %(default)s)")
    add("--token-file", type=Path, metavar="FILE", help="file with the token that clients must have")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM), to encrypt connections")
    add("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    add(
        "--until-input-ends",
        action="store_true",
        help="end when the standard input is closed, as it is when the program that started this one ends",
    )
    add = parser.add_argument_group("limits").add_argument
    add("--image-voxels", type=int, metavar="N", help="of one image (default: 1073741824)")
    add("--sessions", type=int, metavar="N", help="images at a time (default: 32)")
    add(
        "--memory-gb",
        type=float,
        metavar="X",
        help="memory for all images; the network's own comes on top (default: half of this computer's)",
    )
    add("--idle-s", type=float, metavar="X", help="a session unused for so long is forgotten (default: 3600)")
    add_serving_options(parser)


def _serve(options: argparse.Namespace) -> int:
    try:
        import psutil

        from GSMedSegLib.service.listener import Listener
        from GSMedSegLib.service.server import LOOPBACK, Service, make_app
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"gsmedseg serve needs {error.name}; install it with: pip install 'gsmedseg[server]'"
        ) from error
    import logging
    import signal
    import threading

    from GSMedSegLib.predictor import load_engine

    token = _token(options)
    tls = _tls(options)
    limits = _limits(options, psutil.virtual_memory().total / 2**30)
    _check_address(options.host, options.port)
    local = options.host in LOCAL_HOSTS
    if not local and tls is None:
        say("warning: without --tls-cert images and token go unencrypted; use a network you trust")
    logging.basicConfig(level=logging.INFO, format="gsmedseg: %(message)s")
    engine = load_engine(options.weights, options.device, options.precision, options.cache_gb)
    hosts = LOOPBACK if local else frozenset()
    about = {"weights": Path(options.weights).name, "license": engine.metadata.get("license", "")}
    service = Service(engine, limits, about)
    listener = Listener(make_app(service, token, hosts), options.host, options.port, tls)
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: listener.end())
    if options.until_input_ends:
        when_input_ends(listener.end)

    def listen() -> None:
        try:
            listener.run()
        finally:  # also when it could not begin
            service.worker.close()

    listening = threading.Thread(target=listen)
    listening.start()
    service.worker.work()  # until the application ends, and with it the worker
    listening.join()
    return 0 if listener.started else FAILED


def _check_address(host: str, port: int) -> None:
    """Raises RuntimeError when nothing can listen there: worth knowing before weights are loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RuntimeError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another --port (0 for any "
            "that is free) or --host"
        ) from error


def _token(options: argparse.Namespace) -> str:
    """The token from where the user has it, or a new one, which only programs on this computer may use.

    Raises:
        ValueError: no token although others are let in, or one that is too short or cannot be sent.
        OSError: the file cannot be read.
    """
    if options.token_file is not None:
        token: str = read_text(options.token_file).strip()
        source = str(options.token_file)
    else:
        token = os.environ.get("GSMEDSEG_TOKEN", "").strip()
        source = "GSMEDSEG_TOKEN"
    if token:
        if len(token) < 16 or not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError(
                f"{source}: a token has 16 or more ASCII letters, digits and signs; make one with: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return token
    if options.host not in LOCAL_HOSTS:
        raise ValueError(
            f"--host {options.host} lets other computers in: give a token by --token-file or GSMEDSEG_TOKEN"
        )
    token = secrets.token_urlsafe(32)
    say(f"token: {token}")
    return token


def _tls(options: argparse.Namespace) -> tuple[Path, Path] | None:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together; give both, or neither")
    if options.tls_cert is None:
        return None
    import ssl

    for path in (options.tls_cert, options.tls_key):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give the certificate and its key in PEM format")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except ssl.SSLError as error:
        raise ValueError(
            f"{options.tls_cert} and {options.tls_key} are not a certificate and its key: {error}"
        ) from error
    return options.tls_cert, options.tls_key


def _limits(options: argparse.Namespace, total_gb: float) -> Any:
    from GSMedSegLib.service.sessions import Limits

    given = {
        name: getattr(options, name)
        for name in ("image_voxels", "sessions", "memory_gb", "idle_s")
        if getattr(options, name) is not None
    }
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} is greater than 0, got {value}")
    given.setdefault("memory_gb", total_gb / 2)
    return Limits(**given)
