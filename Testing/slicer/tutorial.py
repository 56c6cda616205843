"""The pictures of docs/slicer.md: `python -m Testing.slicer.tutorial` goes through it and takes them.

They are taken in the harness, which is like Slicer and is not Slicer.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import numpy as np
import slicer
from PIL import Image

from Testing.slicer.harness.desktop import SlicerDesktop

ROOT = Path(__file__).resolve().parents[2]
SIZE = (1200, 720)
COLORS = 256
"""Grey values and a few colours: small files, and nothing is lost that one would see."""
ENGINE_S = 120.0
SECOND_MM = (-51.0, -3.0, -4.0)
"""From a point in the first organ to one in the second."""


class Tutorial:
    """The steps, each with its picture.

    Args:
        desktop: an open one.
        folder: where pictures go.
    """

    def __init__(self, desktop: SlicerDesktop, folder: Path) -> None:
        self._desktop, self._folder = desktop, folder
        self._widget = desktop.open_module(ROOT / "GSMedSeg" / "GSMedSeg.py")
        self._ui = self._widget.panel.ui

    def run(self) -> None:
        """All of them."""
        from GSMedSegUI.sample import add_sample_volume

        desktop, ui = self._desktop, self._ui
        volume, inside = add_sample_volume()
        desktop.show_volume(volume)
        self._show_at(inside)
        self._widget.panel.scene_changed()
        self._take("1-image")

        desktop.click(ui.foregroundButton)
        self._click(inside)
        self._name("Organ", (128, 174, 128))
        self._take("2-foreground")

        desktop.click(ui.backgroundButton)
        self._click(inside + np.array((0.0, -36.0, 0.0)))
        self._take("3-background")

        desktop.click(ui.acceptButton)
        desktop.click(ui.boxButton)
        second = inside + np.array(SECOND_MM)
        self._show_at(second)
        for corner in ((14.0, 22.0, 0.0), (-14.0, -22.0, 0.0)):
            desktop.slice_view("Red").click_ras(second + np.array(corner))
        self._wait()
        self._name("Neighbour", (241, 214, 145))
        self._take("4-box")

        desktop.click(ui.show3DButton)
        slicer.app.layoutManager().resetThreeDViews()
        self._take("5-3d")
        self._take("")

        ui.clickSection.collapsed = True
        ui.optionsSection.collapsed = ui.engineSection.collapsed = False
        desktop.process_events()
        self._take("6-engine")

    def _show_at(self, ras: np.ndarray) -> None:
        for name in ("Red", "Yellow", "Green"):
            self._desktop.slice_view(name).view.show_position(ras)

    def _click(self, ras: np.ndarray) -> None:
        self._desktop.slice_view("Red").click_ras(ras)
        self._wait()

    def _wait(self) -> None:
        self._desktop.wait_until(
            lambda: self._widget.logic.segment_id and not self._widget.logic.busy, ENGINE_S
        )

    def _name(self, name: str, color: tuple[int, int, int]) -> None:
        """What a double click in the table does. The harness has none of Slicer's colour tables."""
        segments = self._widget.logic.interaction.segmentation.GetSegmentation()
        segment = segments.GetSegment(self._widget.logic.segment_id)
        segment.SetName(name)
        segment.SetColor(*(part / 255 for part in color))
        self._desktop.process_events()

    def _take(self, name: str) -> None:
        """A picture of the window; without a name it is the one of the README."""
        raw = self._folder / "raw.png"
        self._desktop.screenshot(raw)
        image: Any = Image.open(io.BytesIO(raw.read_bytes())).convert("RGB")
        raw.unlink()
        path = self._folder / ("-".join(filter(None, ["slicer", name])) + ".png")
        image.quantize(COLORS, Image.Quantize.FASTOCTREE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1024} KB")


def main() -> None:
    """Writes the pictures to docs/, or to the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with SlicerDesktop(size=SIZE) as desktop:
        Tutorial(desktop, folder).run()


if __name__ == "__main__":
    main()
