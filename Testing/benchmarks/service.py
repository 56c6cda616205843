"""What a click costs more through the service than with the engine alone: `build/bench/service.json`.

One process has engine and MRML scene, another one serves the same weights. Both segment the same clicks on
the same 256³ image, in turn, so that both see the same machine. The engine alone ends with a mask in memory,
the service with a mask in a segment of the scene.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

OUTPUT = Path("build/bench/service.json")
SIDE = 256
CLICKS = 12
POLL_S = 0.005
PAUSE_S = 0.2
"""Between the two: a thread pool spins for a while after its work, and would take the other's processors."""


def make_image() -> np.ndarray:
    """(256, 256, 256) int16: a lumpy ball on noise."""
    rng = np.random.default_rng(0)
    k, j, i = np.ogrid[:SIDE, :SIDE, :SIDE]
    ball = ((k - 128) / 50) ** 2 + ((j - 120) / 60) ** 2 + ((i - 140) / 45) ** 2 < 1
    return (ball * 300 + rng.normal(0, 40, ball.shape)).astype(np.int16)


def main() -> int:
    """Measures, prints and writes."""
    import slicer
    from trame_slicer.core import SlicerApp

    from GSMedSegLib.mrml.interaction import Interaction
    from GSMedSegLib.mrml.segments import new_segmentation
    from GSMedSegLib.mrml.volumes import voxel_to_world
    from GSMedSegLib.predictor import Predictor, load_engine
    from GSMedSegLib.prompts import Click, ObjectPrompts
    from GSMedSegLib.service.background import Background
    from GSMedSegLib.service.engines import OwnEngine

    image = make_image()
    scene = SlicerApp().scene
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "image")
    slicer.util.updateVolumeFromArray(volume, image)
    segmentation = new_segmentation(volume)
    segmentation.GetSegmentation().AddEmptySegment("a", "A")
    source = OwnEngine()
    background = Background(source)
    interaction = Interaction(volume, segmentation, background)
    predictor = Predictor(load_engine())
    predictor.set_image(image, np.eye(4))

    def through_service(kji: tuple[int, int, int], positive: bool) -> float:
        began = time.perf_counter()
        interaction.add_click("a", voxel_to_world(volume, kji), positive)
        interaction.segment("a")
        while interaction.busy:
            for told in interaction.update(background.poll(POLL_S)):
                if told.error is not None:
                    raise told.error
        return time.perf_counter() - began

    def alone(clicks: list[Click]) -> float:
        began = time.perf_counter()
        segment = predictor.segment_from(ObjectPrompts(tuple(clicks)))
        (segment.logits > 0).numpy()
        return time.perf_counter() - began

    rng = np.random.default_rng(1)
    voxels = [(128, 120, 140)]
    for k, j, i in rng.integers(90, 170, (CLICKS, 3)).tolist():
        voxels.append((k, j, i))
    clicks: list[Click] = []
    rows: list[dict[str, Any]] = []
    for number, kji in enumerate(voxels):
        clicks.append(Click(kji, number % 2 == 0))
        engine_s = alone(clicks)
        time.sleep(PAUSE_S)
        rows.append({"engine_s": engine_s, "service_s": through_service(kji, number % 2 == 0)})
        time.sleep(PAUSE_S)
    source.stop()
    later = rows[1:]  # the first click waits for the engine to start, and sends the image
    overhead_ms = 1000 * statistics.median(row["service_s"] - row["engine_s"] for row in later)
    figures = {
        "overhead_ms": round(overhead_ms, 1),
        "engine_ms": round(1000 * statistics.median(row["engine_s"] for row in later), 1),
        "service_ms": round(1000 * statistics.median(row["service_s"] for row in later), 1),
        "clicks": len(later),
        "side": SIDE,
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
