"""Reading checkpoints of every form, refusing what is not one, writing safetensors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from GSMedSegLib.checkpoint import file_form, read_checkpoint, sha256_of, write_safetensors


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A few numbers of every kind a network has: float weights, an integer counter."""
    return {
        "image_encoder.conv.weight": torch.arange(24.0).reshape(2, 3, 4) / 8,
        "point_head.bias": torch.tensor([-1.5, 0.25]),
        "point_head.count": torch.tensor(7),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


# What is read


def forms(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The ways trainers save the same state dict."""
    return {
        "raw": weights,
        "ordered": OrderedDict(weights),
        "parameters": {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in weights.items()},
        "model": {"model": weights, "epoch": 3, "step": 1200},
        "state_dict": {"state_dict": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(5)}}}},
        "nested": {"model": {"state_dict": weights, "arch": "vista3d"}, "epoch": 1},
        "DDP": {"model": prefixed("module.", weights), "epoch": 3, "step": 9},
        "DDP of compiled": prefixed("module._orig_mod.", weights),
        "Hugging Face export": prefixed("network.", weights),
        "beside extras": {**weights, "epoch": 3, "best": 0.91, "names": ["liver"]},
    }


@pytest.mark.parametrize("form", list(forms({"a": torch.ones(1)})))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_form_gives_the_same_tensors(
    form: str, legacy: bool, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Where trainers put the state dict, and in which file format, does not matter."""
    path = tmp_path / "weights.bin"
    torch.save(forms(weights)[form], path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert file_form(path) == ("pickle" if legacy else "zip")
    assert same(read.tensors, weights)
    assert read.metadata == {}
    assert read.sha256 is None
    assert not any(t.requires_grad for t in read.tensors.values())


def test_safetensors_with_prefix_and_metadata(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """The suffix is not looked at, wrapper prefixes go, metadata stays."""
    path = tmp_path / "weights.pt"
    save_file(prefixed("network.", weights), path, {"recipe": "tiny"})
    read = read_checkpoint(path, with_sha256=True)
    assert same(read.tensors, weights)
    assert read.metadata == {"recipe": "tiny"}
    assert read.sha256 == sha256_of(path)


def test_a_safetensors_header_of_any_length_is_known(tmp_path: Path) -> None:
    """A header of 128 bytes makes the file begin like a pickle."""
    firsts = set()
    for length in range(0, 256, 8):
        path = tmp_path / f"{length}.safetensors"
        save_file({"a": torch.ones(1)}, path, {"note": "x" * length})
        firsts.add(path.read_bytes()[:1])
        assert file_form(path) == "safetensors"
    assert b"\x80" in firsts


def test_a_prefix_that_only_some_names_carry_is_kept(tmp_path: Path) -> None:
    """`network.` is a wrapper only when it wraps everything."""
    torch.save({"network.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_checkpoint(tmp_path / "w.pt").tensors) == {"network.a", "b"}


def test_sha256_of_the_empty_file(tmp_path: Path) -> None:
    """The well-known SHA-256 of nothing."""
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# What is refused


class Payload:
    """Unpickles into a call of `os.system`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"echo ran > '{self.mark}'",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_pickle_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    """A call hidden among the tensors never happens."""
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"model": {"a": torch.ones(2)}, "epoch": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"refused.*besides tensors.*safetensors"):
        read_checkpoint(path)
    assert not mark.exists()


def test_a_bare_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """The same without torch's wrapping."""
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match=str(path)):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "web page"),
        (b"\xef\xbb\xbf\n  <html>", "web page"),
        (b'{"error": "quota exceeded"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"nothing in particular", "no known form"),
    ],
    ids=["empty", "html", "html with BOM", "json", "lfs", "text"],
)
def test_what_failed_downloads_leave_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """The usual wrong files are told apart."""
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "pickle", "safetensors"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(
    form: str, share: float, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """A download that stopped early never loads as fewer weights."""
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(10, int(len(whole) * share))])
    with pytest.raises(ValueError, match="cut short or damaged") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "pickle", "safetensors"])
def test_random_damage_is_an_error_that_teaches_or_no_error(
    form: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Whatever byte is flipped, only ValueError comes out."""
    path, draw = tmp_path / "weights", random.Random(0)
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(min(len(whole), 900))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_checkpoint(path, check_finite=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "empty dictionary"),
        ({"optimizer": {"lr": 0.1}, "epoch": 3}, "found the keys optimizer, epoch"),
        ({"model": {"a": [1, 2]}}, "expected a state dict"),
        ([torch.ones(2)], "no dictionary"),
        (torch.ones(2), "no dictionary"),
        ("weights", "no dictionary"),
    ],
    ids=["empty", "optimizer only", "lists", "list", "one tensor", "string"],
)
def test_files_without_a_state_dict_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    """What was found is said."""
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "w.pt")


def test_what_a_training_goes_on_from_is_no_weights(tmp_path: Path) -> None:
    """It has no average and no metadata at the place where weights have them: masks would be wrong."""
    model = {"a": torch.ones(2)}
    torch.save({"model": model, "average": model, "optimiser": {}, "settings": {}}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is for a training run .* take average\.safetensors"):
        read_checkpoint(tmp_path / "last.pt")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """Looking for the state dict ends."""
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="found the keys epoch, model"):
        read_checkpoint(tmp_path / "w.pt")


def test_safetensors_without_tensors_are_refused(tmp_path: Path) -> None:
    """A header alone is no network."""
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no tensors"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_other_zip_archives_are_refused(tmp_path: Path) -> None:
    """A bundle's zip, a TorchScript program and a re-compressed checkpoint each get their own advice."""
    bundle, script, packed = tmp_path / "bundle.zip", tmp_path / "model.ts", tmp_path / "packed.pt"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("vista3d/models/model.pt", b"x")
    with pytest.raises(ValueError, match="another zip archive"):
        read_checkpoint(bundle)
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("m/data.pkl", b"x")
        archive.writestr("m/constants.pkl", b"x")
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(script)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"x" * 1000)
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(packed)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1).expand(10**6, 10**6), "more than the file"),
        (torch.ones(3, 3).to_sparse(), "sparse"),
        (torch.ones(3, device="meta"), "without values"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_that_are_not_plain_values_are_refused(tensor: Tensor, message: str, tmp_path: Path) -> None:
    """A tiny file that claims 10¹² values would exhaust memory later."""
    torch.save({"a": tensor}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite(value: float, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """NaN and infinity are refused on request; integers are never looked at."""
    weights["point_head.bias"][1] = value
    torch.save(weights, tmp_path / "w.pt")
    assert len(read_checkpoint(tmp_path / "w.pt").tensors) == 3
    with pytest.raises(ValueError, match=r"1 of 3 tensors.*point_head\.bias"):
        read_checkpoint(tmp_path / "w.pt", check_finite=True)


def test_a_missing_file_and_a_folder_stay_os_errors(tmp_path: Path) -> None:
    """Their own text is good."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(OSError, match=str(tmp_path)):
        read_checkpoint(tmp_path)


# What is written


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_written_weights_come_back(
    dtype: Any, expected: torch.dtype, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Eighths are exact in every precision; integers keep their type; metadata is kept."""
    path = tmp_path / "w.safetensors"
    write_safetensors(path, weights, {"recipe": json.dumps({"steps": 3})}, dtype)
    read = read_checkpoint(path)
    assert read.metadata == {"format": "pt", "recipe": '{"steps": 3}'}
    for name, tensor in read.tensors.items():
        assert tensor.dtype == (expected if weights[name].is_floating_point() else torch.int64)
        assert torch.equal(tensor.double(), weights[name].double())


def test_awkward_tensors_are_written_as_plain_ones(tmp_path: Path) -> None:
    """Shared, strided, empty, scalar, double and gradient-carrying tensors."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "first": base,
        "again": base,
        "half": base[1:],
        "transposed": base.T,
        "channels_last": torch.rand(1, 2, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d),
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(2.5),
        "double": torch.tensor([1.5], dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
    }
    write_safetensors(tmp_path / "w.safetensors", tensors, {}, "fp32")
    read = read_checkpoint(tmp_path / "w.safetensors").tensors
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name].double(), tensor.detach().double()), name


def test_reading_and_rewriting_a_file_in_place(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Memory-mapped tensors may be written over the file they come from."""
    path = tmp_path / "w.safetensors"
    write_safetensors(path, weights, {})
    write_safetensors(path, read_checkpoint(path).tensors, {})
    assert same(read_checkpoint(path).tensors, weights)


def test_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    """65504 fits; 70000 would become infinity, unlike in bf16. An infinity that was there before is kept."""
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": torch.tensor([65504.0, float("inf")])}, {}, "fp16")
    with pytest.raises(ValueError, match=r"b has values beyond ±65504.*bf16"):
        write_safetensors(path, {"b": torch.tensor([7e4])}, {}, "fp16")
    assert "a" in read_checkpoint(path).tensors
    write_safetensors(path, {"b": torch.tensor([7e4])}, {}, "bf16")


def test_bad_arguments_leave_no_file(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """No tensors, an unknown dtype, metadata that is not text."""
    path, bad_dtype, bad_metadata = tmp_path / "w.safetensors", "fp8", {"epoch": 3}
    with pytest.raises(ValueError, match="at least one tensor"):
        write_safetensors(path, {}, {})
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        write_safetensors(path, weights, {}, bad_dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'epoch' is int"):
        write_safetensors(path, weights, bad_metadata)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        write_safetensors(tmp_path / "nowhere" / "w.safetensors", weights, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_written_files_have_ordinary_permissions(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """A colleague can read the weights where the umask lets them."""
    write_safetensors(tmp_path / "w.safetensors", weights, {})
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_full_disk_leaves_the_old_file_and_nothing_else(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """A limit on the file size stands in for a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    write_safetensors(path, weights, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="is the disk full") as caught:
            write_safetensors(path, {"a": torch.ones(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == [path]
    assert same(read_checkpoint(path).tensors, weights)


def test_importing_the_module_does_not_load_torch() -> None:
    """`gsmedseg --help` stays fast."""
    code = "import sys, GSMedSegLib.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
