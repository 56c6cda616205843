"""The demonstration: two structures of a made-up image segmented from clicks, scored after each click."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from GSMedSegLib.atomic import atomic_path
from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.metrics import dice
from GSMedSegLib.picture import draw
from GSMedSegLib.predictor import Predictor, load_engine
from GSMedSegLib.simulation import next_click
from GSMedSegLib.volume_io import write_labelmap, write_volume

SHAPE = (72, 112, 128)
SPACING_KJI_MM = (2.0, 1.2, 1.2)
ORIGIN_RAS = (70.0, 60.0, -40.0)
CLICKS = 4
SEGMENTED = ("organ", "lesion")

STRUCTURES: tuple[tuple[str, float, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("body", 90.0, (0.5, 0.5, 0.5), (0.55, 0.44, 0.44)),
    ("spine", 230.0, (0.5, 0.8, 0.5), (0.6, 0.07, 0.06)),
    ("organ", 130.0, (0.48, 0.47, 0.36), (0.3, 0.24, 0.17)),
    ("spleen", 150.0, (0.55, 0.55, 0.74), (0.2, 0.15, 0.07)),
    ("vessel", 200.0, (0.5, 0.62, 0.52), (0.6, 0.035, 0.03)),
    ("lesion", 75.0, (0.42, 0.42, 0.32), (0.09, 0.07, 0.06)),
)
"""Name, brightness, centre and radii as shares of the image (k, j, i); later ones lie on top."""


def make_image() -> tuple[NDArray[np.int16], dict[str, NDArray[np.bool_]]]:
    """A noisy image of lumpy solids, the same every time.

    Returns:
        (K, J, I) image, and the true mask of each structure where nothing lies on top of it.
    """
    rng = np.random.default_rng(7)
    grid = np.indices(SHAPE, dtype=float)
    grid += [_lumps(rng, 10) * size / 40 for size in SHAPE]
    where, brightness = np.zeros(SHAPE, int), np.zeros(SHAPE)
    for number, (_, value, center, radii) in enumerate(STRUCTURES, start=1):
        apart = [(axis / size - c) / r for axis, size, c, r in zip(grid, SHAPE, center, radii)]
        inside = sum(a**2 for a in apart) < 1
        where[inside], brightness[inside] = number, value
    image = ndimage.gaussian_filter(brightness, 0.7) * (1 + 0.1 * _lumps(rng, 30)) + rng.normal(0, 9, SHAPE)
    masks = {name: where == number for number, (name, *_) in enumerate(STRUCTURES, start=1)}
    return np.round(image).astype(np.int16), masks


def _lumps(rng: np.random.Generator, width: float) -> NDArray[np.float64]:
    """Smooth noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE), width / 2)
    return np.asarray(noise / noise.std())


def ijk_to_ras() -> NDArray[np.float64]:
    """The made-up image's place in the world: an axial scan, patient on the back."""
    k, j, i = SPACING_KJI_MM
    matrix = np.diag([-i, -j, k, 1.0])
    matrix[:3, 3] = ORIGIN_RAS
    return matrix


def run_demo(folder: Path) -> None:
    """Segment two structures of the made-up image and write image, label map, picture and clicks.

    Args:
        folder: where to write; made if it does not exist.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    image, truths = make_image()
    matrix = ijk_to_ras()
    predictor = Predictor(load_engine("compact"))
    predictor.set_image(image, matrix)
    print(f"{SHAPE[2]}×{SHAPE[1]}×{SHAPE[0]} voxels; {' and '.join(SEGMENTED)} from simulated clicks:")
    with tqdm(total=CLICKS * len(SEGMENTED), unit="click", file=sys.stderr) as bar:
        for name in SEGMENTED:
            _segment(predictor, name, truths[name], bar)
    labels = predictor.labels()
    names, clicks = predictor.objects, [predictor.ledger.clicks(name) for name in predictor.objects]
    write_volume(folder / "image.nii.gz", image, matrix)
    write_labelmap(folder / "labels.nii.gz", labels, matrix)
    predictor.ledger.save(folder / "clicks.json")
    with atomic_path(folder / "picture.png") as path:
        draw(image, labels, names, clicks, SPACING_KJI_MM).save(path)
    print(f"Written to {folder}: image.nii.gz, labels.nii.gz, clicks.json, picture.png")
    print(
        "The same mask from the saved clicks: "
        f"gsmedseg segment {folder}/image.nii.gz --clicks {folder}/clicks.json -o again.nii.gz"
    )


def _segment(predictor: Predictor, name: str, truth: NDArray[np.bool_], bar: tqdm) -> None:
    """Place simulated clicks on one structure and say how well each one did."""
    predictor.add_object(name)
    mask = np.zeros_like(truth)
    for number in range(1, CLICKS + 1):
        click = next_click(truth, mask)
        if click is None:
            break
        predictor.add_click(name, click.kji, click.positive)
        mask = predictor.predict(name)
        k, j, i = click.kji
        kind = "foreground" if click.positive else "background"
        bar.write(
            f"  {name:<8} click {number} ({kind} at i,j,k = {i},{j},{k}): Dice {dice(truth, mask):.3f}",
            file=sys.stdout,
        )
        bar.update()
