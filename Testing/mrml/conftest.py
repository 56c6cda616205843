"""Slicer's core without its application: a scene with module logics, and an engine in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

# Before VTK is loaded, which reads it once: no X server is asked for.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

slicer = pytest.importorskip("slicer", reason="no Slicer core: pip install 'gsmedseg[web]'")
vtk = pytest.importorskip("vtk")

from Testing.service.conftest import serve  # noqa: E402, F401 - a fixture for the tests here too

OBLIQUE = np.eye(4)
# Columns of a turn in space (0.6 and 0.8 are a sine and a cosine), times voxel sides of 0.5, 0.8 and 2.4 mm.
OBLIQUE[:3, :3] = np.array([[0.6, 0.0, 0.8], [0.64, 0.6, -0.48], [-0.48, 0.8, 0.36]]) * (0.5, 0.8, 2.4)
OBLIQUE[:3, 3] = (10.0, -20.0, 30.0)
LEFT_HANDED = np.diag([0.8, 0.9, -3.0, 1.0])


@pytest.fixture(scope="session")
def slicer_app() -> Any:
    """One application for all tests: a second one in a process fails."""
    from trame_slicer.core import SlicerApp

    return SlicerApp()


@pytest.fixture
def scene(slicer_app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty scene, and the one that `slicer.util` works with."""
    monkeypatch.setattr(slicer, "mrmlScene", slicer_app.scene, raising=False)
    slicer_app.scene.Clear(False)
    yield slicer_app.scene
    slicer_app.scene.Clear(False)


@pytest.fixture
def image() -> np.ndarray:
    """(20, 24, 28) int16, two bright balls on noise."""
    rng = np.random.default_rng(1)
    k, j, i = np.ogrid[:20, :24, :28]
    balls = ((k - 8) ** 2 + (j - 8) ** 2 + (i - 8) ** 2 < 25) | (
        (k - 12) ** 2 + (j - 16) ** 2 + (i - 20) ** 2 < 16
    )
    return (100 * balls + rng.normal(0, 10, balls.shape)).astype(np.int16)


@pytest.fixture
def add_volume(scene: Any) -> Callable[..., Any]:
    """Adds volume nodes, and linear transforms above them."""

    def add(array: np.ndarray, ijk_to_ras: np.ndarray = OBLIQUE, to_world: np.ndarray | None = None) -> Any:
        volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "image")
        slicer.util.updateVolumeFromArray(volume, array)
        volume.SetIJKToRASMatrix(as_vtk(ijk_to_ras))
        if to_world is not None:
            transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
            transform.SetMatrixTransformToParent(as_vtk(to_world))
            volume.SetAndObserveTransformNodeID(transform.GetID())
        return volume

    return add


def as_vtk(matrix: np.ndarray) -> Any:
    """A vtkMatrix4x4 of a (4, 4) array."""
    result = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            result.SetElement(row, column, float(matrix[row, column]))
    return result


def turned(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) a turn about the third axis, and a shift."""
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift_mm
    return matrix
