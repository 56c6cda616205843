"""DICOM segmentations: binary segments that refer to the slices they were drawn on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from GSMedSegLib import __version__
from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.cropped import Cropped
from GSMedSegLib.geometry import lps_from_ijk_to_ras
from GSMedSegLib.volume_io import Volume

Code = tuple[str, str, str]
"""Value, scheme and meaning."""

TISSUE: Code = ("85756007", "SCT", "Tissue")
"""Category and type of what has no name that is known; as in 3D Slicer."""

MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Of type 2 in the standard: present, but empty where unknown. Anonymised files often lack them."""

_NOT_IN_NAMES = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
"""A backslash parts values in DICOM; control characters are not allowed."""

_TERMINOLOGY = "SegmentationCategoryTypeModifier-SlicerGeneralAnatomy.term.json"


def codes_of(name: str) -> tuple[Code, Code]:
    """Category and type of a structure, by its name in 3D Slicer's list of general anatomy.

    Args:
        name: of a segment, such as "Liver"; capitals do not matter.
    """
    return _known_names().get(name.strip().lower(), (TISSUE, TISSUE))


@cache
def _known_names() -> dict[str, tuple[Code, Code]]:
    text = files("trame_slicer.resources").joinpath("terminologies", _TERMINOLOGY).read_text(encoding="utf-8")
    known: dict[str, tuple[Code, Code]] = {}
    for category in json.loads(text)["SegmentationCodes"]["Category"]:
        for kind in category["Type"]:
            known.setdefault(kind["CodeMeaning"].lower(), (_code(category), _code(kind)))
    return known


def _code(entry: dict[str, Any]) -> Code:
    return entry["CodeValue"], entry["CodingSchemeDesignator"], entry["CodeMeaning"]


def write_dicom(
    path: Path,
    image: Volume,
    segments: Sequence[tuple[str, str, Cropped]],
    dicom_files: Sequence[Path],
) -> None:
    """Writes a DICOM segmentation, whole or not at all.

    Args:
        path: of the file.
        image: that was segmented.
        segments: name, colour as "#rrggbb", and mask of each; may overlap.
        dicom_files: that the image was read from, in its order.

    Raises:
        ValueError: the image is no DICOM image, or its files say too little.
        RuntimeError: highdicom is not installed.
        OSError: the file cannot be written.
    """
    if not dicom_files:
        raise ValueError(
            "a DICOM segmentation refers to DICOM slices, and this image has none; save .seg.nrrd or .nii.gz"
        )
    try:
        import highdicom
        import pydicom
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"DICOM segmentations need {error.name}; install it with: pip install 'gsmedseg[dicom]'"
        ) from error
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in dicom_files]
    for source in sources:
        source.decode()  # as its own character set says, before another is set, which has all letters
        source.SpecificCharacterSet = "ISO_IR 192"
        # Else highdicom takes what the file says, or works it out from places that it needs to be even.
        source.SpacingBetweenSlices = round(image.spacing_kji_mm[0], 6)
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
    array: NDArray[np.uint8] = np.zeros((*image.shape, len(segments)), np.uint8)
    for number, (_, _, mask) in enumerate(segments):
        array[(*mask.box, number)] = mask.array
    try:
        pixels: Any = array  # in the order of the slices
        if len(sources) != len(array):  # frames of one file, which a volume finds by their places
            pixels = highdicom.Volume(
                array,
                _kji_to_lps(image),
                "PATIENT",
                sources[0].FrameOfReferenceUID,
                {"SegmentNumber": list(range(1, len(segments) + 1))},
            )
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=[
                _described(number, name, color) for number, (name, color, _) in enumerate(segments, start=1)
            ],
            series_instance_uid=highdicom.UID(),
            series_number=max(1, int(getattr(sources[0], "SeriesNumber", None) or 0) + 100),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="GSMedSeg",
            manufacturer_model_name="GSMedSeg",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="Interactive segmentation, a research tool",
            series_description="GSMedSeg segmentation",
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"the DICOM slices do not allow a segmentation: {error}; save as .seg.nrrd"
        ) from error
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)


def _kji_to_lps(image: Volume) -> NDArray[np.float64]:
    """(4, 4) from array indices (k, j, i) to DICOM's patient coordinates, mm."""
    origin, spacing, direction = lps_from_ijk_to_ras(image.ijk_to_ras)
    matrix = np.eye(4)
    matrix[:3, :3] = (np.reshape(direction, (3, 3)) * spacing)[:, ::-1]
    matrix[:3, 3] = origin
    return matrix


def _described(number: int, name: str, color: str) -> Any:
    import highdicom
    from highdicom.sr.coding import CodedConcept

    category, kind = (CodedConcept(*code) for code in codes_of(name))
    label = _NOT_IN_NAMES.sub("_", name)[:64]
    return highdicom.seg.SegmentDescription(
        number,
        label,
        category,
        kind,
        "SEMIAUTOMATIC",
        highdicom.AlgorithmIdentificationSequence(
            name="GSMedSeg",
            version=__version__,
            family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        tracking_uid=highdicom.UID(),
        tracking_id=label,
        display_color=highdicom.color.CIELabColor.from_rgb(
            *(int(color[at : at + 2], 16) for at in (1, 3, 5))
        ),
    )
