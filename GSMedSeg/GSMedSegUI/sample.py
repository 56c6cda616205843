"""The sample image: made up here, so that it can be shown without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

NAME = "GSMedSegExample"
SHAPE = (60, 96, 96)
SPACING_MM = (1.5, 1.5, 2.0)
CENTER_KJI = (30, 50, 36)
RADII_KJI = (13, 20, 16)


def make_sample() -> np.ndarray:
    """(K, J, I) int16: an organ with a lesion beside a spine, in a body, with noise."""
    rng = np.random.default_rng(7)
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]

    def inside(center: tuple[int, int, int], radii: tuple[int, int, int]) -> np.ndarray:
        apart = zip((k, j, i), center, radii)
        return sum(((x - c) / r) ** 2 for x, c, r in apart) < 1

    image = np.zeros(SHAPE)
    image[inside((30, 48, 48), (40, 42, 42))] = 90
    image[inside((30, 78, 48), (60, 7, 7))] = 230
    image[inside(CENTER_KJI, RADII_KJI)] = 140
    image[inside((34, 52, 70), (11, 13, 8))] = 160
    image[inside((26, 46, 32), (5, 6, 5))] = 75
    return np.round(image + rng.normal(0, 8, SHAPE)).astype(np.int16)


def add_sample_volume(*_: Any) -> tuple[Any, np.ndarray]:
    """A volume node of the sample image, and a point (RAS, mm) inside its organ."""
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", NAME)
    volume.SetSpacing(*SPACING_MM)
    volume.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    volume.SetOrigin(70.0, 70.0, -60.0)
    slicer.util.updateVolumeFromArray(volume, make_sample())
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    i, j, k = SPACING_MM
    inside = np.array([70.0 - i * CENTER_KJI[2], 70.0 - j * CENTER_KJI[1], -60.0 + k * (CENTER_KJI[0] + 6)])
    return volume, inside


def register_sample_data() -> None:
    """Adds the image to the module Sample Data."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="GSMedSeg",
        sampleName=NAME,
        customDownloader=lambda source: [add_sample_volume()[0]],
    )
