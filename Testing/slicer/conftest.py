"""The Slicer module in a harness like Slicer's desktop, with a real engine in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="no Slicer core: pip install 'gsmedseg[web]'")
pytest.importorskip("PySide6", reason="no Qt: pip install PySide6-Essentials")

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "GSMedSeg" / "GSMedSeg.py"


RENDER = "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.SetSize(9, 9); w.Render()"


@pytest.fixture(scope="session")
def _renders() -> None:
    """Whether VTK can draw without a screen; without the libraries for it the process would crash."""
    environment = {**os.environ, "VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow"}
    if subprocess.run([sys.executable, "-c", RENDER], env=environment, capture_output=True).returncode:
        pytest.skip("VTK cannot draw here; on Debian: apt install libegl1 libegl-mesa0 libgl1-mesa-dri")


@pytest.fixture(scope="module")
def desktop(_renders: None) -> Iterator[Any]:
    """A desktop; one a process, for Slicer's core allows no second application."""
    from Testing.slicer.harness.desktop import SlicerDesktop

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with SlicerDesktop() as opened:
        yield opened


@pytest.fixture(scope="module")
def widget(desktop: Any) -> Any:
    """The module's panel, opened."""
    return desktop.open_module(MODULE)
