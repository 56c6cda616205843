"""A picture of a segmentation: slices with the objects' outlines and the clicks."""

from __future__ import annotations

from collections.abc import Sequence
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


def draw(
    image: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    clicks: Sequence[Sequence[Click]],
    spacing_kji_mm: tuple[float, float, float],
    height: int = 300,
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

    Raises:
        ValueError: no objects, or not as many lists of clicks as names.
    """
    if not names or len(names) != len(clicks):
        raise ValueError(
            f"expected one list of clicks per object; got {len(names)} names and {len(clicks)} lists"
        )
    low, high = np.percentile(image, (0.5, 99.5))
    grey = (255 * np.clip((image - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
    rows = []
    for number, name in enumerate(names, start=1):
        at = _middle(labels == number, clicks[number - 1], image.shape)
        panels = [
            _panel(grey, labels, clicks, axis, at, spacing_kji_mm, height, f"{name}, {plane}")
            for plane, axis in PLANES
        ]
        rows.append(_beside(panels))
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


def _panel(
    grey: NDArray[np.uint8],
    labels: NDArray[Any],
    clicks: Sequence[Sequence[Click]],
    axis: int,
    at: tuple[int, int, int],
    spacing_kji_mm: tuple[float, float, float],
    height: int,
    caption: str,
) -> Image.Image:
    down, across = (a for a in range(3) if a != axis)
    plane, cut = np.take(grey, at[axis], axis), np.take(labels, at[axis], axis)
    upward = down == 0
    if upward:
        plane, cut = plane[::-1], cut[::-1]
    tall, wide = plane.shape[0] * spacing_kji_mm[down], plane.shape[1] * spacing_kji_mm[across]
    size = (max(1, round(height * wide / tall)), height)
    picture = Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    pixels = np.array(picture)
    large = np.array(Image.fromarray(cut.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    for number in np.unique(large[large > 0]):
        mask = large == number
        outline = mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)
        pixels[outline] = COLORS[(int(number) - 1) % len(COLORS)]
    panel = Image.new("RGB", (size[0], size[1] + CAPTION_PIXELS), "black")
    panel.paste(Image.fromarray(pixels), (0, CAPTION_PIXELS))
    pen = ImageDraw.Draw(panel)
    pen.text((4, 3), caption, fill="white")
    for n, several in enumerate(clicks):
        for click in several:
            if abs(click.kji[axis] - at[axis]) > 2:
                continue
            x = (click.kji[across] + 0.5) * size[0] / plane.shape[1]
            row = plane.shape[0] - 1 - click.kji[down] if upward else click.kji[down]
            y = (row + 0.5) * size[1] / plane.shape[0] + CAPTION_PIXELS
            _cross(pen, x, y, COLORS[n % len(COLORS)], click.positive)
    return panel


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
