"""Segments as surfaces: coarse enough to be there at once, whatever the size of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk

from GSMedSegLib.cropped import Cropped
from GSMedSegLib.geometry import FloatArray

MOST_SAMPLES = 96
"""Along a side of a segment: what a view of a few hundred pixels shows."""

_PASSES = 12
_BAND = 0.1


def coarse(mask: Cropped, most: int = MOST_SAMPLES) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """How much of each block of voxels is in a mask, with an empty margin around.

    Args:
        mask: bool, with voxels.
        most: blocks along a side.

    Returns:
        (K, J, I) from 0 to 1, and the voxels of a block along k, j, i.
    """
    k, j, i = (max(1, -(-n // most)) for n in mask.array.shape)
    padding = [(0, -n % f) for n, f in zip(mask.array.shape, (k, j, i))]
    blocks = np.pad(mask.array, padding).astype(np.float32)
    a, b, c = (n // f for n, f in zip(blocks.shape, (k, j, i)))
    return np.pad(blocks.reshape(a, k, b, j, c, i).mean(axis=(1, 3, 5)), 1), (k, j, i)


def surface_of(mask: Cropped, ijk_to_ras: FloatArray) -> Any:
    """The surface of a mask.

    Args:
        mask: bool, of an image.
        ijk_to_ras: (4, 4) of the image, mm.

    Returns:
        vtkPolyData in the world, mm; without points for a mask without voxels.
    """
    if mask.array.size == 0:
        return vtk.vtkPolyData()
    values, (k, j, i) = coarse(mask)
    image = vtk.vtkImageData()
    image.SetDimensions(values.shape[2], values.shape[1], values.shape[0])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(values).ravel(), deep=True))
    contour = vtk.vtkFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetValue(0, 0.5)
    contour.ComputeNormalsOff()
    contour.ComputeGradientsOff()
    contour.ComputeScalarsOff()
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(contour.GetOutputPort())
    smooth.SetNumberOfIterations(_PASSES)
    smooth.SetPassBand(_BAND)
    smooth.NonManifoldSmoothingOn()
    smooth.NormalizeCoordinatesOn()
    move = vtk.vtkTransformPolyDataFilter()
    move.SetInputConnection(smooth.GetOutputPort())
    move.SetTransform(_to_world(mask, (k, j, i), ijk_to_ras))
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(move.GetOutputPort())
    normals.SplittingOff()
    normals.AutoOrientNormalsOn()
    normals.Update()
    result = vtk.vtkPolyData()
    result.ShallowCopy(normals.GetOutput())
    return result


def _to_world(mask: Cropped, block_kji: tuple[int, int, int], ijk_to_ras: FloatArray) -> Any:
    """From blocks, the margin counted, to the world."""
    blocks = np.eye(4)
    for axis, (size, start) in enumerate(zip(block_kji[::-1], mask.start_kji[::-1])):
        blocks[axis, axis] = size
        blocks[axis, 3] = (
            start + (size - 1) / 2 - size
        )  # the middle of the first block, which the margin precedes
    transform = vtk.vtkTransform()
    transform.SetMatrix((ijk_to_ras @ blocks).ravel().tolist())
    return transform


class Surfaces:
    """Model nodes that show segments in the view in three dimensions, and only there.

    Args:
        scene: that they live in.
        view_id: of the view node.
    """

    def __init__(self, scene: Any, view_id: str) -> None:
        self._scene, self._view_id = scene, view_id
        self._nodes: dict[str, Any] = {}

    def show(self, segment_id: str, surface: Any, color: str, visible: bool) -> None:
        """Show a segment's surface.

        Args:
            segment_id: whose.
            surface: vtkPolyData, or None for the one that it has.
            color: as "#rrggbb".
            visible: whether it is seen.
        """
        node = self._nodes.get(segment_id)
        if node is None:
            if surface is None:
                return
            node = self._add()
            self._nodes[segment_id] = node
        if surface is not None:
            node.SetAndObservePolyData(surface)
        display = node.GetDisplayNode()
        display.SetColor(*(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)))
        display.SetVisibility(visible)

    def keep(self, segment_ids: set[str]) -> None:
        """Remove the surfaces of all other segments."""
        for segment_id in set(self._nodes) - segment_ids:
            self._scene.RemoveNode(self._nodes.pop(segment_id))

    def points(self, segment_id: str) -> int:
        """How many points the surface of a segment has."""
        node = self._nodes.get(segment_id)
        return 0 if node is None or node.GetPolyData() is None else node.GetPolyData().GetNumberOfPoints()

    def _add(self) -> Any:
        node = self._scene.CreateNodeByClass("vtkMRMLModelNode")
        node.UnRegister(None)
        node.SetName("GSMedSeg surface")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetVisibility2D(False)
        display.SetViewNodeIDs([self._view_id])
        display.SetSpecular(0.25)
        display.SetPower(20)
        return node
