"""The command line: what it writes and says; a failure is one line, exit code 2 and no file."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from GSMedSegLib import cli, npz, volume_io
from GSMedSegLib.batch import find_cases
from GSMedSegLib.checkpoint import read_checkpoint, write_safetensors
from GSMedSegLib.cli import main
from GSMedSegLib.geometry import grid_distance_mm, kji_to_ras, lps_from_ijk_to_ras
from GSMedSegLib.network import Network, Shape
from GSMedSegLib.predictor import STRATEGIES, Predictor, load_engine
from GSMedSegLib.prompt_arguments import join_negative
from GSMedSegLib.prompts import Click, ClickLedger
from GSMedSegLib.volume_io import read_labelmap, read_volume
from Testing.lib.file_server import FileServer, serve

SHAPE = (20, 24, 28)
OBLIQUE = np.array(
    [
        [-0.73, 0.31, 0.62, 12.5],
        [0.21, 0.88, -0.48, -33.25],
        [-0.43, -0.12, 1.80, 101.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [0.9, 1.1, 2.5]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that was never trained: its masks mean nothing, and are the same every time."""
    torch.manual_seed(3)
    network = Network(Shape(init_filters=8, blocks_down=(1, 1), width=16, click_features=True, mixer=(8, 16)))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_safetensors(path, network.state_dict(), {"roi": "16", "intensity": "view"})
    return path


@pytest.fixture(scope="module")
def array() -> NDArray[np.int16]:
    """A bright block in noise."""
    image = np.random.default_rng(5).normal(0, 20, SHAPE)
    image[5:15, 6:16, 7:20] += 150
    return image.astype(np.int16)


def write(path: Path, array: NDArray[Any], ijk_to_ras: NDArray[np.float64] | None = None) -> Path:
    image = sitk.GetImageFromArray(array)
    origin, spacing, direction = lps_from_ijk_to_ras(np.eye(4) if ijk_to_ras is None else ijk_to_ras)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def image(tmp_path: Path, array: NDArray[np.int16]) -> Path:
    return write(tmp_path / "image.nii.gz", array, OBLIQUE)


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must work in silence; returns what it printed."""

    def call(*arguments: object) -> str:
        given = [str(argument) for argument in arguments]
        if given[0] in ("segment", "predict") and "--weights" not in given:
            given += ["--weights", str(weights), "--precision", "fp32", "--device", "cpu"]
        assert main(given) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return call


@pytest.fixture
def fail(weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail: exit code 2, one line on stderr, no file changed. Returns the line."""

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def call(*arguments: object) -> str:
        given = [str(argument) for argument in arguments]
        if given[0] == "segment" and "--weights" not in given:
            given += ["--weights", str(weights)]
        before = files()
        try:
            code = main(given)
        except SystemExit as error:  # arguments that make no sense
            code = error.code
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.startswith("gsmedseg: error: ")
        assert captured.err.count("\n") == 1
        assert captured.err.endswith("\n")
        assert files() == before
        return captured.err

    return call


# gsmedseg segment


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_every_format_in_and_out_on_an_oblique_grid(
    suffix: str, array: NDArray[np.int16], run: Callable[..., str], tmp_path: Path
) -> None:
    """The label map lies on the image's own grid, to 1e-4 mm, and holds the clicked voxel."""
    source, target = write(tmp_path / f"image{suffix}", array, OBLIQUE), tmp_path / f"labels{suffix}"
    said = run("segment", source, "-o", target, "--fg", "12,10,9")
    labels = read_labelmap(target)
    assert labels.shape == SHAPE
    assert grid_distance_mm(labels.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4
    assert labels.array[9, 10, 12] == 1
    voxels = int((labels.array == 1).sum())
    volume_mm3 = voxels * 0.9 * 1.1 * 2.5
    size = f"{volume_mm3 / 1000:.4g} ml" if volume_mm3 >= 1000 else f"{volume_mm3:.4g} mm³"
    assert said == f"object: label 1, {voxels} voxels, {size}\n"
    if suffix.startswith(".nii"):
        nifti = nibabel.load(target)
        assert grid_distance_mm(nifti.affine, OBLIQUE, SHAPE) < 1e-4
        assert np.asarray(nifti.dataobj)[12, 10, 9] == 1


def test_a_dicom_folder(data_dir: Path, run: Callable[..., str], tmp_path: Path) -> None:
    folder = data_dir / "unlabelled" / "dicom" / "ibsi_STS_012_PET"
    run("segment", folder, "-o", tmp_path / "labels.nii.gz", "--fg", "15,14,26")
    image, labels = read_volume(folder), read_labelmap(tmp_path / "labels.nii.gz")
    assert grid_distance_mm(image.ijk_to_ras, labels.ijk_to_ras, image.shape) < 1e-4
    assert labels.array[26, 14, 15] == 1


def test_millimetres_are_the_voxels_they_lie_in(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """The oblique grid has negative millimetres; a third of a voxel off is the same voxel."""
    clicks_kji = [[9.3, 9.7, 12.2], [2.0, 3.3, 3.8]]
    fg, bg = ["{:.6f},{:.6f},{:.6f}".format(*ras) for ras in kji_to_ras(clicks_kji, OBLIQUE)]
    run("segment", image, "-o", tmp_path / "a.nii.gz", "--fg", "12,10,9", "--bg", "4,3,2")
    run("segment", image, "-o", tmp_path / "b.nii.gz", "--ras", "--fg", fg, "--bg", bg)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_ledger_replays_to_the_same_bits(
    strategy: str, image: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """Two objects, clicks in turn; once more from the file alone, and once more continued from a part."""
    common = ["--strategy", strategy, "--roi", 16]
    first = ["--object", "block", "--fg", "12,10,9", "--object", "corner", "--fg", "2,2,2"]
    second = ["--object", "block", "--bg", "25,20,17"]
    a, b, c = (tmp_path / f"{name}.nrrd" for name in "abc")
    ledger, part = tmp_path / "clicks.json", tmp_path / "part.json"
    said = run("segment", image, "-o", a, *first, *second, "--save-clicks", ledger, *common)
    assert run("segment", image, "-o", b, "--clicks", ledger, *common) == said
    run("segment", image, "-o", c, *first, "--save-clicks", part, *common)
    again = run("segment", image, "-o", c, "--clicks", part, *second, "--save-clicks", part, *common)
    assert again == said
    assert a.read_bytes() == b.read_bytes() == c.read_bytes()
    assert part.read_bytes() == ledger.read_bytes()


def test_a_ledger_replays_to_the_same_mask_from_another_format(
    array: NDArray[np.int16], weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """NIfTI rounds the spacing to float32; the views, hence the masks, go by the ledger's own numbers."""
    exact, rounded = (write(tmp_path / name, array, OBLIQUE) for name in ("image.nrrd", "image.nii.gz"))
    ledger = tmp_path / "clicks.json"
    run("segment", exact, "-o", tmp_path / "a.nrrd", "--fg", "12,10,9", "--save-clicks", ledger)
    run("segment", rounded, "-o", tmp_path / "b.nrrd", "--clicks", ledger)
    spacings = {read_volume(path).spacing_kji_mm for path in (exact, rounded)}
    assert len(spacings) == 2, "where no number is rounded, this test shows nothing"
    a, b = (read_labelmap(tmp_path / name).array for name in ("a.nrrd", "b.nrrd"))
    np.testing.assert_array_equal(a, b)


def test_clicks_go_to_the_object_before_them(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """i,j,k becomes (k, j, i); coming back to an object adds to it; labels are in order."""
    ledger = tmp_path / "clicks.json"
    said = run(
        "segment", image, "-o", tmp_path / "labels.nrrd", "--save-clicks", ledger,
        "--object", "liver", "--fg", "12,10,9", "--bg=4,3,2", "--object", "left kidney", "--fg", "20,18,16",
        "--object", "liver", "--fg", "13,11,8",
    )  # fmt: skip
    saved = ClickLedger.load(ledger)
    assert saved.objects == ("liver", "left kidney")
    assert saved.clicks("liver") == (
        Click((9, 10, 12), True),
        Click((2, 3, 4), False),
        Click((8, 11, 13), True),
    )
    assert saved.clicks("left kidney") == (Click((16, 18, 20), True),)
    assert saved.ijk_to_ras is not None
    assert grid_distance_mm(saved.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4
    assert [line.split(",")[0] for line in said.splitlines()] == ["liver: label 1", "left kidney: label 2"]


def test_the_mask_is_the_library_s(
    image: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """The shell adds nothing to what `Predictor` computes."""
    run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--fg", "9,9,9", "--bg", "1,1,1")
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    predictor.add_object("object")
    for kji, positive in (((9, 10, 12), True), ((9, 9, 9), True), ((1, 1, 1), False)):
        predictor.add_click("object", kji, positive)
    np.testing.assert_array_equal(read_labelmap(tmp_path / "labels.nrrd").array, predictor.predict("object"))


def test_a_box_has_two_opposite_corners(image: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """In either order, in voxels or in millimetres; the clicked object needs no name."""
    ledger, out = tmp_path / "clicks.json", tmp_path / "labels.nrrd"
    run("segment", image, "-o", out, "--fg", "12,10,9", "--box", "20,5,15,7,16,4", "--save-clicks", ledger)
    box = ClickLedger.load(ledger).box("object")
    assert box is not None
    assert (box.min_kji, box.max_kji) == ((4, 5, 7), (15, 16, 20))

    straight = write(tmp_path / "straight.nrrd", read_volume(image).array, np.diag([-2.0, -2.0, 3.0, 1.0]))
    run(
        "segment", straight, "-o", out, "--ras", "--fg", "-24,-20,27",
        "--box", "-40,-10,45,-14,-32,12", "--save-clicks", ledger,
    )  # fmt: skip
    assert ClickLedger.load(ledger).box("object") == box
    assert ClickLedger.load(ledger).clicks("object") == (Click((9, 10, 12), True),)


def test_probabilities_are_written_on_the_image_s_grid(
    image: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """Above a half where the label is; of several objects each in a file of its own."""
    out, probability = tmp_path / "labels.nii.gz", tmp_path / "sure.nii.gz"
    run("segment", image, "-o", out, "--fg", "12,10,9", "--probability", probability)
    volume = read_volume(probability)
    assert volume.array.dtype == np.float32
    assert 0 <= volume.array.min() < 0.5 < volume.array.max() <= 1
    np.testing.assert_array_equal(volume.array > 0.5, read_labelmap(out).array == 1)
    assert grid_distance_mm(volume.ijk_to_ras, OBLIQUE, SHAPE) < 1e-4

    both = ["--object", "a", "--fg", "2,2,2", "--object", "b", "--fg", "12,10,9"]
    run("segment", image, "-o", out, *both, "--probability", tmp_path / "both.nii.gz")
    assert not (tmp_path / "both.nii.gz").exists()
    np.testing.assert_array_equal(read_volume(tmp_path / "both-2.nii.gz").array, volume.array)
    assert (tmp_path / "both-1.nii.gz").exists()


def test_probabilities_do_not_go_over_what_is_there(
    image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    common = ("segment", image, "-o", tmp_path / "p-2.nii.gz", "--fg", "12,10,9")
    assert "is the image" in fail(*common, "--probability", image)
    assert "is the label map" in fail(*common, "--probability", tmp_path / "p-2.nii.gz")
    two = (*common[:4], "--object", "a", "--fg", "2,2,2", "--object", "b", "--fg", "12,10,9")
    assert "p-2.nii.gz is the label map" in fail(*two, "--probability", tmp_path / "p.nii.gz")
    assert "volumes are written as" in fail(*common, "--probability", tmp_path / "p.png")


def test_a_hint_is_a_click_to_copy(
    image: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """i,j,k and its millimetres of the library's own hint, and the option that clicks there."""
    said = run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--hint")
    volume = read_volume(image)
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"))
    predictor.set_image(volume.array, volume.ijk_to_ras)
    predictor.add_object("object")
    predictor.add_click("object", (9, 10, 12))
    hint = predictor.next_click("object")
    assert hint is not None
    k, j, i = hint.kji
    ras = ",".join(f"{x:.1f}" for x in kji_to_ras([hint.kji], OBLIQUE)[0])
    sign, option = ("+", "--fg") if hint.positive else ("−", "--bg")
    assert said.splitlines()[1] == (
        f"object: look at {i},{j},{k} (RAS {ras} mm), {sign} if the mask is wrong there: {option} {i},{j},{k}"
    )


def test_without_doubt_there_is_no_hint(
    image: Path, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "next_click", lambda self, name: None)
    said = run("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9", "--hint")
    assert said.splitlines()[1] == "object: nothing is in doubt, so no further click is proposed"


def test_an_empty_object_is_said_to_be_empty(
    image: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ClickLedger(SHAPE)
    for name in ("block", "nothing"):
        ledger.add_object(name)
    ledger.add_click("block", Click((9, 10, 12), True))
    ledger.save(tmp_path / "clicks.json")
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--clicks", str(tmp_path / "clicks.json")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1] == "nothing: label 2, 0 voxels, 0 mm³"
    assert captured.err == (
        "gsmedseg: warning: object 'nothing' came out empty; it has no foreground click\n"
    )


def test_progress_is_for_a_person_who_watches(
    image: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--fg", "12,10,9", "--fg", "9,9,9"]) == 0
    assert "segmenting: 100%" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_negative_numbers_are_no_options() -> None:
    given = ["--fg", "-10,5,3", "--bg=-1,2,3", "--box", "-.5,1,1,2,2,2", "--fg", "1,2,3", "-o", "-x"]
    joined = ["--fg=-10,5,3", "--bg=-1,2,3", "--box=-.5,1,1,2,2,2", "--fg", "1,2,3", "-o", "-x"]
    assert join_negative(given) == joined
    assert join_negative(["--fg", "--bg", "-1,2,3"]) == ["--fg", "--bg=-1,2,3"]


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ([], "there is no click; add --fg i,j,k"),
        (["--bg", "1,2,3"], "there is no foreground click; add --fg i,j,k"),
        (["--object", "liver"], "object 'liver' has no foreground click; add --fg"),
        (
            ["--object", "a", "--fg", "1,2,3", "--object", "b", "--bg", "1,2,3"],
            "object 'b' has no foreground",
        ),
        (["--object", " ", "--fg", "1,2,3"], "an object needs a name"),
        (["--fg", "1,2,3", "--object", "liver"], "--fg 1,2,3 comes before the first --object"),
        (["--fg", "28,0,0"], "--fg 28,0,0: voxel (k, j, i) = (0, 0, 28) is outside the image"),
        (["--fg", "-1,0,0"], "is outside the image; its indices are k 0..19, j 0..23, i 0..27"),
        (["--fg", "1e8,0,0"], "is outside the image"),
        (["--fg", "1.5,0,0"], "voxel indices are whole numbers; for millimetres, add --ras"),
        (["--ras", "--fg", "1000,0,0"], "--fg 1000,0,0: voxel"),
        (["--fg", "1,2"], "argument --fg: expected i,j,k: 3 numbers, commas, no spaces; got '1,2'"),
        (["--fg", "1,2,x"], "got '1,2,x'"),
        (["--fg", "1,2,nan"], "got '1,2,nan'"),
        (["--fg", "-1,2,1e400"], "got '-1,2,1e400'"),
        (["--fg"], "argument --fg: expected one argument"),
        (["--fg", "1,2,3", "--box", "1,2,3,4"], "expected i1,j1,k1,i2,j2,k2"),
        (["--fg", "1,2,3", "--box", "0,0,0,9,9,99"], "--box 0,0,0,9,9,99: voxel"),
        (["--box", "0,0,0,9,9,9"], "there is no foreground click"),
        (["--fg", "1,2,3", "--strategy", "magic"], "invalid choice: 'magic'"),
        (["--fg", "1,2,3", "--device", "abacus"], "expected device auto, cpu or cuda; got 'abacus'"),
        (["--fg", "1,2,3", "--roi", "15"], "multiple of 4; got 15"),
        (["--fg", "1,2,3", "--series", "1.2"], "a series is chosen in a folder"),
        (["--fg", "1,2,3", "--weights", "none.pt"], "expected weights by name (compact,"),
        (["--fg", "1,2,3", "--weights", "vista3d"], "run: gsmedseg weights fetch vista3d"),
    ],
)
def test_wrong_clicks_and_choices(
    clicks: list[str], message: str, image: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    assert message in fail("segment", image, "-o", tmp_path / "labels.nii.gz", *clicks)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("labels.png", "choose one of these endings"),
        ("labels", "choose one of these endings"),
        ("none/labels.nii.gz", "none: the folder to write to does not exist; check the path"),
        ("folder.nii.gz", "a file name is needed, this is a folder"),
        ("image.nii.gz", "is the image itself; choose another name"),
    ],
)
def test_a_bad_output_is_noticed_before_anything_is_read(
    output: str,
    message: str,
    image: Path,
    fail: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    monkeypatch.setattr(volume_io, "read_volume", None)
    assert message in fail("segment", image, "-o", tmp_path / output, "--fg", "1,2,3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clicks.nii.gz", "clicks are saved as .json"),
        ("none/clicks.json", "the folder to write to does not exist"),
    ],
)
def test_a_bad_ledger_to_write_is_noticed_first(
    name: str,
    message: str,
    image: Path,
    fail: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume_io, "read_volume", None)
    arguments = ["segment", image, "-o", tmp_path / "labels.nii.gz", "--fg", "1,2,3"]
    assert message in fail(*arguments, "--save-clicks", tmp_path / name)


def make_bad_image(kind: str, path: Path, array: NDArray[np.int16]) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        write(path, array)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind in ("NaN", "infinite"):
        bad = array.astype(np.float32)
        bad[3, 3, 3] = np.nan if kind == "NaN" else np.inf
        write(path, bad)
    elif kind == "constant":
        write(path, np.full(SHAPE, 7, np.int16))
    elif kind == "2D":
        sitk.WriteImage(sitk.GetImageFromArray(array[0]), str(path))
    elif kind == "4D":
        nibabel.save(nibabel.Nifti1Image(np.stack([array.T] * 2, axis=-1), np.eye(4)), path)
    elif kind == "colour":
        sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(path))
    elif kind == "folder without DICOM":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "image.nii: No such file or directory; check the path"),
        ("empty", "image.nii: not a readable image (empty, damaged or of another kind)"),
        ("text", "image.nii: not a readable image"),
        ("truncated", "image.nii: the file is incomplete, 2000 bytes are missing"),
        ("NaN", "image.nii: the image has NaN or infinite voxels; replace them"),
        ("infinite", "image.nii: the image has NaN or infinite voxels; replace them"),
        ("constant", "the image is constant (every voxel is 7)"),
        ("2D", "image.nii: the image must be 3D, got 2D"),
        ("4D", "image.nii: the image must be 3D, got 4D"),
        ("colour", "one number a voxel is needed"),
        ("folder without DICOM", "no DICOM images in this folder"),
    ],
)
def test_images_that_cannot_be_segmented(
    kind: str, message: str, array: NDArray[np.int16], fail: Callable[..., str], tmp_path: Path
) -> None:
    make_bad_image(kind, tmp_path / "image.nii", array)
    assert message in fail("segment", tmp_path / "image.nii", "-o", tmp_path / "labels.nrrd", "--fg", "1,2,3")


class Payload:
    """Unpickles into a call that makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


def make_bad_weights(kind: str, path: Path, good: Path) -> None:
    content, tensors = good.read_bytes(), dict(read_checkpoint(good).tensors)
    first = "image_encoder.encoder.conv_init.weight"
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "truncated zip":
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "hostile":
        torch.save({"model": tensors, "epoch": Payload(path.with_name("witness"))}, path)
    elif kind == "hostile bare":
        path.write_bytes(pickle.dumps(Payload(path.with_name("witness"))))
    elif kind == "web page":
        path.write_text("<html>please accept our cookies</html>")
    elif kind == "another network":
        write_safetensors(path, {"resnet.weight": torch.ones(3)}, {})
    elif kind == "missing tensor":
        del tensors["point_head.mask_tokens.weight"]
        write_safetensors(path, tensors, {})
    elif kind == "wrong shape":
        write_safetensors(path, {**tensors, first: tensors[first][:, :, :1].contiguous()}, {})
    elif kind == "NaN":
        write_safetensors(path, {**tensors, first: tensors[first] * torch.nan}, {})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "expected a checkpoint, the file is empty"),
        ("truncated", "is cut short or damaged"),
        ("truncated zip", "is cut short or damaged"),
        ("hostile", "refused, it holds Python objects besides tensors"),
        ("hostile bare", "not a readable PyTorch checkpoint, cut short or damaged (Unsupported operand"),
        ("web page", "it holds a web page"),
        ("another network", "expected the weights of a VISTA3D network"),
        ("missing tensor", "expected the weights of a VISTA3D network"),
        ("wrong shape", "1 tensors of the wrong shape: image_encoder.encoder.conv_init.weight should be"),
        ("NaN", "expected finite weights, 1 of"),
    ],
)
def test_weights_that_cannot_be_used(
    kind: str, message: str, image: Path, weights: Path, fail: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    make_bad_weights(kind, path, weights)
    arguments = ["segment", image, "-o", tmp_path / "labels.nii.gz", "--fg", "1,2,3", "--weights", path]
    assert message in fail(*arguments)
    assert not (tmp_path / "witness").exists()


def test_ledgers_that_cannot_be_replayed(image: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "clicks.json"
    arguments = ["segment", image, "-o", tmp_path / "labels.nii.gz", "--clicks", path]
    assert "clicks.json: No such file" in fail(*arguments)
    path.touch()
    assert "not a click ledger: not valid JSON" in fail(*arguments)
    ledger = ClickLedger((3, 4, 5))
    ledger.add_object("a")
    ledger.save(path)
    assert "the clicks were made on an image of shape (3, 4, 5)" in fail(*arguments)
    ledger = ClickLedger(SHAPE, np.eye(4))
    ledger.save(path)
    assert "another position, spacing or orientation" in fail(*arguments)
    ledger = ClickLedger(SHAPE)
    ledger.add_object("a")
    ledger.save(path)
    assert "there is no click" in fail(*arguments)
    ledger.add_object("b")
    ledger.save(path)
    assert "the ledger has several objects ('a', 'b'); give --object" in fail(*arguments, "--fg", "1,2,3")
    data = json.loads(path.read_text())
    data["events"] = [{"event": "click", "object": "a", "kji": [99, 0, 0], "positive": True}]
    path.write_text(json.dumps(data))
    assert "event 1 of the click ledger: voxel" in fail(*arguments)


def test_a_full_disk(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was half written goes, what was there before stays."""
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"older")

    def write_half(image: sitk.Image, name: str, compress: bool) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(volume_io.sitk, "WriteImage", write_half)
    arguments = ["-o", target, "--fg", "12,10,9", "--save-clicks", tmp_path / "clicks.json"]
    assert "free some space, or write to another disk" in fail("segment", image, *arguments)


def test_too_little_memory(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Predictor, "labels", labels)
    said = fail("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9")
    assert "not enough memory; crop the image" in said


def test_an_error_of_several_lines_is_told_in_one(
    image: Path, fail: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise RuntimeError("CUDA out of memory.\n  Tried to allocate 2 GiB.\n")

    monkeypatch.setattr(Predictor, "labels", labels)
    said = fail("segment", image, "-o", tmp_path / "labels.nrrd", "--fg", "12,10,9")
    assert said == "gsmedseg: error: CUDA out of memory. Tried to allocate 2 GiB.\n"


def test_control_c(
    image: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def labels(self: Predictor, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "labels", labels)
    arguments = ["segment", str(image), "-o", str(tmp_path / "labels.nrrd"), "--weights", str(weights)]
    assert main([*arguments, "--fg", "12,10,9"]) == 130
    assert capsys.readouterr().err.startswith("gsmedseg: stopped")
    assert list(tmp_path.iterdir()) == [image]


# gsmedseg predict

CLICKS = ({"fg": [[9, 10, 12]], "bg": [[1, 1, 1]]}, {"fg": [[16, 18, 20], [15, 17, 19]], "bg": []})
SPACING = (2.5, 0.75, 1.25)
COMMON = ("--roi", "16")


def objects(*elements: Any) -> NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def save_case(path: Path, array: NDArray[np.int16], **changed: Any) -> Path:
    """A case as the challenge writes it; None leaves a key out."""
    image = np.clip(array + 60, 0, 255).astype(np.uint8)
    content = {"imgs": image, "spacing": np.array(SPACING), "clicks": objects(*CLICKS), **changed}
    np.savez_compressed(path, **{key: value for key, value in content.items() if value is not None})
    return path


@pytest.fixture
def cases(tmp_path: Path, array: NDArray[np.int16]) -> Path:
    """A folder with one good case."""
    folder = tmp_path / "cases"
    folder.mkdir()
    save_case(folder / "CT_a.npz", array)
    return folder


def segs(path: Path) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == ["segs"]
        return np.asarray(file["segs"])


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_classes_are_painted_as_the_strategy_says(
    strategy: str | None, cases: Path, weights: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    """`reference`, the default: the last class wins where they overlap; `adaptive`: the surer one."""
    out = tmp_path / "out"
    said = run("predict", cases, out, *COMMON, *(["--strategy", strategy] if strategy else []))
    assert said == "CT_a: 2 classes\n"

    case = npz.read_case(cases / "CT_a.npz")
    predictor = Predictor(load_engine(str(weights), "cpu", "fp32"), strategy or "reference", roi=16)
    k_mm, j_mm, i_mm = SPACING
    predictor.set_image(case.image, np.diag([i_mm, j_mm, k_mm, 1]))
    logits = np.full((2, *SHAPE), -np.inf)
    assert case.clicks is not None
    for number, clicks in enumerate(case.clicks):
        predictor.add_object(f"class {number}")
        for click in clicks:
            predictor.add_click(f"class {number}", click.kji, click.positive)
        segment = predictor.segment(f"class {number}")
        logits[(number, *segment.box)] = np.nan_to_num(segment.logits.numpy(), nan=-np.inf)
    inside = logits > 0
    assert (inside[0] & inside[1]).any(), "where nothing overlaps, this test shows nothing"
    if strategy == "adaptive":
        expected = np.where(inside.any(axis=0), logits.argmax(axis=0) + 1, 0)
    else:
        expected = np.where(inside[1], 2, np.where(inside[0], 1, 0))
    np.testing.assert_array_equal(segs(out / "CT_a.npz"), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_too_little_time_costs_care_and_no_answer(
    strategy: str, cases: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that nothing can keep: the quickest way is taken, the answer is written, and all is said."""
    out = tmp_path / "out"
    arguments = ["predict", cases, out, "--weights", weights, "--strategy", strategy, "--roi", "32"]
    assert main([str(word) for word in [*arguments, "--time-limit", "0.001"]]) == 0
    said = capsys.readouterr().err
    assert "warning: CT_a: from class 1 on with quarter resolution, to stay within the time limit" in said
    assert "this run's share of the time limit is 0.0 s" in said
    assert segs(out / "CT_a.npz").shape == SHAPE
    if strategy == "adaptive":
        assert segs(out / "CT_a.npz").any()


def test_time_enough_changes_nothing(cases: Path, run: Callable[..., str], tmp_path: Path) -> None:
    run("predict", cases, tmp_path / "a", *COMMON)
    run("predict", cases, tmp_path / "b", *COMMON, "--time-limit", "3600")
    np.testing.assert_array_equal(segs(tmp_path / "a" / "CT_a.npz"), segs(tmp_path / "b" / "CT_a.npz"))


@pytest.mark.parametrize("limit", ["0", "-3", "nan"])
def test_a_time_limit_is_a_time(limit: str, cases: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    assert "--time-limit must be above 0 seconds" in fail(
        "predict", cases, tmp_path / "out", f"--time-limit={limit}"
    )


def test_nifti_beside_the_result(cases: Path, run: Callable[..., str], tmp_path: Path) -> None:
    """Array axis n is NIfTI axis n, with spacing n."""
    out = tmp_path / "out"
    run("predict", cases, out, "--save-nifti", *COMMON)
    nifti = nibabel.load(out / "CT_a.nii.gz")
    np.testing.assert_allclose(nifti.affine, np.diag([*SPACING, 1]), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), segs(out / "CT_a.npz"))
    assert sorted(path.name for path in out.iterdir()) == ["CT_a.nii.gz", "CT_a.npz"]


def test_a_class_without_clicks_stays_empty(
    cases: Path, weights: Path, array: NDArray[np.int16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No click is made up where there is none or only a box; background clicks alone run, as in the seed."""
    nothing = {"fg": [], "bg": []}
    box = {"z_min": 4, "z_max": 15, "z_mid": 9, "z_mid_y_min": 5, "z_mid_y_max": 16}
    box |= {"z_mid_x_min": 7, "z_mid_x_max": 20}
    only_background = {"fg": [], "bg": [[1, 1, 1]]}
    save_case(cases / "CT_a.npz", array, clicks=objects(nothing, CLICKS[1], only_background))
    save_case(cases / "CT_b.npz", array, clicks=None, boxes=objects(box))
    out = tmp_path / "out"
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 0
    captured = capsys.readouterr()
    assert set(np.unique(segs(out / "CT_a.npz"))) == {0, 2, 3}
    assert not segs(out / "CT_b.npz").any()
    assert captured.out == "CT_a: 3 classes\nCT_b: 1 class\n"
    assert captured.err.splitlines() == [
        "gsmedseg: warning: CT_a: class 1 has no foreground click and stays empty",
        "gsmedseg: warning: CT_b: class 1 has no foreground click and stays empty",
    ]


def test_bad_cases_are_named_and_the_others_go_on(
    cases: Path, weights: Path, array: NDArray[np.int16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.clip(array + 60, 0, 255).astype(np.uint8)
    witness = tmp_path / "witness"
    hostile = {"fg": [Payload(witness)], "bg": []}
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "b_key": ({"imgs": None}, "the key 'imgs' is missing; the file has: spacing, clicks"),
        "c_spacing": ({"spacing": None}, "the key 'spacing' is missing"),
        "d_dtype": ({"imgs": image.astype(np.float32)}, "imgs must be 3D (K, J, I) uint8"),
        "e_nan": ({"imgs": np.full(SHAPE, np.nan)}, "imgs must be 3D (K, J, I) uint8"),
        "f_2d": ({"imgs": image[0]}, "imgs must be 3D (K, J, I) uint8, got shape (24, 28)"),
        "g_4d": ({"imgs": image[None]}, "imgs must be 3D (K, J, I) uint8, got shape (1, 20, 24, 28)"),
        "h_constant": ({"imgs": np.full(SHAPE, 9, np.uint8)}, "the image is constant (every voxel is 9)"),
        "i_outside": ({"clicks": objects({"fg": [[20, 0, 0]], "bg": []})}, "is outside the image"),
        "j_noclick": ({"clicks": None}, "the case has neither clicks nor boxes"),
        "k_noclass": ({"clicks": objects()}, "the case has neither clicks nor boxes"),
        "l_hostile": ({"clicks": objects(hostile)}, "not plain data; nothing of it was run"),
    }
    for name, (changed, _) in bad.items():
        save_case(cases / f"{name}.npz", array, **changed)
    (cases / "m_empty.npz").touch()
    (cases / "n_truncated.npz").write_bytes((cases / "CT_a.npz").read_bytes()[:-500])
    save_case(cases / "z_good.npz", array)
    (cases / "._z_good.npz").write_bytes(b"what macOS leaves behind")
    (cases / "notes.txt").touch()

    out = tmp_path / "out" / "deep"
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 2
    captured = capsys.readouterr()
    assert captured.out == "CT_a: 2 classes\nz_good: 2 classes\n"
    assert sorted(path.name for path in out.iterdir()) == ["CT_a.npz", "z_good.npz"]
    assert not witness.exists()
    *lines, last = captured.err.splitlines()
    failed = [*bad, "m_empty", "n_truncated"]
    assert last == f"gsmedseg: error: 13 of 15 cases failed: {', '.join(failed)}"
    messages = [message for _, message in bad.values()] + ["(empty, truncated or damaged)"] * 2
    for line, name, message in zip(lines, failed, messages, strict=True):
        assert line.startswith(f"gsmedseg: error: {name}: ")
        assert message in line


def test_a_case_that_fails_to_be_written_leaves_nothing(
    cases: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_half(stream: Any, array: NDArray[Any], allow_pickle: bool) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(npz.npy_format, "write_array", write_half)
    out = tmp_path / "out"
    assert main(["predict", str(cases), str(out), "--weights", str(weights), *COMMON]) == 2
    assert "CT_a: No space left on device; free some space" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_folders_that_cannot_be_predicted(cases: Path, fail: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file or directory; check the path" in fail("predict", tmp_path / "none", tmp_path / "out")
    assert "holds the cases, which the results would replace" in fail("predict", cases, cases)
    (tmp_path / "empty").mkdir()
    assert "there is no .npz case in this folder" in fail("predict", tmp_path / "empty", tmp_path / "out")
    assert "out: File exists; choose another name" in fail("predict", cases, make_file(tmp_path / "out"))
    assert "Not a directory" in fail("predict", tmp_path / "out", tmp_path / "other")
    assert find_cases(cases) == [cases / "CT_a.npz"]


def make_file(path: Path) -> Path:
    path.touch()
    return path


# gsmedseg weights


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GSMEDSEG_OFFLINE", raising=False)
    return tmp_path / "home" / "weights"


@pytest.fixture
def mirror(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of this machine with the tiny weights."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(FileServer(weights.read_bytes())) as server:
        yield server


def test_imported_weights_are_listed_and_used_by_name(
    home: Path, weights: Path, image: Path, run: Callable[..., str], fail: Callable[..., str], tmp_path: Path
) -> None:
    header, *rows = run("weights", "list").splitlines()
    assert header.split() == ["NAME", "HERE", "MB", "LICENCE", "ABOUT"]
    assert [row.split()[0] for row in rows] == ["compact", "vista3d", "vista3d-monai", "vista3d-cvpr2025"]
    assert all(row[header.index("HERE") :].startswith("no") for row in rows[1:])

    assert run("weights", "import", weights, "--name", "mine") == f"mine: {home / 'mine.safetensors'}\n"
    last = run("weights", "list").splitlines()[-1].split()
    assert last == ["mine", "yes", "1", "yours", "imported"]
    by_name, by_path = tmp_path / "a.nrrd", tmp_path / "b.nrrd"
    run("segment", image, "-o", by_name, "--fg", "12,10,9", "--weights", "mine")
    run("segment", image, "-o", by_path, "--fg", "12,10,9", "--weights", weights)
    assert by_name.read_bytes() == by_path.read_bytes()

    (tmp_path / "text.pt").write_text("hello")
    assert "expected a .safetensors or .pt checkpoint" in fail("weights", "import", tmp_path / "text.pt")
    assert "give one with --name" in fail("weights", "import", weights, "--name", "compact")
    assert "No such file" in fail("weights", "import", tmp_path / "none.pt")
    assert "one of compact, vista3d" in fail("weights", "fetch", "vista4d", "--accept-terms")


def test_weights_are_fetched_once_their_terms_are_accepted(
    home: Path, weights: Path, mirror: FileServer, run: Callable[..., str]
) -> None:
    said = run("weights", "fetch", "vista3d", "--accept-terms", "--url", mirror.url).splitlines()
    assert "Licence: NVIDIA Open Model License" in said
    assert said[-1] == str(home / "vista3d.safetensors")
    assert (home / "vista3d.safetensors").read_bytes() == weights.read_bytes()
    assert run("weights", "fetch", "vista3d", "--url", mirror.url) == f"{home / 'vista3d.safetensors'}\n"
    assert len(mirror.requests) == 1


@pytest.mark.parametrize(
    ("answer", "accepted"), [("y", True), ("Yes ", True), ("n", False), ("", False), (None, False)]
)
def test_a_person_is_asked(
    answer: str | None,
    accepted: bool,
    home: Path,
    mirror: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Anything but yes is no; so is the end of the input (None)."""
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    assert main(["weights", "fetch", "vista3d", "--url", mirror.url]) == (0 if accepted else 2)
    assert asked == ["Do you accept these terms? [y/N] "]
    captured = capsys.readouterr()
    assert "Full text: https://www.nvidia.com/" in captured.out
    assert (home / "vista3d.safetensors").exists() == accepted
    assert ("its terms were not accepted" in captured.err) == (not accepted)
    assert len(mirror.requests) == accepted


def test_nobody_is_asked_in_a_script(
    home: Path, mirror: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["weights", "fetch", "vista3d", "--url", mirror.url]) == 2
    assert "then add --accept-terms" in capsys.readouterr().err
    assert not mirror.requests
    assert not home.exists()


def test_offline_means_offline(
    home: Path, mirror: FileServer, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSMEDSEG_OFFLINE", "1")
    assert "the network is switched off" in fail(
        "weights", "fetch", "vista3d", "--accept-terms", "--url", mirror.url
    )
    assert not mirror.requests


def test_weights_are_converted(
    home: Path, weights: Path, run: Callable[..., str], fail: Callable[..., str], tmp_path: Path
) -> None:
    tensors = read_checkpoint(weights).tensors
    torch.save({"model": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, tmp_path / "last.pt")
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), (None, torch.float16)):
        target = tmp_path / f"{dtype}.safetensors"
        arguments = ["--dtype", dtype] if dtype else []
        assert run("weights", "convert", tmp_path / "last.pt", target, *arguments) == f"{target}\n"
        read = read_checkpoint(target)
        assert read.tensors.keys() == tensors.keys()
        assert {t.dtype for t in read.tensors.values() if t.is_floating_point()} == {expected}
        assert read.metadata["source"] == "last.pt"

    assert "ending in .safetensors" in fail("weights", "convert", weights, tmp_path / "out.pt")
    assert "does not exist" in fail("weights", "convert", weights, tmp_path / "none" / "out.safetensors")
    assert "there is no 'none'" in fail("weights", "convert", "none", tmp_path / "out.safetensors")
    assert "invalid choice: 'int4'" in fail(
        "weights", "convert", weights, tmp_path / "o.safetensors", "--dtype", "int4"
    )
    half = tmp_path / "half.pt"
    half.write_bytes(weights.read_bytes()[:1000])
    assert "cut short or damaged" in fail("weights", "convert", half, tmp_path / "out.safetensors")


# What all commands share


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["segment", "--help"], ["predict", "-h"], ["weights", "fetch", "-h"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: gsmedseg")
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gsmedseg {cli.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND; see gsmedseg --help"),
        (["weights"], "ACTION; see gsmedseg weights --help"),
        (["fly"], "invalid choice: 'fly'"),
        (["segment", "image.nii"], "-o/--output; see gsmedseg segment --help"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_demo_gets_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: list[Path] = []
    monkeypatch.setattr("GSMedSegLib.demo.run_demo", folders.append)
    assert main(["demo"]) == 0
    assert main(["demo", str(tmp_path)]) == 0
    assert folders == [Path("build/demo"), tmp_path]


ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.mark.parametrize("arguments", [["--version"], ["weights", "list"], ["segment", "--help"]])
def test_short_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"""if True:
        import sys
        from GSMedSegLib.cli import main
        try:
            main({arguments})
        except SystemExit:
            pass
        heavy = {{"torch", "monai", "SimpleITK", "scipy"}} & set(sys.modules)
        sys.exit(f"loaded {{heavy}}" if heavy else 0)
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_a_process_of_its_own_says_one_line_too(image: Path, weights: Path, tmp_path: Path) -> None:
    """No warning of a library comes between, whether it works or fails; names may be of any script."""
    command = [sys.executable, "-m", "GSMedSegLib.cli", "segment", str(image), "-o", str(tmp_path / "o.nrrd")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for given, code, lines in ((weights, 0, (1, 0)), (image, 2, (0, 1))):
        clicks = ["--object", "肝臓", "--fg", "12,10,9", "--weights", str(given)]
        done = subprocess.run(
            [*command, *clicks], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert (done.stdout.count("\n"), done.stderr.count("\n")) == lines, done.stderr
