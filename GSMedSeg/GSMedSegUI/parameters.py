"""What the panel remembers in the scene."""

from __future__ import annotations

from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class Parameters:
    """Saved and loaded with the scene.

    Attributes:
        volume: the image.
        segmentation: where masks go.
        segment: ID of the chosen segment.
        auto: whether every click is segmented at once.
        overwrite: what becomes of other segments, a value of `Overwrite`.
        smoothing_mm: of masks' borders; Slicer refuses to bind a slider to a number without a range.
        hint: whether to show where a next click would help.
    """

    volume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    segment: str = ""
    auto: bool = True
    overwrite: str = "nothing"
    smoothing_mm: Annotated[float, WithinRange(0, 5)] = 0.0
    hint: bool = False
