"""Synthetic scenes: label maps, real or invented, painted with random contrasts.

Every scene is a small cube: an image (S, S, S) float32 and the labels (S, S, S) int32 that a click may ask
for (0 is none of them). What a click cannot ask for (organelles, background) is painted but not labelled.

Source: the idea of training on random contrasts is SynthSeg's (Billot et al., Medical Image Analysis 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from Training.ultrasound import ultrasound

Array = NDArray[Any]

ULTRASOUND_SHARE = 0.12
"""How often organs, lesions and vessels are seen by ultrasound."""


@dataclass(frozen=True)
class Scene:
    """An image and what may be clicked in it.

    Attributes:
        image: (S, S, S) float32, any range.
        labels: (S, S, S) int32, 0 for nothing.
        main: the label the scene was made around, 0 for any.
        outside: (S, S, S) bool, samples beyond the volume the scene was cut from; None for none.
    """

    image: Array
    labels: Array
    main: int = 0
    outside: Array | None = None


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> Array:
    """(size, size, size) float32 noise, mean 0, variance about 0.3, details about `scale` voxels wide."""
    coarse = max(2, int(np.ceil(size / scale)) + 1)
    noise = rng.standard_normal((coarse,) * 3).astype(np.float32)
    return _stretch(noise, size)


def _stretch(volume: Array, size: int) -> Array:
    """Linear interpolation of a cube to (size, size, size), one axis after the other."""
    n = volume.shape[0]
    at = np.linspace(0, n - 1, size, dtype=np.float32)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low.astype(np.float32)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = size
        w = part.reshape(shape)
        volume = np.take(volume, low, axis) * (1 - w) + np.take(volume, low + 1, axis) * w
    return volume


def white_noise(rng: np.random.Generator, image: Array) -> Array:
    """Standard normal noise of an image's shape, float32."""
    return rng.standard_normal(image.shape, dtype=np.float32)


def contrast(image: Array) -> float:
    """The spread of an image's common intensities: a few very bright or dark parts do not count."""
    low, high = np.percentile(image[::2, ::2, ::2], (25, 75))
    std = float(image.std())
    return float(np.clip((high - low) / 1.35, 0.2 * std, std)) + 1e-6


def paint(rng: np.random.Generator, labels: Array, spread: float | None = None) -> Array:
    """Give every label its own random brightness and texture.

    Labels sometimes share a brightness, as organs do, or are far brighter or darker than all others, as bone
    and air are in CT; textures range from flat to strong.
    """
    values, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    if spread is None:
        spread = float(rng.choice([0.15, 0.4, 1.0], p=[0.2, 0.3, 0.5]))
    steps = rng.permutation(len(values)) + rng.random(len(values))  # spread out: few labels look the same
    means = 0.5 + spread * (steps / len(values) - 0.5)
    if len(values) > 3 and rng.random() < 0.1:
        means = np.round(means * 6) / 6
    if len(values) > 3 and rng.random() < 0.35:  # air, bone, metal
        extreme = rng.random(len(values)) < 0.2
        means = means + extreme * spread * rng.uniform(1, 4, len(values)) * rng.choice((-1, 1), len(values))
    stds = 0.1 * spread * rng.random(len(values))
    grain = smooth_noise(rng, labels.shape[0], float(rng.choice([1, 2, 4, 8])))
    return np.asarray(means[index] + stds[index] * grain, np.float32)


def scan(rng: np.random.Generator, image: Array) -> Array:
    """What a scanner does to a scene: partial volume, thick slices, bias field, noise, gamma, inversion."""
    size = image.shape[0]
    spread = contrast(image)
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        axis, step = int(rng.integers(3)), int(rng.integers(2, 5))
        image = thick_slices(image, axis, step)
    if rng.random() < 0.4:
        image = image * np.exp(rng.uniform(0.05, 0.3) * smooth_noise(rng, size, size / 2))
    if rng.random() < 0.7:
        level = spread * 10 ** rng.uniform(-1.5, -0.5)
        noise = white_noise(rng, image)
        if rng.random() < 0.4:
            noise = ndimage.gaussian_filter(noise, rng.uniform(0.5, 1.0))
            noise /= noise.std()
        image = image * (1 + level * noise) if rng.random() < 0.15 else image + level * noise
    return remap(rng, image)


def acquire(rng: np.random.Generator, image: Array, labels: Array, main: int = 0) -> Scene:
    """The scene that a scanner, or now and then an ultrasound probe, makes of painted labels."""
    if rng.random() < ULTRASOUND_SHARE:
        return Scene(*ultrasound(rng, image, labels), main)
    return Scene(scan(rng, image), labels, main)


def thick_slices(image: Array, axis: int, step: int) -> Array:
    """Average `step` neighbouring slices and interpolate back: an anisotropic acquisition."""
    n = image.shape[axis]
    thick = ndimage.uniform_filter1d(image, step, axis)
    thick = np.take(thick, range(step // 2, n, step), axis)
    factors = [1.0, 1.0, 1.0]
    factors[axis] = n / thick.shape[axis]
    return np.asarray(ndimage.zoom(thick, factors, order=1, mode="nearest", grid_mode=True))


def remap(rng: np.random.Generator, image: Array) -> Array:
    """Random gamma and, now and then, inversion."""
    low, high = np.percentile(image[::2, ::2, ::2], (0.5, 99.5))
    image = (image - low) / (high - low + 1e-6)
    if rng.random() < 0.15:
        image = 1 - image
    if rng.random() < 0.4:
        image = np.clip(image, 0, None) ** np.exp(rng.uniform(-0.6, 0.6))
    return image.astype(np.float32)


def regions(rng: np.random.Generator, size: int, count: int, scale: float) -> Array:
    """(size, size, size) int32 partition 1..count by the largest of `count` smooth noises."""
    noises = np.stack([smooth_noise(rng, size, scale) for _ in range(count)])
    return np.asarray(noises.argmax(0), np.int32) + 1


def grid(size: int) -> Array:
    """(3, size, size, size) float32 voxel coordinates."""
    return np.indices((size,) * 3, dtype=np.float32)


def warped_grid(rng: np.random.Generator, size: int, strength: float, scale: float) -> Array:
    """Voxel coordinates bent by smooth noise."""
    return grid(size) + strength * np.stack([smooth_noise(rng, size, scale) for _ in range(3)])


def rotation(rng: np.random.Generator) -> Array:
    """A random 3×3 rotation, or its mirror image."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def ellipsoid(rng: np.random.Generator, points: Array, center: Array, radius: float) -> Array:
    """Squared normalised distance (1 at the surface) to a randomly turned ellipsoid."""
    radii = radius * np.exp(rng.normal(0, 0.35, 3))
    turned = np.tensordot(rotation(rng), points - center[:, None, None, None], 1)
    return np.asarray(((turned / radii[:, None, None, None]) ** 2).sum(0))


def shapes(rng: np.random.Generator, size: int) -> Scene:
    """Lumpy solids over background tissue: organs, lesions, nodules."""
    labels = np.zeros((size,) * 3, np.int32)
    background = regions(rng, size, int(rng.integers(1, 6)), rng.uniform(8, size))
    points = warped_grid(rng, size, rng.uniform(0, 4), rng.uniform(6, 20))
    count = int(rng.integers(1, 9))
    for n in range(1, count + 1):
        center = (rng.random(3) * size if n > 1 else size * (0.5 + rng.uniform(-0.2, 0.2, 3))).astype(
            np.float32
        )
        radius = size * np.exp(rng.uniform(np.log(0.06), np.log(0.8 if n == 1 else 0.25)))
        labels[(ellipsoid(rng, points, center, radius) < 1) & ((labels != 1) | (n == 1))] = n
    everything = np.where(labels > 0, labels + 100, background)
    asked = everything if rng.random() < 0.4 else labels
    return acquire(rng, paint(rng, everything), asked)


def tubes(rng: np.random.Generator, size: int) -> Scene:
    """Vessels, nerves, airways, cords: thick random walks, some with a wall."""
    background = regions(rng, size, int(rng.integers(1, 5)), rng.uniform(8, size))
    labels = np.zeros((size,) * 3, np.int32)
    walls = np.zeros((size,) * 3, bool)
    for n in range(1, int(rng.integers(1, 5)) + 1):
        radius = np.exp(rng.uniform(np.log(1.5), np.log(size / 6)))
        direction = rng.standard_normal(3)
        at = size * (0.5 + rng.uniform(-0.3, 0.3, 3)) - direction / np.linalg.norm(direction) * size
        line = np.zeros((size,) * 3, bool)
        for _ in range(int(3 * size)):
            direction = direction / np.linalg.norm(direction) + 0.12 * rng.standard_normal(3)
            at = at + 0.8 * direction / np.linalg.norm(direction)
            voxel = np.round(at).astype(int)
            if (voxel >= 0).all() and (voxel < size).all():
                line[tuple(voxel)] = True
        if not line.any():
            continue
        distance = ndimage.distance_transform_edt(~line)
        distance = distance + rng.uniform(0, 0.2) * radius * smooth_noise(rng, size, 6)
        labels[distance < radius] = n
        if rng.random() < 0.3:
            walls |= (distance >= radius) & (distance < radius * rng.uniform(1.2, 1.6))
    painted = np.where(labels > 0, labels + 100, np.where(walls, 200, background))
    return acquire(rng, paint(rng, painted), labels)


def cells(rng: np.random.Generator, size: int) -> Scene:
    """Packed cells with bright or dark membranes, as in light-sheet plant tissue or electron microscopy."""
    spacing = float(np.exp(rng.uniform(np.log(size / 7), np.log(1.2 * size))))
    count = int(np.clip((1.6 * size / spacing) ** 3, 4, 400))
    centers = (rng.random((count, 3)) * 1.6 - 0.3) * size
    stretch = np.exp(rng.normal(0, 0.25, 3))
    strength = rng.choice([0.0, 0.15, 0.35]) * spacing
    points = warped_grid(rng, size, strength, max(4.0, spacing * rng.uniform(0.4, 1.0)))
    distances, nearest = cKDTree(centers * stretch).query(
        (points.reshape(3, -1).T * stretch).astype(np.float32), k=2, workers=1
    )
    labels = nearest[:, 0].reshape((size,) * 3).astype(np.int32) + 1
    gap = (distances[:, 1] - distances[:, 0]).reshape((size,) * 3)
    if rng.random() < 0.3:
        merged = rng.integers(0, max(2, count // 2), count + 1)
        labels = (merged[labels] + 1).astype(np.int32)
        gap = 2 * distance_to_border(labels)
    return packed(rng, labels, gap)


def neurites(rng: np.random.Generator, size: int) -> Scene:
    """Packed long processes, as of neurons: every voxel belongs to the nearest of many winding lines."""
    thickness = float(np.exp(rng.uniform(np.log(4), np.log(size / 3))))
    count = int(np.clip(1.5 * (size / thickness) ** 2, 4, 150))
    winding = rng.uniform(0.05, 0.3)
    ways = rng.standard_normal((count, 1, 3)) + winding * rng.standard_normal((count, size, 3)).cumsum(1)
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    lines = 1.5 * (ways.cumsum(1) - ways.sum(1, keepdims=True) / 2) + size * rng.random((count, 1, 3))
    points = warped_grid(rng, size, rng.uniform(0, 0.3) * thickness, max(4.0, thickness))
    _, nearest = cKDTree(lines.reshape(-1, 3)).query(points.reshape(3, -1).T, workers=1)
    labels = (nearest // size).reshape((size,) * 3).astype(np.int32) + 1
    return packed(rng, labels, 2 * distance_to_border(labels))


def layers(rng: np.random.Generator, size: int) -> Scene:
    """Folded sheets, one within the other: the walls of organs, a cortex, skin and fascia."""
    points = warped_grid(rng, size, rng.uniform(0, 5), rng.uniform(8, 24))
    depth = np.sqrt(
        ellipsoid(rng, points, size * (0.5 + rng.uniform(-0.2, 0.2, 3)), size * rng.uniform(0.2, 0.6))
    )
    folds = smooth_noise(rng, size, size * np.exp(rng.uniform(np.log(0.1), np.log(0.5))))
    depth = depth + rng.uniform(0, 0.5) * folds
    borders = np.sort(rng.uniform(0.3, 1.5, int(rng.integers(2, 7))))
    bands = np.searchsorted(borders, depth).astype(np.int32)
    background = regions(rng, size, int(rng.integers(1, 4)), rng.uniform(8, size))
    outermost = bands == len(borders)
    labels = np.where(outermost, 0, bands + 1)
    return acquire(rng, paint(rng, np.where(outermost, 100 + background, labels)), labels)


def distance_to_border(labels: Array) -> Array:
    """Voxels from each of a label map to the nearest one with another label behind it along an axis."""
    edge = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        step = np.diff(labels, axis=axis) != 0
        lower = [slice(None)] * labels.ndim
        lower[axis] = slice(0, -1)
        edge[tuple(lower)] |= step
    return np.asarray(ndimage.distance_transform_edt(~edge))


def packed(rng: np.random.Generator, labels: Array, gap: Array, main: int = 0) -> Scene:
    """Packed cells with membranes, now and then with organelles, a space between them and holes.

    Args:
        rng: the source of chance.
        labels: (S, S, S) int32, a cell each.
        gap: (S, S, S) how much further away the next cell is, in voxels.
        main: the cell that the scene was made around, 0 for any.
    """
    size = labels.shape[0]
    width = rng.uniform(0.8, 3.0)
    membrane = np.exp(-((gap / width) ** 2)).astype(np.float32)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    inside = paint(rng, labels, spread=float(rng.choice([0.0, 0.1, 0.5])))
    inside = inside + rng.uniform(0, 0.3) * smooth_noise(rng, size, rng.uniform(1, 6))
    if rng.random() < 0.5:
        organelles = smooth_noise(rng, size, rng.uniform(3, 8)) > rng.uniform(1.2, 2.0)
        inside = inside + rng.uniform(-0.6, 0.6) * (organelles & (membrane < 0.2))
    image = inside + sign * rng.uniform(0.4, 1.5) * membrane
    if rng.random() < 0.3:
        labels[ndimage.uniform_filter(membrane, 3) > 0.5] = 0
    if rng.random() < 0.3:
        empty = smooth_noise(rng, size, size / 2) > 0.8
        labels[empty] = 0
        image = np.where(empty, rng.uniform(-0.5, 0.5), image)
    return Scene(scan(rng, image.astype(np.float32)), labels, main)


def nuclei(rng: np.random.Generator, size: int) -> Scene:
    """Scattered blobs of one kind, some touching, bright or dark."""
    radius = float(np.exp(rng.uniform(np.log(2.5), np.log(size / 4))))
    room = 2 * radius * rng.uniform(0.9, 1.6)
    count = int(np.clip((size / room) ** 3, 2, 80))
    points = warped_grid(rng, size, rng.uniform(0, 0.2) * radius, max(4.0, radius))
    labels = np.zeros((size,) * 3, np.int32)
    depth = np.full((size,) * 3, np.inf, np.float32)
    for n in range(1, count + 1):
        center = rng.random(3).astype(np.float32) * size
        reach = int(np.ceil(2.2 * radius)) + 3
        window = tuple(slice(max(0, int(c) - reach), min(size, int(c) + reach + 1)) for c in center)
        inside = ellipsoid(rng, points[(slice(None), *window)], center, radius)
        here = (inside < 1) & (inside < depth[window])
        labels[window][here] = n
        depth[window][here] = inside[here]
    brightness = rng.uniform(0.4, 1.2, count + 1)
    brightness[0] = 0
    image = brightness[labels] * (1 + rng.uniform(0, 0.4) * smooth_noise(rng, size, rng.uniform(1, 5)))
    image = image + rng.uniform(0, 0.3) * smooth_noise(rng, size, rng.uniform(3, 20))
    return Scene(scan(rng, image.astype(np.float32)), labels)


INVENTED: tuple[tuple[float, Callable[[np.random.Generator, int], Scene]], ...] = (
    (0.27, shapes),
    (0.13, tubes),
    (0.22, cells),
    (0.13, neurites),
    (0.1, layers),
    (0.15, nuclei),
)
"""The kinds of invented scene and how often each is drawn."""


def invented_scene(rng: np.random.Generator, size: int) -> Scene:
    """A scene of a random kind."""
    kind = rng.choice(len(INVENTED), p=[share for share, _ in INVENTED])
    return INVENTED[kind][1](rng, size)


def paste_lesions(rng: np.random.Generator, labels: Array, masks: list[Array]) -> Array:
    """Put a few lesions, scaled and turned, into a label map; each gets a label of its own."""
    labels = labels.copy()
    size, top = labels.shape[0], int(labels.max())
    for n in range(int(rng.integers(1, 4))):
        mask = masks[int(rng.integers(len(masks)))]
        zoom = rng.uniform(0.6, 1.8)
        if max(mask.shape) * zoom > 0.7 * size:
            zoom = 0.7 * size / max(mask.shape)
        lesion = ndimage.zoom(mask.astype(np.float32), zoom, order=1) > 0.5
        lesion = np.rot90(lesion, int(rng.integers(4)), axes=tuple(rng.choice(3, 2, replace=False)))
        if lesion.sum() < 8:
            continue
        corner = [int(rng.integers(0, size - s + 1)) for s in lesion.shape]
        window = tuple(slice(c, c + s) for c, s in zip(corner, lesion.shape, strict=True))
        labels[window][lesion] = top + n + 1
    return labels


def painted_scene(rng: np.random.Generator, labels: Array, main: int, lesions: list[Array]) -> Scene:
    """A scene from a piece of a real label map, sometimes with lesions pasted in.

    Args:
        rng: the source of chance.
        labels: (S, S, S) int32 labels of the piece.
        main: the label it was cut around.
        lesions: boolean masks to paste.
    """
    body = labels
    if (labels == 0).mean() > 0.5:
        tissue = regions(rng, labels.shape[0], int(rng.integers(1, 5)), rng.uniform(8, 32))
        near = ndimage.gaussian_filter((labels > 0).astype(np.float32), 4) > 0.02
        body = np.where(labels > 0, labels, np.where(near | (rng.random() < 0.5), -tissue, 0))
    if lesions and rng.random() < 0.35:
        labels = paste_lesions(rng, labels, lesions)
        body = np.where(labels > 0, labels, body)
    return acquire(rng, paint(rng, body), labels, main)
