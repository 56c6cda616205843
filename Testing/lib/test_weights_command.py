"""`gsmedseg weights`: imported, fetched, converted; and files that are no weights."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from GSMedSegLib.checkpoint import read_checkpoint, write_safetensors
from GSMedSegLib.cli import main
from Testing.lib.command_line import Payload
from Testing.lib.file_server import FileServer, serve


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
