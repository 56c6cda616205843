"""ITK's own warnings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import SimpleITK as sitk


@contextlib.contextmanager
def no_itk_warnings() -> Iterator[None]:
    """What ITK would print as a warning is an error here, or of no concern to the user."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
