"""The command line, `gsmedseg COMMAND`: segment, predict, evaluate, serve, web and more.

A thin shell: it reads arguments, checks where results go before anything is computed, and says in one line
what went wrong. What is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from GSMedSegLib import __version__
from GSMedSegLib.console import FAILED, Parser, command, reason, say, tell
from GSMedSegLib.engine_options import add_engine_options, load_predictor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from GSMedSegLib.predictor import Predictor
    from GSMedSegLib.volume_io import Volume

INTERRUPTED = 130
"""Exit code after Ctrl+C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        the exit code: 0, `FAILED` after an error, of which one line on stderr tells, or `INTERRUPTED`.

    Raises:
        SystemExit: after --help and --version, and for arguments that make no sense.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        say("stopped; what was already written is whole, nothing else was")
        return INTERRUPTED
    except ImportError as error:
        say(f"error: a package is missing or broken ({reason(error)}); gsmedseg doctor says what to do")
        return FAILED
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        say(f"error: {reason(error)}")
        return FAILED


def _run(arguments: list[str] | None) -> int:
    if arguments is None:
        from GSMedSegLib.memory import keep_freed_memory

        keep_freed_memory()
        arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a name that the terminal cannot show is no failure
    options = _parse(arguments)
    code: int = options.run(options)
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    # Here, where Ctrl+C is caught already: what the commands import takes half a second.
    from GSMedSegLib.doctor_command import add_doctor

    parser = Parser(
        prog="gsmedseg",
        description="Segment anything in a 3D medical image from a few clicks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gsmedseg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    if arguments[:1] != ["doctor"]:  # which is for when the others cannot be imported
        from GSMedSegLib.prompt_arguments import join_negative

        arguments = join_negative(arguments)
        _add_others(commands)
    add_doctor(commands)
    return parser.parse_args(arguments)


def _add_others(commands: Any) -> None:
    from GSMedSegLib.cases_command import add_make_cases
    from GSMedSegLib.evaluate_command import add_evaluate
    from GSMedSegLib.predict_command import add_predict
    from GSMedSegLib.serve_command import add_serve
    from GSMedSegLib.web_command import add_web
    from GSMedSegLib.weights_command import add_weights

    _add_segment(commands)
    add_predict(commands)
    add_evaluate(commands)
    add_make_cases(commands)
    add_weights(commands)
    add_serve(commands)
    add_web(commands)
    demo = command(commands, "demo", _demo, "make an image, segment it from clicks and draw what came out")
    demo.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("build/demo"),
        help="where to write (default: %(default)s)",
    )


# gsmedseg segment


def _add_segment(commands: Any) -> None:
    from GSMedSegLib.prompt_arguments import add_prompt_options

    parser = command(
        commands,
        "segment",
        _segment,
        "segment objects of an image from clicks",
        "example: gsmedseg segment ct.nii.gz -o labels.nii.gz "
        "--object liver --fg 120,96,40 --object spleen --fg 300,110,42",
    )
    parser.add_argument(
        "image", type=Path, help="NIfTI, NRRD or MetaImage file, or a folder with a DICOM series"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="label map to write: .nii, .nii.gz, .nrrd, .mha, or .seg.nrrd with the names for Slicer",
    )
    parser.add_argument("--series", metavar="UID", help="which DICOM series, where the folder has several")
    add_prompt_options(parser)
    parser.add_argument(
        "--ras", action="store_true", help="clicks and boxes are in millimetres right, anterior, superior"
    )
    parser.add_argument(
        "--clicks",
        type=Path,
        metavar="LEDGER.json",
        help="start from the clicks, boxes and masks in this file",
    )
    parser.add_argument(
        "--save-clicks",
        type=Path,
        metavar="LEDGER.json",
        help="write all clicks, to be given to --clicks again",
    )
    parser.add_argument(
        "--probability",
        type=Path,
        metavar="FILE",
        help="write how sure the network is of every voxel, 0 to 1; of several objects to FILE-1, FILE-2, …",
    )
    parser.add_argument(
        "--hint", action="store_true", help="say where a further click on each object would help most"
    )
    add_engine_options(parser, strategy="adaptive", precision="auto")


def _segment(options: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from GSMedSegLib.atomic import check_target
    from GSMedSegLib.geometry import flip_grid
    from GSMedSegLib.prompt_arguments import MaskFile, add_prompts, check_start
    from GSMedSegLib.prompts import ClickLedger
    from GSMedSegLib.volume_io import check_volume_target, read_volume, write_labelmap, write_volume

    check_volume_target(options.output)
    if options.output.exists() and options.image.exists() and options.output.samefile(options.image):
        raise ValueError(f"{options.output} is the image itself; choose another name for the label map")
    masks = [mask for _, mask in options.prompts or [] if isinstance(mask, MaskFile)]
    for mask in masks:  # a mask alone in its file may be replaced by what becomes of it
        if mask.label is not None and mask.path.resolve() == options.output.resolve():
            raise ValueError(
                f"{options.output} has the mask to start from, and what it has besides would be lost; choose "
                "another name for the label map"
            )
    if options.save_clicks is not None:
        if options.save_clicks.suffix != ".json":
            raise ValueError(f"{options.save_clicks}: clicks are saved as .json; choose this ending")
        check_target(options.save_clicks)
    if options.probability is not None:
        check_volume_target(options.probability)
    volume = read_volume(options.image, options.series)
    if not volume.has_position:
        lacking = f"{options.image}: its header gives no position (qform_code and sform_code are 0)"
        if options.ras:
            raise ValueError(f"{lacking}, so there are no millimetres; click by voxels i,j,k, without --ras")
        say(f"warning: {lacking}; programs will show it, and the result, in different places")
    if not volume.has_voxel_size:
        say(
            f"warning: {options.image}: its header does not say how large a voxel is; 1 mm is taken, for "
            "volumes too"
        )
    flips: tuple[int, ...] = ()
    if options.clicks is None:
        ledger = ClickLedger(volume.shape, volume.ijk_to_ras)
    else:
        saved = ClickLedger.load(options.clicks)
        flips = saved.flips(volume.shape, volume.ijk_to_ras)
        ledger = saved.flipped(flips)
    wanted = add_prompts(ledger, options.prompts or [], volume, options.ras)
    probability_files = _probability_files(options, len(ledger.objects), [mask.path for mask in masks])

    predictor = load_predictor(options)
    check_start(ledger, wanted, predictor.can_start)
    # The network is to see the image as it did when the clicks were made: flipped, it gives another mask.
    predictor.set_image(
        np.ascontiguousarray(np.flip(volume.array, flips)),
        flip_grid(volume.ijk_to_ras, volume.shape, flips),
        ledger.flipped(flips),
    )
    with tqdm(unit="click", desc="segmenting", file=sys.stderr, disable=None) as bar:
        labels = np.flip(predictor.labels(lambda done, total: tell(bar, done, total)), flips)
    write_labelmap(options.output, labels, volume.ijk_to_ras, names=predictor.objects)
    if options.save_clicks is not None:
        predictor.ledger.save(options.save_clicks)
    for name, file in zip(predictor.objects, probability_files):
        if predictor.can_segment(name):
            write_volume(file, np.flip(predictor.probability(name), flips), volume.ijk_to_ras)
    _print_objects(predictor, labels, volume.ijk_to_ras)
    if options.hint:
        _print_hints(predictor, volume, flips)
    return 0


def _probability_files(options: argparse.Namespace, objects: int, masks: Sequence[Path]) -> list[Path]:
    """Where the objects' probabilities go, none of them over the image, the label map or a mask."""
    from GSMedSegLib.volume_io import WRITE_SUFFIXES

    path: Path | None = options.probability
    if path is None:
        return []
    suffix = max((s for s in WRITE_SUFFIXES if path.name.endswith(s)), key=len)
    stem = path.name.removesuffix(suffix)
    numbered = [path.with_name(f"{stem}-{n}{suffix}") for n in range(1, objects + 1)]
    files = [path] if objects == 1 else numbered
    kept = [(options.image, "the image"), (options.output, "the label map")]
    kept += [(mask, "a mask to start from") for mask in masks]
    for file, (other, what) in itertools.product(files, kept):
        if file.resolve() == other.resolve():
            raise ValueError(f"{file} is {what}; choose another name for the probabilities")
    return files


def _print_hints(predictor: Predictor, volume: Volume, flips: Sequence[int]) -> None:
    from GSMedSegLib.geometry import flip_voxel, kji_to_ras

    for name in filter(predictor.can_segment, predictor.objects):
        hint = predictor.next_click(name)
        if hint is None:
            print(f"{name}: nothing is in doubt, so no further click is proposed")
            continue
        k, j, i = flip_voxel(hint.kji, volume.shape, flips)
        right, anterior, superior = kji_to_ras([(k, j, i)], volume.ijk_to_ras)[0]
        sign, option = ("+", "--fg") if hint.positive else ("−", "--bg")
        print(
            f"{name}: look at {i},{j},{k} (RAS {right:.1f},{anterior:.1f},{superior:.1f} mm), "
            f"{sign} if the mask is wrong there: {option} {i},{j},{k}"
        )


def _print_objects(
    predictor: Predictor, labels: NDArray[np.unsignedinteger[Any]], ijk_to_ras: NDArray[np.float64]
) -> None:
    import numpy as np

    voxel_mm3 = abs(float(np.linalg.det(ijk_to_ras[:3, :3])))
    for label, name in enumerate(predictor.objects, start=1):
        voxels = int(np.count_nonzero(labels == label))
        print(f"{name}: label {label}, {voxels} voxels, {_size(voxels, voxel_mm3)}")
        if voxels == 0:
            started = predictor.can_segment(name)
            advice = "click nearer to its middle, or add clicks" if started else "it has no foreground click"
            say(f"warning: object {name!r} came out empty; {advice}")


def _size(voxels: int, voxel_mm3: float) -> str:
    """A volume in the unit that suits it."""
    size_mm3 = voxels * voxel_mm3
    if size_mm3 >= 1000:
        return f"{size_mm3 / 1000:.4g} ml"
    if size_mm3 >= 1e-3 or voxel_mm3 >= 1e-6:
        return f"{size_mm3:.4g} mm³"
    size_um3 = size_mm3 * 1e9
    return f"{size_um3:.0f} µm³" if size_um3 >= 1000 else f"{size_um3:.4g} µm³"


# gsmedseg demo


def _demo(options: argparse.Namespace) -> int:
    from GSMedSegLib.demo import run_demo

    run_demo(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
