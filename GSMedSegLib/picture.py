"""A picture of a segmentation: slices with the objects' outlines and the clicks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from GSMedSegLib.prompts import Click

COLORS = ((255, 196, 0), (0, 200, 255), (255, 80, 160), (120, 230, 90), (190, 130, 255), (255, 130, 50))
"""One per object, in turn; told apart on grey by people who do not see red and green too."""

PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
GAP_PIXELS = 8
CAPTION_PIXELS = 18

WIDEST = 1.5
"""A slice's width at most, in heights of a row: the side view of a few wide slices becomes a low strip."""

SAMPLED_VOXELS = 1 << 22
"""About as many tell the range of greys of a larger image."""


def draw(
    image: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    clicks: Sequence[Sequence[Click]],
    spacing_kji_mm: tuple[float, float, float],
    height: int = 300,
    *,
    truth: NDArray[Any] | None = None,
    cuts_kji: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Three slices through every object, one row per object; k grows upward.

    Args:
        image: (K, J, I).
        labels: (K, J, I), object n has label n + 1.
        names: of the objects.
        clicks: of each object; those within two voxels of a slice are drawn, foreground as +, background as
            −.
        spacing_kji_mm: voxel sides, so that the slices have their true shape.
        height: pixels of a row.
        truth: (K, J, I) the labels as they should be, outlined in black and white dashes under the colours.
        cuts_kji: for each object the voxel to cut through; by default its first foreground click, or else
            its middle.

    Raises:
        ValueError: no objects, or not as many lists of clicks (or cuts) as names.
    """
    if not names or len(names) != len(clicks):
        raise ValueError(
            f"expected one list of clicks per object; got {len(names)} names and {len(clicks)} lists"
        )
    if cuts_kji is not None and len(cuts_kji) != len(names):
        raise ValueError(f"expected one cut per object; got {len(names)} names and {len(cuts_kji)} cuts")
    sample = image.ravel()[:: max(1, image.size // SAMPLED_VOXELS)]
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    scene = _Scene(image, labels, truth, clicks, spacing_kji_mm, height, low, high)
    rows = []
    for number, name in enumerate(names, start=1):
        at = cuts_kji[number - 1] if cuts_kji else _middle(labels == number, clicks[number - 1], image.shape)
        rows.append(_beside([scene.panel(axis, at, f"{name}, {plane}") for plane, axis in PLANES]))
    return stacked(rows)


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, on black.

    Args:
        rows: one or more.
    """
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "black")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _middle(mask: NDArray[np.bool_], clicks: Sequence[Click], shape: Sequence[int]) -> tuple[int, int, int]:
    """Where to cut: the first foreground click, else the middle of the object or of the image."""
    for click in clicks:
        if click.positive:
            return click.kji
    k, j, i = np.round(ndimage.center_of_mass(mask)).astype(int) if mask.any() else np.array(shape) // 2
    return int(k), int(j), int(i)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What slices are cut from, and how they are shown: as `draw` has it, grey from `low` to `high`."""

    image: NDArray[Any]
    labels: NDArray[Any]
    truth: NDArray[Any] | None
    clicks: Sequence[Sequence[Click]]
    spacing_kji_mm: tuple[float, float, float]
    height: int
    low: float
    high: float

    def panel(self, axis: int, at: tuple[int, int, int], caption: str) -> Image.Image:
        """The slice through a voxel, across an axis."""
        down, across = (a for a in range(3) if a != axis)
        rows, columns = self.image.shape[down], self.image.shape[across]
        tall, wide = rows * self.spacing_kji_mm[down], columns * self.spacing_kji_mm[across]
        scale = min(self.height / tall, WIDEST * self.height / wide)
        size = (max(1, round(scale * wide)), max(1, round(scale * tall)))
        panel = Image.new("RGB", (size[0], size[1] + CAPTION_PIXELS), "black")
        panel.paste(Image.fromarray(self._pixels(axis, at[axis], size)), (0, CAPTION_PIXELS))
        pen = ImageDraw.Draw(panel)
        pen.text((4, 3), caption, fill="white")
        for n, several in enumerate(self.clicks):
            for click in several:
                if abs(click.kji[axis] - at[axis]) > 2:
                    continue
                x = (click.kji[across] + 0.5) * size[0] / columns
                row = rows - 1 - click.kji[down] if down == 0 else click.kji[down]
                y = (row + 0.5) * size[1] / rows + CAPTION_PIXELS
                _cross(pen, x, y, COLORS[n % len(COLORS)], click.positive)
        return panel

    def _pixels(self, axis: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """A slice with its outlines, (height, width, 3)."""
        plane = (_cut(self.image, axis, index) - self.low) / max(self.high - self.low, 1e-9)
        grey = Image.fromarray((255 * np.clip(plane, 0, 1)).astype(np.uint8))
        pixels = np.array(grey.resize(size, Image.Resampling.BILINEAR).convert("RGB"))
        if self.truth is not None:
            y, x = np.indices(pixels.shape[:2])
            dashes = np.where((x + 2 * y) // 8 % 2 == 0, 255, 0)  # seen on dark and on bright
            for _, outline in _outlines(_cut(self.truth, axis, index), size):
                pixels[outline] = dashes[outline][:, None]
        for number, outline in _outlines(_cut(self.labels, axis, index), size):
            pixels[outline] = COLORS[(number - 1) % len(COLORS)]
        return pixels


def _cut(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """A slice as it is shown: k upward."""
    plane: NDArray[Any] = np.take(volume, index, axis)
    return plane if axis == 0 else plane[::-1]


def _outlines(labels: NDArray[Any], size: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each label of a slice, and the pixels just inside its border: (height, width) bool."""
    large = np.array(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    for number in np.unique(large[large > 0]):
        mask = large == number
        yield int(number), mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, color: tuple[int, int, int], positive: bool) -> None:
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill="black", outline=color, width=2)
    pen.line((x - 4, y, x + 4, y), fill=color, width=2)
    if positive:
        pen.line((x, y - 4, x, y + 4), fill=color, width=2)


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    width = sum(p.width for p in panels) + GAP_PIXELS * (len(panels) - 1)
    row = Image.new("RGB", (width, max(p.height for p in panels) + GAP_PIXELS), "black")
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + GAP_PIXELS
    return row
