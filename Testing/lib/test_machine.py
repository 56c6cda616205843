"""Facts about a machine: from files laid out as the system lays them out, and from this machine itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from GSMedSegLib.machine import (
    Machine,
    Memory,
    canonical,
    free_by_vm_stat,
    import_apart,
    linux_memory,
    nvidia_on_bus,
    one_line,
    release,
)

GIB = 2**30
KIB_PER_GIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_fact_that_is_known_is_not_looked_up():
    machine = Machine(cpus=7, system="Plan 9")
    assert (machine.cpus, machine.system) == (7, "Plan 9")
    assert machine.pointer_bits in (32, 64)


def test_a_fact_that_no_machine_has_is_refused():
    with pytest.raises(ValueError, match="got colour"):
        Machine(colour="grey")


def test_this_machine():
    machine = Machine()
    assert machine.memory is not None
    assert 0.1 < machine.memory.total_gib < 10_000
    assert machine.memory.free_gib is not None
    assert 0 < machine.memory.free_gib <= machine.memory.total_gib
    assert 1 <= machine.cpus <= (os.cpu_count() or 1)
    assert machine.python == sys.executable
    assert {"torch", "numpy"} <= set(machine.requirements) & set(machine.installed)


MEMINFO = f"MemTotal: {16 * KIB_PER_GIB} kB\nMemFree: {KIB_PER_GIB} kB\nMemAvailable: {8 * KIB_PER_GIB} kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Memory(16, 8)),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5"}, Memory(16, 8)),
        (
            {"sys/fs/cgroup/memory.max": str(4 * GIB), "sys/fs/cgroup/memory.current": str(3 * GIB)},
            Memory(4, 1),
        ),
        (
            {
                "sys/fs/cgroup/memory.max": str(4 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"anon 7\ninactive_file {2 * GIB}\n",
            },
            Memory(4, 3),
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
            },
            Memory(2, 1),
        ),
    ],
    ids=["no group", "no limit", "a limit", "a limit, files cached", "old groups"],
)
def test_a_container_may_use_less_than_the_machine_has(
    tmp_path: Path, files: dict[str, str], expected: Memory
):
    assert linux_memory(write(tmp_path, {"proc/meminfo": MEMINFO, **files})) == expected


def test_memory_that_cannot_be_told(tmp_path: Path):
    assert linux_memory(tmp_path) is None
    assert linux_memory(write(tmp_path, {"proc/meminfo": "nonsense"})) is None


def test_free_memory_of_macos():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               65536.\n"
        "Pages active:                            999999.\n"
        "Pages inactive:                          131072.\n"
    )
    assert free_by_vm_stat(text) == 3.0
    assert free_by_vm_stat("command not found") is None


def test_an_nvidia_card_without_driver(tmp_path: Path):
    """A display controller of this vendor; its sound card alone is none."""
    assert nvidia_on_bus(tmp_path / "absent") is None
    devices = write(
        tmp_path,
        {
            "a/vendor": "0x8086\n",
            "a/class": "0x030000\n",
            "b/vendor": "0x10de\n",
            "b/class": "0x040300\n",
            "c/x": "",
        },
    )
    assert nvidia_on_bus(devices) is False
    assert nvidia_on_bus(write(devices, {"d/vendor": "0x10de\n", "d/class": "0x030200\n"})) is True


def test_cards_as_the_driver_lists_them():
    machine = Machine(nvidia_smi="NVIDIA H100, PCIe, 550.54.15, 81920\nGB10, 580.95.05, [N/A]\n\n")
    first, second = machine.cards
    assert (first.name, first.driver, first.memory_gib) == ("NVIDIA H100, PCIe", "550.54.15", 80)
    assert (second.name, second.driver, second.memory_gib) == ("GB10", "580.95.05", 0)
    assert Machine(nvidia_smi=None).cards == []


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for the tool")
def test_a_driver_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = write(tmp_path, {"nvidia-smi": "#!/bin/sh\necho 'cannot talk to'\necho 'the driver'\nexit 9\n"})
    (tool / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="nvidia-smi failed: cannot talk to the driver"):
        _ = Machine().cards


def test_imports_that_fail_crash_or_hang_cost_one_answer_each(tmp_path: Path):
    write(
        tmp_path,
        {
            "good_one.py": "__version__ = '1.2'\nprint('noise')\n",
            "absent_part.py": "import nowhere_to_be_found\n",
            "old_numpy.py": "import sys\nprint('It was compiled using NumPy 1.x', file=sys.stderr)\n"
            "raise ImportError('\\nnumpy.core.multiarray failed to import')\n",
            "crasher.py": "import os, sys\nprint('two runtimes', file=sys.stderr)\nos._exit(3)\n",
            "leaver.py": "raise SystemExit('bye')\n",
            "last_one.py": "",
        },
    )
    names = ["good_one", "absent_part", "old_numpy", "crasher", "leaver", "last_one"]
    found = import_apart(names, sys.executable, [str(tmp_path), *sys.path])
    assert list(found) == names
    assert (found["good_one"].version, found["good_one"].error) == ("1.2", None)
    assert found["absent_part"].error == "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    assert found["old_numpy"].numpy_1
    assert found["old_numpy"].error == "ImportError: numpy.core.multiarray failed to import"
    assert found["crasher"].error == "importing it ended Python with code 3: two runtimes"
    assert found["leaver"].error == "SystemExit: bye"
    assert (found["last_one"].version, found["last_one"].error) == (None, None)


def test_an_import_that_never_ends(tmp_path: Path):
    write(tmp_path, {"sleeper.py": "import time\ntime.sleep(60)\n"})
    found = import_apart(["sleeper"], sys.executable, [str(tmp_path), *sys.path], timeout_s=2.0)
    assert found["sleeper"].error == "importing it did not end within 2 s"


def test_python_inside_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slicer's own program is no interpreter: started with -c it would open a window."""
    program = write(tmp_path, {"bin/SlicerApp-real": "", "bin/PythonSlicer": ""}) / "bin"
    monkeypatch.setattr(sys, "executable", str(program / "SlicerApp-real"))
    assert Machine().python == str(program / "PythonSlicer")
    (program / "PythonSlicer").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="run gsmedseg doctor in a terminal"):
        _ = Machine().python


def test_names_versions_and_reasons():
    assert canonical("SimpleITK") == "simpleitk"
    assert canonical("prometheus_client") == "prometheus-client"
    assert release("2.13.0+cpu") == (2, 13, 0)
    assert release("2.10") > release("2.9.1")
    assert release("unknown") == ()
    assert one_line(ValueError("\n  first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"
