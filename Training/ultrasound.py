"""What an ultrasound probe makes of a scene: speckle, bright interfaces, shadows, a fan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]


def ultrasound(rng: np.random.Generator, image: Array, labels: Array) -> tuple[Array, Array]:
    """A B-mode volume of a scene, as a probe swept over it shows it.

    Every axis may be the beam's or the sweep's. Speckle is the envelope of scattered waves: complex Gaussian
    noise, as strong as the tissue is bright, blurred by the probe's resolution (finer along the beam than
    across).

    Args:
        rng: the source of chance.
        image: (S, S, S), any range: what is bright scatters much.
        labels: (S, S, S) integers.

    Returns:
        the image, (S, S, S) float32 in 0..1, and the labels, 0 where the fan does not reach.

    Source: Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Transactions on Sonics and
        Ultrasonics 1983.
    """
    beam, lateral, sweep = rng.permutation(3)
    echo = _standardised(image)
    blur = np.zeros(3)
    blur[beam], blur[lateral], blur[sweep] = rng.uniform((0.3, 0.6, 0.5), (0.8, 1.8, 1.8))
    amplitude = 10 ** (rng.uniform(4, 14) / 20 * echo)
    looks = int(rng.integers(1, 5))  # seen from several sides, as most machines do
    envelope = np.mean([speckle(rng, amplitude, blur) for _ in range(looks)], axis=0)
    envelope += rng.uniform(0, 0.8) * ndimage.gaussian_gradient_magnitude(echo, 0.7) * amplitude
    envelope *= transmission(rng, echo, int(beam))
    decibels = 20 * np.log10(envelope / np.percentile(envelope, 99.5) + 1e-6)
    shown = np.clip(1 + decibels / rng.uniform(35, 60), 0, 1)
    if rng.random() < 0.5:
        reached = fan(rng, image.shape[0], int(beam), int(lateral))
        shown, labels = np.where(reached, shown, 0), np.where(reached, labels, 0)
    return shown.astype(np.float32), labels


def _standardised(image: Array) -> Array:
    """An image with median 0 and its common grey values within -1..1; -3..3 at most."""
    low, middle, high = np.percentile(image[::2, ::2, ::2], (10, 50, 90))
    spread = max(high - low, float(image.std()), 1e-6)
    return np.asarray(np.clip(2 * (image - middle) / spread, -3, 3))


def speckle(rng: np.random.Generator, amplitude: Array, blur: Array) -> Array:
    """The envelope of waves scattered back: Rayleigh distributed, with mean 1 where `amplitude` is 1.

    Args:
        rng: the source of chance.
        amplitude: (S, S, S) how strongly each place scatters.
        blur: (3,) standard deviations of the probe's resolution, in voxels.
    """
    waves = [
        ndimage.gaussian_filter(amplitude * rng.standard_normal(amplitude.shape), blur) for _ in range(2)
    ]
    point = np.zeros((13, 13, 13))
    point[6, 6, 6] = 1
    power = float((ndimage.gaussian_filter(point, blur) ** 2).sum())
    return np.asarray(np.hypot(*waves) / np.sqrt(power * np.pi / 2))


def transmission(rng: np.random.Generator, echo: Array, beam: int) -> Array:
    """The share of the wave that gets to a place: less with depth, now and then little behind reflectors.

    Args:
        rng: the source of chance.
        echo: (S, S, S) how strongly each place reflects, 1 being bright.
        beam: the axis along which the wave goes, from its first voxel on.
    """
    loss = np.full(echo.shape, rng.uniform(0, 1.0) / echo.shape[beam])
    if rng.random() < 0.4:
        loss += rng.uniform(0.1, 0.5) * (echo > max(1.0, float(np.quantile(echo, 0.93))))
    return np.asarray(np.exp(-np.cumsum(loss, axis=beam)))


def fan(rng: np.random.Generator, size: int, beam: int, lateral: int) -> Array:
    """(size, size, size) bool: what is reached by beams that spread from a point before the volume.

    `beam` is the axis that the middle beam follows, `lateral` the one they spread along; `size` is in voxels.
    """
    apex = -size * rng.uniform(0.1, 0.6)
    middle = size * rng.uniform(0.35, 0.65)
    axes = np.ogrid[:size, :size, :size]
    depth, aside = axes[beam] - apex, axes[lateral] - middle
    within = np.abs(aside) < np.tan(rng.uniform(0.45, 0.8)) * depth
    within &= np.hypot(depth, aside) < rng.uniform(1.0, 1.5) * size - apex
    return np.asarray(np.broadcast_to(within, (size,) * 3))
