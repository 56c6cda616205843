"""Programs run beside Slicer in its own Python; what they say can be shown while they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import slicer
from slicer.i18n import tr as _

import GSMedSegLib
from GSMedSegLib.service.engines import OwnEngine

POLL_S = 0.05

_running: list[str] = []


def engine_python() -> tuple[str, dict[str, str]]:
    """Slicer's own Python without its window, and an environment in which it finds the library."""
    environment = dict(os.environ)
    library = str(Path(GSMedSegLib.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [library, environment.get("PYTHONPATH")]))
    return shutil.which("PythonSlicer") or sys.executable, environment


def own_engine(*arguments: str) -> OwnEngine:
    """An engine in Slicer's own Python, not started yet.

    Args:
        arguments: of `gsmedseg serve`.
    """
    python, environment = engine_python()
    return OwnEngine(python, arguments, environment)


def run_module(log: Callable[[str], None], name: str, *arguments: str) -> int:
    """Run a Python module to its end, as `python -m NAME` does; Slicer's window stays alive meanwhile.

    Args:
        log: told every line as it comes.
        name: of the module.
        arguments: of the command line.

    Returns:
        its exit code.

    Raises:
        RuntimeError: one is running: the user pressed a button meanwhile.
    """
    if _running:
        raise RuntimeError(_("still busy with {name}; the log shows how it goes").format(name=_running[0]))
    _running.append(name)
    try:
        return _run(log, name, *arguments)
    finally:
        _running.clear()


def _run(log: Callable[[str], None], name: str, *arguments: str) -> int:
    python, environment = engine_python()
    process = subprocess.Popen(
        [python, "-m", name, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**environment, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # closing a console would end it
    )
    said: list[str] = []

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.append(line.rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    while listener.is_alive() or said:
        listener.join(POLL_S)
        while said:
            log(said.pop(0))
        slicer.app.processEvents()
    return process.wait()
