"""The container's contract, without a container: predict.sh in a bare folder, and the Dockerfile's steps."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from GSMedSegLib.npz import Case, read_labels, write_case
from GSMedSegLib.prompts import Box, Click

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh, as in the container")


@pytest.fixture
def workspace(tmp_path: Path, blobs: Callable[..., NDArray[np.float32]]) -> Path:
    """A folder as the challenge mounts it, with one case of two classes in it, read-only."""
    image = blobs(20, 40, 44)
    scaled = (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
    boxes = (Box((4, 10, 10), (14, 30, 30), 9), Box((2, 2, 2), (9, 9, 9), 5))
    clicks = ((Click((9, 20, 20), True), Click((2, 2, 2), False)), (Click((5, 5, 5), True), None))
    folder = tmp_path / "work space"
    (folder / "inputs").mkdir(parents=True)
    (folder / "outputs").mkdir()
    case = folder / "inputs" / "MR_case_1.npz"
    write_case(case, Case("MR_case_1", scaled, (2, 1, 1), boxes=boxes, clicks=clicks))
    case.chmod(0o444)
    (folder / "inputs").chmod(0o555)
    return folder


def bare_environment(**more: str) -> dict[str, str]:
    """Next to nothing, as in a container run by an unknown user; python3 is this one."""
    needed = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {**needed, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]), **more}


def run(workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / "predict.sh")],
        cwd=workspace,
        env=bare_environment(**environment),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_a_case_gets_its_labels(workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    done = run(workspace)
    assert done.returncode == 0, done.stderr
    labels = read_labels(workspace / "outputs" / "MR_case_1.npz", "segs")
    assert labels.shape == (20, 40, 44)
    assert (labels[9, 20, 20], labels[5, 5, 5]) == (1, 2)
    assert sorted(workspace.rglob("*")) == sorted([*before, workspace / "outputs" / "MR_case_1.npz"])


def test_weights_and_strategy_by_environment(workspace: Path) -> None:
    done = run(workspace, GSMEDSEG_WEIGHTS="nowhere.safetensors")
    assert done.returncode == 2
    assert "nowhere.safetensors" in done.stderr
    done = run(workspace, GSMEDSEG_STRATEGY="clever")
    assert done.returncode == 2
    assert "clever" in done.stderr


def steps() -> list[list[str]]:
    """The Dockerfile's instructions."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_the_dockerfile_is_plain() -> None:
    """So plain that `test_the_steps_of_the_dockerfile` runs all there is."""
    kinds = [kind for kind, _ in steps()]
    assert kinds[:2] == ["FROM", "WORKDIR"]
    assert set(kinds[2:]) <= {"COPY", "RUN", "ENV", "CMD"}
    assert dict(steps())["CMD"] == '["sh", "predict.sh"]'


def test_what_is_copied_is_let_through() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {name for kind, rest in steps() if kind == "COPY" for name in rest.split()[:-1]}
    assert copied == allowed


@pytest.mark.slow
def test_the_steps_of_the_dockerfile(workspace: Path, tmp_path: Path) -> None:
    """Run by hand in an environment that has the dependencies already: what is copied is enough.

    pip builds the package, which takes the build tools from the index.
    """
    environment = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python3"
    installed = next(p for p in sys.path if p.endswith("site-packages"))
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{installed}\n", encoding="utf-8")
    place = tmp_path / "image"
    place.mkdir()
    variables = {**os.environ, "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    for kind, rest in steps():
        if kind == "COPY":
            *names, target = rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, place / target, ignore=ignore)
                else:
                    shutil.copy(ROOT / name, place / target)
        elif kind == "RUN":
            line = shlex.split(rest)
            if line[:4] == ["python3", "-m", "pip", "install"]:
                line[4:4] = ["--force-reinstall", "--no-deps"]  # the editable install is in sight here
            subprocess.run(line, cwd=place, env=variables, check=True, capture_output=True)
    assert sorted(p.name for p in place.iterdir()) == sorted(
        ["LICENSE.txt", "README.md", "constraints.txt", "inputs", "outputs", "predict.sh", "pyproject.toml"]
    )
    shutil.copy(workspace / "inputs" / "MR_case_1.npz", place / "inputs")
    done = subprocess.run(
        ["sh", "predict.sh"],
        cwd=place,
        env={**bare_environment(), "PATH": os.pathsep.join([str(python.parent), os.defpath])},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert read_labels(place / "outputs" / "MR_case_1.npz", "segs").any()
