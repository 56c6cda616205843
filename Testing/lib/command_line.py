"""Files for tests of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib.geometry import lps_from_ijk_to_ras

SHAPE = (20, 24, 28)
OBLIQUE = np.array(
    [
        [-0.73, 0.31, 0.62, 12.5],
        [0.21, 0.88, -0.48, -33.25],
        [-0.43, -0.12, 1.80, 101.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [0.9, 1.1, 2.5]


def write(path: Path, array: NDArray[Any], ijk_to_ras: NDArray[np.float64] | None = None) -> Path:
    image = sitk.GetImageFromArray(array)
    origin, spacing, direction = lps_from_ijk_to_ras(np.eye(4) if ijk_to_ras is None else ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


class Payload:
    """Unpickles into a call that makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))
