"""Masks on ultrasound volumes without labels, to be looked at: `python -m Testing.benchmarks.ultrasound`.

There is no labelled ultrasound at hand, so nothing is measured here. A few clicks, given below, on structures
that a person can tell apart; the pictures show the mask after the first click and after the last one. Writes
`build/ultrasound/NAME.png`. The volumes are not part of the project.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from GSMedSegLib.memory import keep_freed_memory
from GSMedSegLib.picture import draw, stacked
from GSMedSegLib.predictor import Predictor, load_engine
from GSMedSegLib.prompts import Click
from GSMedSegLib.volume_io import read_volume

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Structure:
    """Something to click on.

    Attributes:
        name: what it seems to be.
        file: of the volume.
        clicks: in order.
    """

    name: str
    file: str
    clicks: tuple[Click, ...]


LIVER, SPINE = "imfusion_liver_sweep_stack.nii.gz", "plus_spine_phantom_freehand.nii.gz"

STRUCTURES = (
    Structure(
        "dark vessel or gallbladder",
        LIVER,
        (Click((35, 158, 236), True), Click((35, 172, 232), False), Click((30, 158, 236), True)),
    ),
    Structure(
        "liver tissue",
        LIVER,
        (
            Click((56, 120, 130), True),
            Click((56, 30, 180), False),
            Click((56, 230, 180), False),
            Click((80, 110, 160), True),
            Click((77, 200, 230), False),
        ),
    ),
    Structure(
        "shadow in the phantom",
        SPINE,
        (Click((41, 43, 71), True), Click((41, 43, 45), False), Click((30, 40, 71), True)),
    ),
)


def main() -> int:
    """Segment, and draw."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.ultrasound", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("GSMEDSEG_DATA", ROOT.parent / "shared" / "data")),
        help="has unlabelled/ultrasound (default: %(default)s)",
    )
    parser.add_argument("--weights", default="compact", metavar="NAME|FILE")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/ultrasound"))
    options = parser.parse_args()
    folder = options.data / "unlabelled" / "ultrasound"
    if not folder.is_dir():
        print(f"ultrasound: error: no volumes at {folder}; set GSMEDSEG_DATA", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    predictor = Predictor(load_engine(options.weights))
    for structure in STRUCTURES:
        volume = read_volume(folder / structure.file)
        predictor.set_image(volume.array, volume.ijk_to_ras)
        predictor.add_object(structure.name)
        masks = []
        for click in structure.clicks:
            predictor.add_click(structure.name, click.kji, click.positive)
            masks.append(predictor.predict(structure.name))
        rows = [
            draw(
                volume.array,
                masks[count - 1],
                [f"{count} click{'s' if count > 1 else ''}"],
                [structure.clicks[:count]],
                volume.spacing_kji_mm,
            )
            for count in (1, len(masks))
        ]
        path = options.output / f"{structure.name.replace(' ', '-')}.png"
        stacked(rows).save(path)
        sizes = ", ".join(str(int(mask.sum())) for mask in masks)
        print(f"{structure.name}: voxels after each click {sizes}; {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
