"""The challenge's scoring of one case, read literally: slow, plain, and free of our own library.

What `GSMedSegLib.challenge` is tested against. A container is a function here: it gets what its input file
would hold, and returns `segs`, or None where it leaves no file.

Source:
    the rules of CVPR25_iter_eval.py (github.com/JunMa11/CVPR-MedSegFMCompetition) in words of our own, with
    SciPy's labelling, distances and integral, and DeepMind's surface Dice.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, ndimage

CLICKS = 5
TOLERANCE_MM = 2.0
HOPELESS_DSC = 0.2
SECONDS_PER_CLASS = 90
LARGEST_BOX_VOXELS = 60_000_000

InputFile = dict[str, Any]
"""`imgs`, `spacing`, `boxes`, `clicks`, `clicks_order` and `prev_pred`, as far as the round has them."""

Predict = Callable[[InputFile], "NDArray[Any] | None"]


def run(
    predict: Predict,
    imgs: NDArray[np.uint8],
    gts: NDArray[Any],
    spacing: tuple[float, float, float],
    boxes: list[dict[str, int]] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Six rounds of a case, five where it has no boxes.

    Where a container fails, the script finds the file of the round before, if there is one; here there is
    none, as the rules have it.

    Args:
        predict: the container.
        imgs: (K, J, I).
        gts: (K, J, I) labels 0, 1, 2, … without gaps, as the challenge's cases have them.
        spacing: of axes 0, 1, 2.
        boxes: a dict a class.
        clock: seconds.

    Returns:
        the columns of the official CSV but for CaseName, under their names, and under `files` the input files
        of the rounds.
    """
    classes = [int(label) for label in np.unique(gts) if label != 0]
    clicks: list[dict[str, list[list[int]]]] = [{"fg": [], "bg": []} for _ in classes]
    clicks_order: list[list[str | None]] = [[] for _ in classes]
    files: list[InputFile] = []
    row: dict[str, Any] = {"num_class": len(classes), "runtime_upperbound": SECONDS_PER_CLASS * len(classes)}
    segs: NDArray[Any] = np.zeros(gts.shape, np.uint8)
    for number in range(1 + CLICKS):
        if number == 0 and boxes is None:
            row["RunningTime_1"] = row["DSC_1"] = row["NSD_1"] = 0.0
            continue
        file: InputFile = {"imgs": imgs, "spacing": spacing}
        if boxes is not None:
            file["boxes"] = boxes
        if number > 0:
            for index, label in enumerate(classes):
                click, kind = next_click(gts == label, segs.astype(np.uint8) == label)
                clicks_order[index].append(kind)
                if kind is not None:
                    clicks[index][kind].append(click)
            file["clicks"] = copy.deepcopy(clicks)
            file["clicks_order"] = copy.deepcopy(clicks_order)
            file["prev_pred"] = segs.astype(np.uint8)
        files.append(file)

        began = clock()
        answer = predict(file)
        row[f"RunningTime_{number + 1}"] = clock() - began
        segs = np.zeros(gts.shape, np.uint8) if answer is None else answer
        dsc = np.mean([volume_dice(gts == label, segs == label) for label in classes])
        row[f"DSC_{number + 1}"] = dsc
        row[f"NSD_{number + 1}"] = 0.0
        if dsc > HOPELESS_DSC:
            nsd = [surface_dice(gts == label, segs == label, spacing) for label in classes]
            row[f"NSD_{number + 1}"] = np.mean(nsd)

    for score in ("DSC", "NSD"):
        curve = [row[f"{score}_{number + 1}"] for number in range(1, 1 + CLICKS)]
        row[f"{score}_AUC"] = integrate.trapezoid(curve, dx=1)
        row[f"{score}_Final"] = curve[-1]
    row["TotalRunningTime"] = sum(row[f"RunningTime_{number + 1}"] for number in range(1 + CLICKS))
    row["files"] = files
    return row


def next_click(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[list[int], str | None]:
    """Array index and kind ("fg", "bg") of the next click; no index and no kind where all is right."""
    error = truth != mask
    if not error.any():
        return [], None
    labels, count = ndimage.label(error, structure=np.ones((3, 3, 3)))
    sizes = [np.sum(labels == label) for label in range(1, count + 1)]
    component = labels == 1 + int(np.argmax(sizes))
    depth = distances(component) * component
    if depth.sum() == 0:
        depth = component.astype(float)
    deepest = np.argwhere(depth == depth.max())
    np.random.seed(42)
    k, j, i = deepest[np.random.choice(len(deepest))].tolist()
    return [k, j, i], "fg" if truth[k, j, i] else "bg"


def distances(component: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of each voxel to the nearest one outside, in voxels, in the component's padded box."""
    voxels = np.argwhere(component)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    margin = [max(1, int(0.25 * side)) for side in high - low]
    inside = tuple(slice(a, b) for a, b in zip(low, high))
    box = np.pad(component[inside], [(n, n) for n in margin])
    if box.size > LARGEST_BOX_VOXELS:
        even = np.pad(box, [(0, side % 2) for side in box.shape])
        halved = np.zeros([side // 2 for side in even.shape], bool)
        for a, b, c in np.ndindex(2, 2, 2):
            halved |= even[a::2, b::2, c::2]
        found = ndimage.distance_transform_edt(halved)
        found = np.repeat(np.repeat(np.repeat(found, 2, axis=0), 2, axis=1), 2, axis=2)
    else:
        found = ndimage.distance_transform_edt(box)
    whole = np.zeros(component.shape)
    whole[inside] = found[tuple(slice(n, n + b - a) for n, a, b in zip(margin, low, high))]
    return whole


def volume_dice(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """2 |A ∩ B| / (|A| + |B|)."""
    return float(2 * np.sum(truth & mask) / (np.sum(truth) + np.sum(mask)))


def surface_dice(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> float:
    """By DeepMind's package, whose release uses names that NumPy 2 has dropped and SciPy moved."""
    surface_distance = pytest.importorskip(
        "surface_distance", reason="the dev extra installs surface-distance"
    )
    with warnings.catch_warnings(), mock.patch.object(np, "Inf", np.inf, create=True):
        warnings.simplefilter("ignore")
        found = surface_distance.compute_surface_distances(truth, mask, spacing)
        return float(surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE_MM))
