"""Regions that an image shows by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from GSMedSegLib.case_source import find_sources
from Training.regions import GRAINS, Grain, find_regions, load_regions


def two_boxes() -> np.ndarray:
    """Background 0, a box of 10×12×12 voxels at 1.0 and one of 8³ at 0.5."""
    image = np.zeros((40, 40, 40), np.float32)
    image[5:15, 5:17, 5:17] = 1.0
    image[25:33, 25:33, 25:33] = 0.5
    return image


def test_boxes_become_regions_and_the_background_does_not(rng: np.random.Generator):
    image = two_boxes() + 0.01 * rng.standard_normal((40, 40, 40)).astype(np.float32)
    labels = find_regions(image, (1.0, 1.0, 1.0), Grain(1.0, 0.3))
    first, second = labels[10, 11, 11], labels[29, 29, 29]
    assert first > 0
    assert second > 0
    assert first != second
    assert labels[0, 0, 39] == 0
    for label, truth in ((first, image > 0.75), (second, (image > 0.25) & (image < 0.75))):
        both = 2 * ((labels == label) & truth).sum() / ((labels == label).sum() + truth.sum())
        assert both > 0.9


def test_a_region_keeps_its_shape_whatever_the_spacing_along_an_axis():
    """A volume with half the slices of twice the thickness shows the same box."""
    fine = find_regions(two_boxes(), (1.0, 1.0, 1.0), Grain(1.0, 0.3))
    thick = find_regions(two_boxes()[::2], (2.0, 1.0, 1.0), Grain(1.0, 0.3))
    fine_box, thick_box = fine == fine[10, 11, 11], thick == thick[5, 11, 11]
    assert abs(2 * thick_box.sum() / fine_box.sum() - 1) < 0.25


def test_a_thin_stack_has_no_regions(rng: np.random.Generator):
    """Its slopes cannot be told; a case of three slices among others is no reason to end a run."""
    image = np.tile(two_boxes()[10], (3, 1, 1)) + 0.01 * rng.standard_normal((3, 40, 40)).astype(np.float32)
    for axis in range(3):
        labels = find_regions(np.moveaxis(image, 0, axis), (1.0, 1.0, 1.0), GRAINS[0])
        assert labels.shape == np.moveaxis(image, 0, axis).shape
        assert not labels.any()


def test_noise_alone_has_no_clear_region(rng: np.random.Generator):
    image = rng.standard_normal((32, 32, 32)).astype(np.float32)
    labels = find_regions(image, (1.0, 1.0, 1.0), GRAINS[1])
    assert (labels > 0).mean() < 0.5


def test_a_case_gives_its_image_with_regions_to_click(data_dir: Path):
    source = find_sources(data_dir / "train" / "fetal_sb_atlas")[0]
    volume = load_regions(source, GRAINS[1], clip=False)
    assert volume.image is not None
    assert volume.labels.shape == source.load().case.image.shape
    assert len(volume.pieces) > 20
    counts = np.bincount(volume.labels.ravel())[1:]
    assert counts.min() >= 100
