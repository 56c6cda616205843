"""What is wrong with this machine, and the fix.

`examine` runs a list of checks, none of which raises; each gives a `Finding`. Nothing but the standard
library is imported before a check needs it: the doctor has to work where little else does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import locale
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from GSMedSegLib import __version__
from GSMedSegLib.machine import Machine, canonical, one_line, release
from GSMedSegLib.memory_need import COMPACT_GIB, LARGE_GIB, LEAST_GIB
from GSMedSegLib.torch_health import (
    OLD_NUMPY,
    State,
    Verdict,
    check_driver,
    check_gpu,
    check_torch,
    check_torch_copies,
    torch_advice,
)

EXTRAS = {
    "server": ("fastapi", "prometheus_client", "psutil", "pydantic", "uvicorn"),
    "web": ("aiohttp", "trame", "trame_slicer"),
    "evaluate": ("jinja2", "matplotlib", "skimage"),
    "dicom": ("highdicom", "pydicom"),
    "openvino": ("openvino",),
}
"""The packages that make up each extra of the pip package."""

LARGE_WEIGHTS_GIB = 1.0
"""Room on the disk for public weights."""

VARIABLES = (
    "GSMEDSEG_DATA",
    "GSMEDSEG_HOME",
    "GSMEDSEG_OFFLINE",
    "GSMEDSEG_STRATEGY",
    "GSMEDSEG_TIME_LIMIT",
    "GSMEDSEG_TOKEN",
    "GSMEDSEG_WEB_TOKEN",
    "GSMEDSEG_WEIGHTS",
)
"""The environment variables that GSMedSeg and its scripts read."""

SHOWN_VARIABLES = ("GSMEDSEG_HOME", "GSMEDSEG_OFFLINE", "GSMEDSEG_STRATEGY", "GSMEDSEG_TIME_LIMIT")
"""Those whose values tell no secret, and nothing of whose images lie where."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check.
        state: "ok"; "warning": it works, but slower or not in all cases; "problem": it does not work.
        found: in one line.
        advice: what to do; empty where there is nothing to do.
    """

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A question to the machine.

    Attributes:
        name: of what is looked at.
        ask: gives the verdict: state, what was found, advice.
        slow: it imports torch or reads large files.
    """

    name: str
    ask: Callable[[Machine], Verdict]
    slow: bool = False


def examine(machine: Machine | None = None, *, quick: bool = False) -> list[Finding]:
    """Looks at everything that GSMedSeg depends on. Folders of the user are shown as `~`.

    Args:
        machine: to look at; None takes this one.
        quick: leave out what takes seconds: importing torch and the other packages, checksums.

    Returns:
        A finding for each check, in the order of `CHECKS`. A check that fails itself is a problem.
    """
    machine = Machine() if machine is None else machine
    return [_ask(check, machine) for check in CHECKS if not (quick and check.slow)]


def _ask(check: Check, machine: Machine) -> Finding:
    try:
        state, found, advice = check.ask(machine)
    except Exception as error:  # noqa: BLE001 (a doctor reports what breaks)
        state, found = "problem", f"the check failed, {one_line(error)}"
        advice = "please report this line"
        if isinstance(error, ModuleNotFoundError):
            advice = f"python -m pip install {error.name}"
    return Finding(check.name, state, private(found, machine), private(advice, machine))


def private(text: str, machine: Machine) -> str:
    """A text without the user's name: their folder is `~`, other people's are `…`."""
    home = str(machine.home)
    for shown in {home, home.replace("\\", "/"), os.path.realpath(home)} - {"", os.sep, "/"}:
        anycase = re.IGNORECASE if machine.system == "Windows" else 0
        text = re.sub(re.escape(shown) + r"(?![\w.-])", "~", text, flags=anycase)
    text = re.sub(r"([\\/](?:home|Users)[\\/])[^\\/\s:;,'\"]+", r"\1…", text)
    name = machine.home.name
    return re.sub(rf"(?<=[\\/]){re.escape(name)}(?=[\\/])", "…", text) if name else text


# Python and its packages


def check_python(machine: Machine) -> Verdict:
    """New enough, and 64-bit."""
    version = ".".join(map(str, machine.python_version))
    found = (
        f"{version}, {machine.pointer_bits}-bit, {machine.system} {platform.release()} {machine.architecture}"
    )
    if machine.python_version < (3, 10):
        return "problem", found, "GSMedSeg needs Python 3.10 or newer"
    if machine.pointer_bits < 64:
        return "problem", found, "torch needs a 64-bit Python; install that one"
    return "ok", found, ""


def check_gsmedseg(machine: Machine) -> Verdict:
    """The version that runs is the one that pip knows."""
    found = f"{__version__} in {Path(__file__).parents[1]}"
    recorded = machine.installed.get("gsmedseg", __version__)
    if recorded != __version__:
        found += f", but pip has {recorded} installed"
        return "warning", found, "remove the copy that is not wanted: python -m pip uninstall gsmedseg"
    return "ok", found, ""


def check_packages(machine: Machine) -> Verdict:
    """All that is required is installed, and new enough."""
    wrong, install = [], []
    for name, lowest in machine.requirements.items():
        version = machine.installed.get(canonical(name))
        if version is None:
            wrong.append(f"{name} is missing")
        elif release(version) < release(lowest):
            wrong.append(f"{name} {version} is older than {lowest}")
        else:
            continue
        install.append(f'"{name}>={lowest}"')
    if not wrong:
        return "ok", f"all {len(machine.requirements)} that are required are installed", ""
    advice = f"python -m pip install {' '.join(install)}"
    if "torch" in " ".join(install):
        advice = f"{torch_advice(machine)}; then {advice}"
    return "problem", "; ".join(wrong), advice


def check_imports(machine: Machine) -> Verdict:
    """The packages that are installed can be imported together; torch has a check of its own."""
    there = set(machine.requirements) - {"torch"}
    there = {name for name in there if canonical(name) in machine.installed}
    imports = {name: result for name, result in machine.imports.items() if name in there}
    failed = {name: result.error for name, result in imports.items() if result.error is not None}
    old = [name for name, result in imports.items() if result.numpy_1]
    numpy = machine.installed.get("numpy", "2")
    if old:
        found = f"{', '.join(old)} was compiled for NumPy 1, here is NumPy {numpy}"
        if failed:
            found += f" ({next(iter(failed.values()))})"
        advice = f"python -m pip install --upgrade {' '.join(old)}, or: python -m pip install {OLD_NUMPY}"
        return "problem" if failed else "warning", found, advice
    if failed:
        found = "; ".join(f"{name}: {error}" for name, error in failed.items())
        again = f"python -m pip install --force-reinstall --no-deps {' '.join(failed)}"
        return "problem", found, again
    versions = [
        f"{name} {imports[name].version}" for name in ("numpy", "SimpleITK", "monai") if name in imports
    ]
    return "ok", ", ".join(versions) or "nothing to import", ""


def check_extras(machine: Machine) -> Verdict:
    """What else can be used; an extra that is there in part is a warning."""
    whole, partial, absent = [], [], []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if not missing:
            whole.append(extra)
        elif len(missing) < len(packages) and extra == "server":
            partial.append(f"{extra} lacks {', '.join(missing)}")
        else:
            absent.append(extra)
    parts = [f"with {', '.join(whole)}"] if whole else []
    parts += [f"without {', '.join(absent)}"] if absent else []
    if partial:
        return "warning", "; ".join(partial + parts), 'python -m pip install "gsmedseg[server]"'
    wanted = [extra for extra in ("server", "web", "evaluate") if extra in absent]
    advice = f'if you want them: python -m pip install "gsmedseg[{",".join(wanted)}]"' if wanted else ""
    return "ok", ", ".join(parts), advice


# processor, memory, disks


def check_processor(machine: Machine) -> Verdict:
    """How many cores may be used."""
    threads = machine.environ.get("OMP_NUM_THREADS")
    found = f"{machine.cpus} cores may be used" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if threads == "1" and machine.cpus > 1:
        return "warning", found, "one thread only; remove OMP_NUM_THREADS to use all cores"
    return "ok", found, ""


def check_memory(machine: Machine) -> Verdict:
    """Enough for an image, for a large one, for the large network."""
    needs = (
        f"a large CT on the processor takes {COMPACT_GIB:g} GiB with compact, {LARGE_GIB:g} with vista3d132"
    )
    memory = machine.memory
    if memory is None:
        return "ok", f"unknown; {needs}", ""
    free = memory.total_gib if memory.free_gib is None else memory.free_gib
    known = "unknown" if memory.free_gib is None else f"{free:.1f}"
    found = f"{memory.total_gib:.1f} GiB, free: {known}; {needs}"
    if free < LEAST_GIB:
        return "problem", found, "close other programs, or use another computer (gsmedseg serve)"
    if free < COMPACT_GIB:
        return "warning", found, "close other programs, or crop large images"
    if free < LARGE_GIB:
        return "ok", found, "for vista3d132 close other programs, or crop large images"
    return "ok", found, ""


def check_weights_folder(machine: Machine) -> Verdict:
    """Public weights can be stored."""
    from GSMedSegLib.model_store import weights_folder

    return _check_folder(weights_folder(), "warning", "set GSMEDSEG_HOME to a folder on another disk")


def check_temporary_folder(machine: Machine) -> Verdict:
    """Temporary files can be written."""
    return _check_folder(
        Path(tempfile.gettempdir()), "problem", "set TMPDIR (Windows: TEMP) to another folder"
    )


def _check_folder(folder: Path, state: State, advice: str) -> Verdict:
    """The verdict on a folder to write to, or on where it would be made."""
    places = (folder, *folder.parents)
    place = next(p for p in places if os.access(p, os.F_OK) and p.is_dir())  # not where one may not look
    free_gib = shutil.disk_usage(place).free / 2**30
    found = f"{folder}, {free_gib:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"gsmedseg")
    except OSError as error:
        return state, f"{found}, cannot be written to ({error.strerror})", advice
    if free_gib < LARGE_WEIGHTS_GIB:
        return "warning", found, f"make room, or {advice}"
    return "ok", found, ""


# weights


def check_bundled_weights(machine: Machine) -> Verdict:
    """They are here, and as long as they say themselves."""
    from GSMedSegLib.model_store import BUNDLED, list_weights

    path = next(entry.path for entry in list_weights() if entry.name == BUNDLED)
    again = "install GSMedSeg again"
    if path is None:
        return "problem", "missing", again
    size = path.stat().st_size
    if size != (expected := _safetensors_bytes(path)):
        told = "it is no safetensors file" if expected is None else f"{expected} bytes are expected"
        return "problem", f"damaged: {size} bytes, {told}", again
    return "ok", f"{path.name}, {size / 1e6:.1f} MB, whole", ""


def _safetensors_bytes(path: Path) -> int | None:
    """How long a safetensors file says it is; None when it is no such file.

    Source: https://github.com/huggingface/safetensors, "Format": 8 bytes with the header's length, the header
    in JSON, then the tensors, of which the header has the offsets.
    """
    import json

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(header_bytes))
            ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + header_bytes + max(ends, default=0)


def check_stored_weights(machine: Machine) -> Verdict:
    """Every file of weights is the one that was installed, downloaded or imported, by its checksum."""
    from GSMedSegLib.checkpoint import sha256_of
    from GSMedSegLib.model_store import BUNDLED, list_weights

    good, unknown, damaged = [], [], []
    for entry in list_weights():
        if entry.path is None:
            continue
        expected = _recorded_sha256(entry.path)
        if expected is None:
            unknown.append(entry.name)
        elif sha256_of(entry.path) == expected:
            good.append(entry.name)
        else:
            damaged.append(entry.name)
    parts = [f"damaged: {', '.join(damaged)}"] if damaged else []
    parts += [f"as installed: {', '.join(good)}"] if good else []
    parts += [f"none known for {', '.join(unknown)}"] if unknown else []
    if damaged:
        again = ["install GSMedSeg again"] if BUNDLED in damaged else []
        again += [f"delete {name} and fetch or import it again" for name in damaged if name != BUNDLED]
        return "problem", "; ".join(parts), "; ".join(again) + " (gsmedseg weights --help)"
    return "ok", "; ".join(parts) or "none", ""


def _recorded_sha256(path: Path) -> str | None:
    """What was written down beside a file, or by pip for a file of the package; None where nothing was."""
    import base64
    import importlib.metadata

    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        words = beside.read_text(encoding="utf-8").split()
        return words[0] if words else None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("gsmedseg") or ():
            if file.name == path.name and file.hash and Path(str(file.locate())) == path:
                return base64.urlsafe_b64decode(file.hash.value + "==").hex()
    return None


# surroundings


def check_proxy(machine: Machine) -> Verdict:
    """A proxy leaves connections within this computer alone."""
    proxies = urllib.request.getproxies()
    shown = [f"{kind}: {_without_login(url)}" for kind, url in sorted(proxies.items()) if kind != "no"]
    if not shown:
        return "ok", "none", ""
    if {"http", "all"} & set(proxies) and not urllib.request.proxy_bypass("127.0.0.1"):
        advice = (
            "set NO_PROXY=127.0.0.1,localhost, so that programs reach the engine on this computer directly"
        )
        return "warning", f"{', '.join(shown)}; it would get requests to 127.0.0.1, too", advice
    return "ok", ", ".join(shown), ""


def _without_login(url: str) -> str:
    """The host and port of a proxy: its URL may hold a user and a password."""
    return urllib.parse.urlsplit(url if "//" in url else f"//{url}").netloc.rpartition("@")[2]


def check_variables(machine: Machine) -> Verdict:
    """The environment variables that are set are ones that mean something."""
    own = {name: value for name, value in sorted(machine.environ.items()) if name.startswith("GSMEDSEG_")}
    shown = [f"{name}={value if name in SHOWN_VARIABLES else '(set)'}" for name, value in own.items()]
    unknown = [name for name in own if name not in VARIABLES]
    if unknown:
        return (
            "warning",
            ", ".join(shown),
            f"{', '.join(unknown)} means nothing; known: {', '.join(VARIABLES)}",
        )
    return "ok", ", ".join(shown) or "none set", ""


def check_local_connections(machine: Machine) -> Verdict:
    """A program on this computer can listen on 127.0.0.1 and be reached: so Slicer speaks to the engine."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5)
            with socket.create_connection(server.getsockname()[:2], timeout=5) as caller:
                answerer, _ = server.accept()
                with answerer:
                    answerer.settimeout(5)
                    caller.sendall(b"?")
                    arrived = answerer.recv(1)
    except OSError as error:
        advice = "allow Python to use 127.0.0.1 in the firewall or security software"
        return "problem", f"127.0.0.1 cannot be reached, {one_line(error)}", advice
    if arrived != b"?":
        return "problem", "a connection to 127.0.0.1 arrives elsewhere", "look for software that redirects it"
    return "ok", "127.0.0.1 can be listened on and reached", ""


def check_file_names(machine: Machine) -> Verdict:
    """Files may have names in any script."""
    found = f"{sys.getfilesystemencoding()} for names, {locale.getpreferredencoding(False)} for text"
    try:
        with tempfile.TemporaryDirectory(prefix="gsmedseg-") as folder:
            file = Path(folder, "Größe 体积 объём.txt")
            file.write_text("ok", encoding="utf-8")
            whole = [path.name for path in Path(folder).iterdir()] == [file.name]
    except (OSError, UnicodeError) as error:
        return (
            "warning",
            f"{found}; a name with other letters fails, {one_line(error)}",
            _utf8_advice(machine),
        )
    if not whole:
        return "warning", f"{found}; names with other letters come back changed", _utf8_advice(machine)
    return "ok", found, ""


def _utf8_advice(machine: Machine) -> str:
    name = "set PYTHONUTF8=1" if machine.system == "Windows" else "set LANG=C.UTF-8 or PYTHONUTF8=1"
    return f"{name}, or give files names of plain letters"


CHECKS = (
    Check("Python", check_python),
    Check("GSMedSeg", check_gsmedseg),
    Check("packages", check_packages),
    Check("imports", check_imports, slow=True),
    Check("torch", check_torch, slow=True),
    Check("torch copies", check_torch_copies),
    Check("NVIDIA driver", check_driver),
    Check("GPU", check_gpu, slow=True),
    Check("processor", check_processor),
    Check("memory", check_memory),
    Check("bundled weights", check_bundled_weights),
    Check("checksums", check_stored_weights, slow=True),
    Check("weights folder", check_weights_folder),
    Check("temporary folder", check_temporary_folder),
    Check("extras", check_extras),
    Check("proxy", check_proxy),
    Check("variables", check_variables),
    Check("connections", check_local_connections),
    Check("file names", check_file_names),
)
