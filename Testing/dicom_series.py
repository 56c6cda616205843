"""A made-up DICOM series for tests, in files of a slice each or in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

DIRECTION = np.array([[0.6, 0.0, 0.8], [0.64, 0.6, -0.48], [-0.48, 0.8, 0.36]])
SPACING_IJK_MM = (0.5, 0.8, 2.4)
ORIGIN_LPS_MM = np.array([10.0, -20.0, 30.0])


def write_series(image: NDArray[np.int16], folder: Path) -> list[Path]:
    """An oblique CT series of an image (K, J, I), one file a slice, turned in space."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    for k, plane in enumerate(image):
        piece = sitk.GetImageFromArray(plane[None])
        piece.SetSpacing(SPACING_IJK_MM)
        at = ORIGIN_LPS_MM + DIRECTION[:, 2] * SPACING_IJK_MM[2] * k
        entries = {
            "0008|0060": "CT", "0010|0010": "Nobody", "0010|0020": "0",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000d": "1.2.826.1", "0020|000e": "1.2.826.2", "0008|0018": f"1.2.826.3.{k + 1}",
            "0020|0013": str(k + 1), "0020|0032": "\\".join(f"{x:.6f}" for x in at), "0018|0050": "2.4",
            "0020|0037": "\\".join(f"{x:.6f}" for x in DIRECTION.T[:2].ravel()), "0020|0052": "1.2.826.4",
        }  # fmt: skip
        for tag, value in entries.items():
            piece.SetMetaData(tag, value)
        files.append(folder / f"{k:03}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(piece)
    return files


def enhanced(slices: list[Path], file: Path, at_mm: list[float]) -> Path:
    """The slices as the frames of one file, at these places along k; each as thick as they are apart."""
    import pydicom

    first = pydicom.dcmread(slices[0])
    made = pydicom.Dataset()
    made.file_meta = first.file_meta
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.SOPInstanceUID, made.Modality = first.SOPInstanceUID, "CT"
    made.StudyInstanceUID, made.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(made, name, getattr(first, name))
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.NumberOfFrames = len(slices)
    measures, turned, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.5], 2.4
    turned.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    made.SharedFunctionalGroupsSequence, frames = [shared], []
    for n, mm in enumerate(at_mm):
        frame, position, content = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [f"{x:.6f}" for x in ORIGIN_LPS_MM + DIRECTION[:, 2] * mm]
        content.StackID, content.InStackPositionNumber = "1", n + 1
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = frames
    made.PixelData = b"".join(pydicom.dcmread(file).PixelData for file in slices)
    made.save_as(file, enforce_file_format=True)
    return file
