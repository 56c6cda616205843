"""What the tests of the commands share: tiny weights, an image, and a command that must work, or fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from GSMedSegLib.checkpoint import write_safetensors
from GSMedSegLib.cli import main
from GSMedSegLib.network import Network, Shape
from Testing.lib.command_line import OBLIQUE, SHAPE, write


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
