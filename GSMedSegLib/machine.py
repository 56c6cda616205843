"""This computer as Python sees it: packages, processor, memory, graphics cards.

Facts only; `doctor` judges them. It needs the standard library alone, so that it also runs where nothing is
installed yet, and in 3D Slicer's Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

IMPORTED_AS = {"pillow": "PIL"}
"""Distributions whose package has another name."""

NVIDIA_SMI_PLACES = (
    "/usr/lib/wsl/lib/nvidia-smi",
    "C:/Windows/System32/nvidia-smi.exe",
    "C:/Program Files/NVIDIA Corporation/NVSMI/nvidia-smi.exe",
)
"""Where it lies when it is not on the PATH."""

_CHILD = (
    "import json, sys; asked = json.load(sys.stdin); sys.path[:] = asked['path']; "
    "from GSMedSegLib.machine import report_imports; report_imports(asked['names'])"
)


@dataclass(frozen=True)
class Imported:
    """What came of importing a package.

    Attributes:
        version: as the package says; None where it does not, or could not be imported.
        error: why it could not, in one line; None when it could.
        numpy_1: it was compiled for NumPy 1 and complains about NumPy 2.
        facts: more about torch, see `_torch_facts`.
    """

    version: str | None = None
    error: str | None = None
    numpy_1: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Main memory in GiB, as far as this process may use it (a container may have a limit)."""

    total_gib: float
    free_gib: float | None


@dataclass(frozen=True)
class Card:
    """A graphics card as its driver describes it."""

    name: str
    driver: str
    memory_gib: float


class Machine:
    """This computer. What is asked is looked up once, when it is first asked for.

    Args:
        known: facts by name, taken in place of looking them up.
    """

    def __init__(self, **known: Any) -> None:
        unknown = [name for name in known if not hasattr(type(self), name)]
        if unknown:
            raise ValueError(f"expected facts that a machine has, got {', '.join(unknown)}")
        self.__dict__.update(known)

    @cached_property
    def environ(self) -> Mapping[str, str]:
        """The environment variables."""
        return dict(os.environ)

    @cached_property
    def system(self) -> str:
        """Linux, Windows or Darwin."""
        return platform.system()

    @cached_property
    def architecture(self) -> str:
        """The processor's, in lower case: x86_64, amd64, arm64, aarch64."""
        return platform.machine().lower()

    @cached_property
    def python_version(self) -> tuple[int, ...]:
        """Major, minor and micro."""
        return tuple(sys.version_info[:3])

    @cached_property
    def pointer_bits(self) -> int:
        """64, or 32 for a Python that can use 4 GiB at most."""
        return ctypes.sizeof(ctypes.c_void_p) * 8

    @cached_property
    def home(self) -> Path:
        """The user's folder."""
        return Path.home()

    @cached_property
    def search_path(self) -> list[str]:
        """Where packages are looked for."""
        return list(sys.path)

    @cached_property
    def cpus(self) -> int:
        """How many this process may use."""
        if sys.platform == "linux":
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @cached_property
    def memory(self) -> Memory | None:
        """None where it cannot be told."""
        if sys.platform == "linux":
            return linux_memory(Path("/"))
        if sys.platform == "win32":
            return _windows_memory()
        if sys.platform == "darwin":
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
            return Memory(total, free_by_vm_stat(_output("vm_stat")))
        return None

    @cached_property
    def has_nvidia_card(self) -> bool | None:
        """Whether an NVIDIA card is plugged in, driver or not; None where it cannot be told."""
        return nvidia_on_bus(Path("/sys/bus/pci/devices"))

    @cached_property
    def nvidia_smi(self) -> str | None:
        """What the NVIDIA driver's tool says of its cards, a line each; None where there is no such tool.

        Raises:
            RuntimeError: the tool reports an error; the message is its own.
        """
        tool = shutil.which("nvidia-smi") or next((p for p in NVIDIA_SMI_PLACES if Path(p).exists()), None)
        if tool is None:
            return None
        return _output(tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")

    @cached_property
    def cards(self) -> list[Card]:
        """The NVIDIA cards that have a driver.

        Raises:
            RuntimeError: the driver does not work.
        """
        return [Card(*_card(line)) for line in (self.nvidia_smi or "").splitlines() if line.count(",") >= 2]

    @cached_property
    def requirements(self) -> dict[str, str]:
        """The lowest version of each package that GSMedSeg needs, by distribution."""
        text = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines()]
        pairs = [line.partition(">=") for line in lines if line and not line.startswith("#")]
        return {name: version for name, _, version in pairs}

    @cached_property
    def installed(self) -> dict[str, str]:
        """The version of each distribution that can be found, by its name in lower case with dashes."""
        found: dict[str, str] = {}
        for distribution in importlib.metadata.distributions(path=self.search_path):
            name = distribution.metadata["Name"]
            if name:  # a broken installation may have lost it
                found.setdefault(canonical(name), distribution.version)
        return found

    @cached_property
    def python(self) -> str:
        """The interpreter to start for what may crash.

        Raises:
            RuntimeError: Python is part of another program and has none of its own.
        """
        own = Path(sys.executable or "")
        if own.name.lower().startswith(("python", "pypy")):
            return str(own)
        beside = [path for path in own.parent.glob("PythonSlicer*") if path.is_file()]
        found = str(beside[0]) if beside else shutil.which("PythonSlicer")
        if found is None:
            raise RuntimeError("there is no Python to start; run gsmedseg doctor in a terminal")
        return found

    @cached_property
    def imports(self) -> dict[str, Imported]:
        """What comes of importing each package needed, by distribution. Takes seconds."""
        packages = {name: IMPORTED_AS.get(name, name) for name in self.requirements}
        found = import_apart(packages.values(), self.python, self.search_path)
        return {name: found[package] for name, package in packages.items()}


def canonical(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows them, such as +cpu."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


# packages


def import_apart(
    names: Iterable[str], python: str, search_path: list[str], timeout_s: float = 180.0
) -> dict[str, Imported]:
    """Imports packages in another process: one that crashes or hangs costs an answer, not this process.

    Args:
        names: of packages, in the order to import them.
        python: the interpreter.
        search_path: where it looks for them.
        timeout_s: for those that one process gets through.
    """
    left, found = list(names), {}
    root = str(Path(__file__).parents[1])
    while left:
        asked = json.dumps({"names": left, "path": [*search_path, root]})
        try:
            run = subprocess.run(
                [python, "-c", _CHILD],
                input=asked.encode(),
                capture_output=True,
                timeout=timeout_s,
                env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            )
            output, said = run.stdout, run.stderr.decode("utf-8", "replace").strip().splitlines()
            end = f"ended Python with code {run.returncode}" + (f": {said[-1].strip()}" if said else "")
        except subprocess.TimeoutExpired as expired:
            output, end = expired.stdout or b"", f"did not end within {timeout_s:.0f} s"
        for line in output.decode("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line cut short
                name, result = json.loads(line)
                found[name] = Imported(**result)
                left.remove(name)
        if left:
            found[left.pop(0)] = Imported(error=f"importing it {end}")
    return found


def report_imports(names: list[str]) -> None:
    """In the process that `import_apart` starts: imports packages and prints a line of JSON after each."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)  # what a library prints is no result
        for name in names:
            print(json.dumps((name, asdict(_import(name)))), file=results, flush=True)


class _Overheard(io.StringIO):
    """Keeps what is written to stderr, and passes it on at once: the process may end before it is asked."""

    def write(self, text: str) -> int:
        if sys.__stderr__ is not None:
            print(text, end="", file=sys.__stderr__, flush=True)
        return super().write(text)


def _import(name: str) -> Imported:
    said = _Overheard()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
            facts = _torch_facts(module) if name == "torch" else {}
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a broken package can fail in any way)
        text = f"{said.getvalue()} {error}"
        return Imported(error=one_line(error), numpy_1="compiled using NumPy 1" in text)
    version = getattr(module, "__version__", None)
    numpy_1 = "compiled using NumPy 1" in said.getvalue()
    return Imported(version if version is None else str(version), numpy_1=numpy_1, facts=facts)


def _torch_facts(torch: Any) -> dict[str, Any]:
    """What torch can do here.

    Returns:
        "cuda" and "rocm": the version it was built for, or None; "cpu": its name for the processor's vector
        units; "bf16": whether these have bfloat16; "numpy": whether arrays become tensors; "architectures"
        that it was compiled for; "gpus": name, memory in GiB and compute capability of each; "gpu_error": why
        it can use none of them, or None.
    """
    facts: dict[str, Any] = {
        "cuda": torch.version.cuda,
        "rocm": getattr(torch.version, "hip", None),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16": bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()),
        "numpy": _fails(lambda: torch.ones(2).numpy()) is None,
        "architectures": torch.cuda.get_arch_list(),
        "gpus": [],
        "gpu_error": None,
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            facts["gpus"].append((about.name, about.total_memory / 2**30, f"{about.major}.{about.minor}"))
        facts["gpu_error"] = _fails(lambda: (torch.ones(2, device="cuda") + 1).sum().item())
    elif facts["cuda"] or facts["rocm"]:
        facts["gpu_error"] = _fails(torch.cuda.init)
    return facts


def _fails(do: Any) -> str | None:
    """Why something fails, in one line; None when it does not."""
    try:
        do()
    except Exception as error:  # noqa: BLE001 (the reason is the answer)
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """What an exception says: its type and its first line that is not empty."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# memory


def linux_memory(root: Path) -> Memory | None:
    """From the kernel's own files, under `root`; a container's limit counts."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "MemTotal" not in kib:
        return None
    total, free = kib["MemTotal"] * 1024, kib.get("MemAvailable", kib.get("MemFree", 0)) * 1024
    group = root / "sys/fs/cgroup"
    for limit_file, used_file, folder in (
        ("memory.max", "memory.current", group),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", group / "memory"),
    ):
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit is None or used is None or limit >= total:
            continue
        stat = folder / "memory.stat"
        cached = re.search(r"^inactive_file (\d+)", stat.read_text() if stat.exists() else "", re.M)
        total, free = limit, min(free, limit - used + (int(cached[1]) if cached else 0))
    return Memory(total / 2**30, free / 2**30)


def _number(path: Path) -> int | None:
    """The number in a file; None when there is no file, or it says "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def free_by_vm_stat(text: str) -> float | None:
    """GiB that macOS can hand out, from the output of `vm_stat`; None when it is no such output."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", text, re.M)
    return int(size[1]) * sum(map(int, pages)) / 2**30 if size and pages else None


def _windows_memory() -> Memory | None:
    """By GlobalMemoryStatusEx, whose structure has a length, a load, then seven 64-bit counts of bytes."""
    if sys.platform != "win32":
        return None

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("free", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(status.total / 2**30, status.free / 2**30)


# graphics cards


def nvidia_on_bus(devices: Path) -> bool | None:
    """Whether a display controller (PCI class 03) of NVIDIA (vendor 10de) is in a folder of PCI devices."""
    if not devices.is_dir():
        return None
    for device in devices.iterdir():
        with contextlib.suppress(OSError):
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def _card(line: str) -> tuple[str, str, float]:
    name, driver, memory_mib = (part.strip() for part in line.rsplit(",", 2))
    with contextlib.suppress(ValueError):
        return name, driver, float(memory_mib) / 1024
    return name, driver, 0.0  # "[N/A]" where a card shares the main memory


def _output(*command: str) -> str:
    """What a short command prints.

    Raises:
        RuntimeError: it fails, or does not end.
    """
    try:
        run = subprocess.run(command, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{Path(command[0]).name} could not be run ({one_line(error)})") from error
    said = run.stdout.decode("utf-8", "replace")
    if run.returncode != 0:
        text = " ".join(f"{said} {run.stderr.decode('utf-8', 'replace')}".split())
        raise RuntimeError(f"{Path(command[0]).name} failed: {text or f'code {run.returncode}'}")
    return said
