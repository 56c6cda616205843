"""The doctor: each verdict on made-up machines, then this one; a check that breaks is a finding, too."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import FrozenInstanceError
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from GSMedSegLib import __version__, doctor, model_store
from GSMedSegLib.doctor import CHECKS, EXTRAS, Check, Finding, examine, private
from GSMedSegLib.doctor_command import UNWELL
from GSMedSegLib.machine import Card, Imported, Machine, Memory
from GSMedSegLib.torch_health import runs_on
from Testing.lib.test_packaging import pyproject  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
LINUX, WINDOWS = Path("/home"), PureWindowsPath("C:/Users")
RTX = Card("NVIDIA RTX 4090", "550.54.15", 24)
TORCH = {
    "cuda": "12.8",
    "rocm": None,
    "cpu": "AVX2",
    "bf16": False,
    "numpy": True,
    "architectures": ["sm_80", "sm_90"],
    "gpus": [],
    "gpu_error": None,
}


def ask(name: str, **known: Any) -> Finding:
    """What one check says of a machine of which this is known."""
    check = next(check for check in CHECKS if check.name == name)
    return doctor._ask(check, Machine(**known))


def with_torch(version: str = "2.8.0", error: str | None = None, **facts: Any) -> dict[str, Imported]:
    return {"torch": Imported(version, error, facts={**TORCH, **facts})}


# the whole


def test_this_machine():
    """Each check has answered once, in one line; what the tests themselves need is well."""
    findings = examine()
    assert [finding.name for finding in findings] == [check.name for check in CHECKS]
    needed = {"Python", "packages", "imports", "torch", "bundled weights", "temporary folder"}
    assert {f.name: f.found for f in findings if f.state == "problem" and f.name in needed} == {}
    assert not [f for f in findings if f.found.startswith("the check failed")]
    text = " ".join(f"{finding.found} {finding.advice}" for finding in findings)
    assert __version__ in text
    assert str(Path.home()) + "/" not in text
    for finding in findings:
        assert finding.found
        assert "\n" not in finding.found + finding.advice
    with pytest.raises(FrozenInstanceError):
        findings[0].state = "ok"  # type: ignore[misc]


def test_quick_leaves_out_what_is_slow(monkeypatch: pytest.MonkeyPatch):
    def no_process(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    machine = Machine(nvidia_smi=None)
    monkeypatch.setattr(subprocess, "run", no_process)
    names = [finding.name for finding in examine(machine, quick=True)]
    assert names == [check.name for check in CHECKS if not check.slow]
    assert {"torch", "imports", "checksums"}.isdisjoint(names)


def test_a_check_that_breaks_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def broken(machine: Machine) -> Any:
        raise ZeroDivisionError("by\nnought")

    def lacking(machine: Machine) -> Any:
        import a_package_that_is_missing  # noqa: F401

    monkeypatch.setattr(doctor, "CHECKS", (Check("one", broken), Check("two", lacking)))
    one, two = examine()
    assert one == Finding(
        "one", "problem", "the check failed, ZeroDivisionError: by", "please report this line"
    )
    assert two.state == "problem"
    assert two.advice == "python -m pip install a_package_that_is_missing"


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_without_any_package(quick: bool, tmp_path: Path):
    """With nothing but Python: the doctor comes up, says what is missing, and how to get it."""
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'packages' not in p];"
        f"sys.path.insert(0, {str(ROOT)!r});"
        "from GSMedSegLib.cli import main;"
        f"code = main(['doctor', '--json', *{['--quick'] * quick}]);"
        "assert 'numpy' not in sys.modules;"
        "sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert run.returncode == UNWELL, run.stderr
    findings = {finding["name"]: finding for finding in json.loads(run.stdout)["findings"]}
    assert findings["packages"]["state"] == "problem"
    assert "torch is missing" in findings["packages"]["found"]
    assert "pytorch.org" in findings["packages"]["advice"]
    assert findings["bundled weights"]["advice"] == "python -m pip install filelock"
    if not quick:
        assert (findings["torch"]["state"], findings["torch"]["found"]) == ("problem", "not installed")
        assert findings["GPU"]["state"] == "ok"


# names of people


@pytest.mark.parametrize(
    ("home", "text", "shown"),
    [
        (LINUX / "ada", f"{LINUX}/ada/x and {LINUX}/adam/y", "~/x and /home/…/y"),
        (LINUX / "ada", "/scratch/ada/tmp, /scratch/adage", "/scratch/…/tmp, /scratch/adage"),
        (Path("/Users/ada"), "in /Users/ada", "in ~"),
        (WINDOWS / "Ada L", r"c:\users\ada l\AppData", r"~\AppData"),
        (WINDOWS / "Ada L", rf"{WINDOWS}\ADAL~1\Temp", rf"{WINDOWS}\…\Temp"),
        (WINDOWS / "ada", f"{WINDOWS.as_posix()}/ada/x", "~/x"),
        (Path("/"), "/usr/lib", "/usr/lib"),
    ],
)
def test_nobody_is_named(home: Any, text: str, shown: str):
    system = "Windows" if isinstance(home, PureWindowsPath) else "Linux"
    assert private(text, Machine(home=home, system=system)) == shown


def test_the_home_folder_is_shown_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / "ada" / "weights store"))
    finding = ask("weights folder", home=tmp_path / "ada")
    assert finding.found.startswith(str(Path("~", "weights store", "weights")))


# Python and packages


@pytest.mark.parametrize(
    ("version", "bits", "state"),
    [((3, 9, 18), 64, "problem"), ((3, 10, 0), 64, "ok"), ((3, 13, 1), 32, "problem")],
)
def test_python(version: tuple[int, ...], bits: int, state: str):
    assert ask("Python", python_version=version, pointer_bits=bits).state == state


def test_two_versions_of_gsmedseg():
    assert ask("GSMedSeg", installed={}).state == "ok"
    finding = ask("GSMedSeg", installed={"gsmedseg": "0.0.9"})
    assert finding.state == "warning"
    assert "pip has 0.0.9" in finding.found


def test_packages_that_are_missing_or_old():
    requirements = {"SimpleITK": "2.3", "numpy": "1.26", "tqdm": "4.64"}
    installed = {"simpleitk": "2.10.1", "numpy": "1.26.4"}
    finding = ask("packages", requirements=requirements, installed=installed)
    assert (finding.state, finding.found) == ("problem", "tqdm is missing")
    assert finding.advice == 'python -m pip install "tqdm>=4.64"'
    finding = ask("packages", requirements=requirements, installed={**installed, "tqdm": "4.9"})
    assert finding.found == "tqdm 4.9 is older than 4.64"
    assert ask("packages", requirements=requirements, installed={**installed, "tqdm": "5"}).state == "ok"


@pytest.mark.parametrize(
    ("known", "advice"),
    [
        ({"system": "Linux", "cards": [RTX]}, "for the NVIDIA RTX 4090 choose"),
        ({"system": "Windows", "cards": []}, "take the CPU build"),
        ({"system": "Darwin", "architecture": "arm64"}, "python -m pip install torch"),
        ({"system": "Darwin", "architecture": "x86_64"}, "no recent torch for Macs with an Intel processor"),
    ],
)
def test_how_to_get_torch_depends_on_the_machine(known: dict[str, Any], advice: str):
    missing = {"torch": Imported(error="ModuleNotFoundError: No module named 'torch'")}
    finding = ask("torch", imports=missing, installed={}, **known)
    assert (finding.state, finding.found) == ("problem", "not installed")
    assert advice in finding.advice


def test_packages_that_cannot_be_imported():
    good = {name: Imported("1") for name in ("numpy", "SimpleITK", "monai")}
    installed = {"numpy": "2.1.0", "simpleitk": "2.5", "monai": "1.4", "edt": "2.4"}
    assert ask("imports", imports=good, installed=installed).state == "ok"
    broken = {**good, "SimpleITK": Imported(error="ImportError: DLL load failed")}
    finding = ask("imports", imports=broken, installed=installed)
    assert (finding.state, finding.found) == ("problem", "SimpleITK: ImportError: DLL load failed")
    assert finding.advice.endswith("--force-reinstall --no-deps SimpleITK")
    old = {**good, "edt": Imported(error="ImportError: numpy.core.multiarray failed to import", numpy_1=True)}
    finding = ask("imports", imports=old, installed=installed)
    assert finding.state == "problem"
    assert finding.found.startswith("edt was compiled for NumPy 1, here is NumPy 2.1.0 (ImportError")
    assert '"numpy<2"' in finding.advice


def test_what_is_not_installed_is_said_once():
    """By the check of the packages, not by that of their imports."""
    missing = {"edt": Imported(error="ModuleNotFoundError: No module named 'edt'")}
    finding = ask("imports", imports=missing, installed={})
    assert (finding.state, finding.found) == ("ok", "nothing to import")


def test_extras_are_those_of_the_package(pyproject: dict):  # noqa: F811 (the fixture)
    """Each extra of pyproject.toml that a user can miss, but for those that are found out in other ways."""
    names = {"pillow": "PIL", "scikit-image": "skimage", "prometheus-client": "prometheus_client"}
    names["trame-slicer"] = "trame_slicer"
    stated_in = pyproject["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        stated = [re.split(r"[\[>=]", line)[0] for line in stated_in[extra]]
        assert [names.get(name, name) for name in stated] == list(packages)
    assert set(stated_in) - set(EXTRAS) == {"train", "dev"}


def test_extras(monkeypatch: pytest.MonkeyPatch):
    there = {"highdicom", "pydicom", "openvino"}
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object() if name in there else None)
    finding = ask("extras")
    assert (finding.state, finding.found) == ("ok", "with dicom, openvino, without server, web, evaluate")
    assert finding.advice.endswith('pip install "gsmedseg[server,web,evaluate]"')
    there |= {"fastapi", "psutil", "pydantic", "uvicorn"}
    finding = ask("extras")
    assert finding.state == "warning"
    assert finding.found.startswith("server lacks prometheus_client; with dicom")


# torch and the card


def test_torch_that_cannot_be_imported():
    failed = {"torch": Imported(error="OSError: [WinError 126] Error loading c10.dll")}
    finding = ask("torch", imports=failed, installed={"torch": "2.8"}, system="Windows", cards=[])
    assert finding.state == "problem"
    assert finding.advice.startswith("install Microsoft's Visual C++ Redistributable")


def test_torch_and_numpy_that_do_not_go_together():
    finding = ask("torch", imports=with_torch("2.2.0", numpy=False), architecture="x86_64")
    assert finding.state == "problem"
    assert "cannot use the NumPy installed" in finding.found


@pytest.mark.parametrize(
    ("architecture", "cpu", "state"),
    [("x86_64", "DEFAULT", "warning"), ("x86_64", "AVX512", "ok"), ("arm64", "DEFAULT", "ok")],
)
def test_a_processor_without_vector_units(architecture: str, cpu: str, state: str):
    finding = ask("torch", imports=with_torch(cpu=cpu, bf16=True), architecture=architecture)
    assert finding.state == state
    assert f"built for CUDA 12.8; processor: {cpu}, bfloat16" in finding.found


def test_two_torches(tmp_path: Path):
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        (place / "torch").mkdir(parents=True)
        (place / "torch" / "__init__.py").touch()
    path = [str(places[0]), str(places[0]), str(tmp_path)]
    assert ask("torch copies", search_path=path).found == f"one, in {places[0]}"
    finding = ask("torch copies", search_path=[*path, str(places[1])])
    assert finding.state == "warning"
    assert finding.found == f"2 installations: {places[0]}, {places[1]}"
    assert ask("torch copies", search_path=[str(tmp_path)]).found == "none"


def test_the_driver():
    assert ask("NVIDIA driver", cards=[RTX]).found == "NVIDIA RTX 4090 (24 GiB), driver 550.54.15"
    assert ask("NVIDIA driver", nvidia_smi=None, has_nvidia_card=False).state == "ok"
    assert ask("NVIDIA driver", nvidia_smi=None, has_nvidia_card=None).state == "ok"
    finding = ask("NVIDIA driver", nvidia_smi=None, has_nvidia_card=True)
    assert (finding.state, finding.found) == ("warning", "there is an NVIDIA card, but no driver for it")


WHY_UNUSED = [
    (
        {"cuda": None},
        RTX,
        {},
        "the torch installed is for the CPU alone",
        "a build with CUDA",
    ),
    (
        {"cuda": "13.0"},
        RTX,
        {},
        "driver 550.54.15 is too old for CUDA 13.0",
        "update the driver to 580 or newer, or install torch for CUDA 12",
    ),
    (
        {"cuda": "12.8"},
        Card("Tesla K80", "390.10", 12),
        {},
        "driver 390.10 is too old",
        "update the driver to 525 or newer",
    ),
    (
        {"cuda": "12.8"},
        RTX,
        {"CUDA_VISIBLE_DEVICES": ""},
        "hidden by CUDA_VISIBLE_DEVICES=''",
        "remove this variable",
    ),
    (
        {"cuda": "12.8", "gpu_error": "RuntimeError: unknown error"},
        RTX,
        {},
        "is not used: RuntimeError: unknown error",
        "--gpus all",
    ),
]


@pytest.mark.parametrize(("facts", "card", "environ", "found", "advice"), WHY_UNUSED)
def test_why_a_card_is_not_used(
    facts: dict[str, Any], card: Card, environ: dict[str, str], found: str, advice: str
):
    finding = ask("GPU", imports=with_torch(**facts), cards=[card], environ=environ)
    assert finding.state == "warning"
    assert found in finding.found
    assert advice in finding.advice


def test_no_card():
    assert ask("GPU", imports=with_torch(), cards=[]).found == "none, the processor is used"


def test_a_card_that_works():
    finding = ask("GPU", imports=with_torch(gpus=[("H100", 79.6, "9.0")]))
    assert (finding.state, finding.found) == ("ok", "H100 (80 GiB, capability 9.0)")


@pytest.mark.parametrize(
    ("capability", "advice"), [("12.0", "install a newer torch"), ("6.1", "install an older torch")]
)
def test_a_card_that_torch_was_not_compiled_for(capability: str, advice: str):
    """Torch says that there is a GPU, and every computation on it fails: `--device auto` takes it."""
    finding = ask("GPU", imports=with_torch(gpus=[("GPU", 8.0, capability)], gpu_error="RuntimeError: x"))
    assert finding.state == "problem"
    assert finding.found.endswith("this torch was compiled for sm_80 sm_90")
    assert finding.advice.startswith(advice)


def test_a_card_that_fails():
    finding = ask("GPU", imports=with_torch(gpus=[("GPU", 8.0, "8.0")], gpu_error="RuntimeError: busy"))
    assert finding.state == "problem"
    assert "computing fails, RuntimeError: busy" in finding.found


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ("8.6", ["sm_80"], True),
        ("8.0", ["sm_86"], False),
        ("9.0", ["sm_86"], False),
        ("9.0", ["compute_80"], True),
        ("7.5", ["compute_80"], False),
        ("12.0", ["sm_90a", "sm_120"], True),
        ("8.0", [], True),
    ],
)
def test_which_code_runs_on_which_card(capability: str, architectures: list[str], expected: bool):
    assert runs_on(capability, architectures) is expected


# memory, disks, weights


@pytest.mark.parametrize(
    ("memory", "state"),
    [
        (Memory(32, 20), "ok"),
        (Memory(8, 5), "ok"),
        (Memory(8, 2), "warning"),
        (Memory(4, 0.5), "problem"),
        (Memory(16, None), "ok"),
        (None, "ok"),
    ],
)
def test_memory(memory: Memory | None, state: str):
    finding = ask("memory", memory=memory)
    assert finding.state == state
    assert ("unknown" in finding.found) == (memory is None or memory.free_gib is None)
    assert "vista3d132" in finding.found


def test_one_thread_of_many():
    assert ask("processor", cpus=8, environ={}).found == "8 cores may be used"
    assert ask("processor", cpus=8, environ={"OMP_NUM_THREADS": "1"}).state == "warning"
    assert ask("processor", cpus=1, environ={"OMP_NUM_THREADS": "1"}).state == "ok"


def test_folders_that_are_full_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / "not" / "yet"))
    assert ask("weights folder").state == "ok"
    assert not (tmp_path / "not").exists()

    usage = shutil.disk_usage(tmp_path)._replace(free=2**29)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        finding = ask("weights folder")
    assert finding.state == "warning"
    assert "0.5 GiB free" in finding.found

    def closed(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", closed)
    finding = ask("weights folder")
    assert finding.state == "warning"
    assert "cannot be written to (Permission denied)" in finding.found
    assert ask("temporary folder").state == "problem"


def test_a_home_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another user's, in a container; a name that is too long fails alike, whoever runs this test."""
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / ("x" * 300)))
    for name in ("bundled weights", "checksums", "weights folder"):
        assert ask(name).state == "ok"


def safetensors(path: Path, tensor_bytes: int) -> Path:
    header = json.dumps({"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}, "__metadata__": {}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"x" * tensor_bytes)
    return path


def test_bundled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert ask("bundled weights").state == "ok"
    path = tmp_path / "compact.safetensors"
    monkeypatch.setattr(model_store, "_file_of", lambda entry: path)
    finding = ask("bundled weights")
    assert (finding.state, finding.found) == ("problem", "missing")
    assert finding.advice == "install GSMedSeg again"

    whole = len(safetensors(path, 5).read_bytes())
    assert ask("bundled weights").state == "ok"
    safetensors(path, 3)
    assert ask("bundled weights").found == f"damaged: {whole - 2} bytes, {whole} bytes are expected"
    path.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    assert "it is no safetensors file" in ask("bundled weights").found
    path.write_bytes(b"")
    assert ask("bundled weights").state == "problem"


def test_stored_weights_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path))
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("vista3d", "mine"):
        path = safetensors(folder / f"{name}.safetensors", 5)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    safetensors(folder / "unrecorded.safetensors", 5)
    finding = ask("checksums")
    assert finding.state == "ok"
    assert "as installed: vista3d, mine" in finding.found
    assert "unrecorded" in finding.found.partition("none known for ")[2]
    safetensors(folder / "vista3d.safetensors", 6)
    finding = ask("checksums")
    assert finding.state == "problem"
    assert finding.found.startswith("damaged: vista3d; as installed: mine")
    assert finding.advice.startswith("delete vista3d and fetch or import it again")


# surroundings


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http", "https", "all", "no", "ftp"):
        for variable in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_a_proxy_that_catches_this_computer(no_proxy: pytest.MonkeyPatch):
    no_proxy.setenv("http_proxy", "http://ada:secret@proxy.example:3128")
    finding = ask("proxy")
    assert finding.state == "warning"
    assert finding.found.startswith("http: proxy.example:3128; ")
    assert "secret" not in finding.found
    assert "NO_PROXY=127.0.0.1,localhost" in finding.advice
    no_proxy.setenv("no_proxy", "localhost,127.0.0.1")
    assert ask("proxy").state == "ok"


def test_a_proxy_for_https_alone_is_fine(no_proxy: pytest.MonkeyPatch):
    no_proxy.setenv("https_proxy", "proxy.example:3128")
    assert (ask("proxy").state, ask("proxy").found) == ("ok", "https: proxy.example:3128")


def test_variables():
    assert ask("variables", environ={"HOME": "/x"}).found == "none set"
    environ = {"GSMEDSEG_TOKEN": "a-secret-token", "GSMEDSEG_OFFLINE": "1", "GSMEDSEG_DATA": "/study/doe"}
    finding = ask("variables", environ=environ)
    assert finding.state == "ok"
    assert finding.found == "GSMEDSEG_DATA=(set), GSMEDSEG_OFFLINE=1, GSMEDSEG_TOKEN=(set)"
    finding = ask("variables", environ={"GSMEDSEG_WEB_TOKEN": "a-secret-token"})
    assert (finding.state, finding.found) == ("ok", "GSMEDSEG_WEB_TOKEN=(set)")
    finding = ask("variables", environ={"GSMEDSEG_OFLINE": "1"})
    assert finding.state == "warning"
    assert finding.advice.startswith("GSMEDSEG_OFLINE means nothing; known: GSMEDSEG_DATA")


def test_connections_that_are_refused(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    finding = ask("connections")
    assert finding.state == "problem"
    assert "Connection refused" in finding.found
    assert "firewall" in finding.advice


def test_names_that_the_disk_cannot_keep(monkeypatch: pytest.MonkeyPatch):
    def ascii_alone(path: Path, *arguments: Any, **options: Any) -> int:
        path.name.encode("ascii")
        return 0

    monkeypatch.setattr(Path, "write_text", ascii_alone)
    finding = ask("file names", system="Windows")
    assert finding.state == "warning"
    assert finding.advice.startswith("set PYTHONUTF8=1")
