"""Weights in a file: read from any common form, written as safetensors; only tensors are unpickled."""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from GSMedSegLib.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

DType = Literal["fp32", "fp16", "bf16"]
FileForm = Literal["safetensors", "zip", "pickle"]

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "network", "net")
"""Where trainers put the state dict beside the optimizer, the epoch and the like."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "network.")
"""What DDP, `torch.compile` and VISTA3D's Hugging Face export put before every name."""


MAX_HEADER_BYTES = 100_000_000
"""The largest header the safetensors library reads; the file's first eight bytes hold its length."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a network.

    Attributes:
        tensors: strided CPU tensors by name, without wrapper prefixes; memory-mapped where the file allows
            it, so treat them as read-only.
        metadata: a safetensors file's own strings; empty for other forms.
        sha256: of the file, where it was asked for.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str]
    sha256: str | None = None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 lower-case hexadecimal digits."""
    return file_digest(path, "sha256")


def file_digest(path: str | os.PathLike[str], algorithm: str) -> str:
    """The digest of a file in hexadecimal, by any algorithm `hashlib` knows."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_form(path: str | os.PathLike[str]) -> FileForm:
    """Tell from the first bytes what kind of checkpoint a file is.

    Returns:
        "safetensors"; "zip" for what `torch.save` writes since 1.6; "pickle" for what it wrote before.

    Raises:
        ValueError: the file is empty or not a checkpoint; a web page, a JSON message or a Git LFS pointer
            saved in its place is named as such.
    """
    with Path(path).open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: expected a checkpoint, the file is empty; download or copy it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = "this one is of no known form"
    if text.startswith(b"<"):
        found = "it holds a web page (a failed download often saves the error or consent page)"
    elif text.startswith((b"{", b"[")):
        found = "it holds JSON text (a failed download often saves the error message)"
    elif text.startswith(b"version https://git-lfs"):
        found = "it is a Git LFS pointer; run `git lfs pull` where it was cloned"
    raise ValueError(f"{path}: expected a .safetensors or .pt checkpoint, {found}; download it again")


def read_checkpoint(
    path: str | os.PathLike[str], *, check_finite: bool = False, with_sha256: bool = False
) -> Checkpoint:
    """Read the weights in a safetensors or PyTorch file, whatever its suffix.

    A PyTorch file may hold a state dict or one under any of `STATE_DICT_KEYS`, nested; what else it holds
    (optimizer, epoch) is left out. Prefixes in `WRAPPER_PREFIXES` that every name carries are removed.

    Args:
        path: the file.
        check_finite: also look at every value, and refuse NaN and infinity.
        with_sha256: also fill `Checkpoint.sha256`.

    Raises:
        ValueError: the file is empty, cut short, damaged, no checkpoint, holds no tensors or more than
            tensors and plain values. Nothing in the file is executed.
        OSError: it cannot be opened.
    """
    form = file_form(path)
    tensors, metadata = _read_safetensors(path) if form == "safetensors" else (_read_torch(path, form), {})
    tensors = _without_wrappers(tensors)
    size = Path(path).stat().st_size
    for name, tensor in tensors.items():
        _check_plain(path, name, tensor, size)
    if check_finite:
        _check_finite(path, tensors)
    return Checkpoint(tensors, metadata, sha256_of(path) if with_sha256 else None)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: DType = "fp32",
) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        tensors: at least one. Floating-point tensors are cast to `dtype`, others kept; tensors that share
            memory are written as separate ones.
        metadata: strings for the file's header.
        dtype: "fp32", "fp16" or "bf16".

    Raises:
        ValueError: there are no tensors, a metadata value is not a string, `dtype` is unknown, or a finite
            value is beyond the range of fp16 (±65504).
        OSError: the file cannot be written; none is left behind.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if dtype not in dtypes:
        raise ValueError(f"dtype should be one of {', '.join(dtypes)}, not {dtype!r}")
    if not tensors:
        raise ValueError(f"{path}: expected at least one tensor to write, got none")
    no_text = [
        f"{key!r} is {type(value).__name__}" for key, value in metadata.items() if not isinstance(value, str)
    ]
    if no_text:
        raise ValueError(f"metadata should be strings, {', '.join(no_text)}: use str() or json.dumps()")
    ready = {name: _to_dtype(name, tensor, dtypes[dtype]) for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in ready.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen:
            ready[name] = tensor.clone()
        seen.add(memory)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # save_file makes files that only their owner can read
        try:
            save_file(ready, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:
            raise OSError(
                errno.EIO, f"could not write the weights, is the disk full? ({error})", str(path)
            ) from error
        temporary.chmod(mode)


def _read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path}: the safetensors file is cut short or damaged ({error}); download or copy it again"
        ) from error
    if not tensors:
        raise ValueError(f"{path}: expected the weights of a network, the safetensors file holds no tensors")
    return tensors, metadata


def _read_torch(path: str | os.PathLike[str], form: FileForm) -> dict[str, Tensor]:
    import torch

    if form == "zip":
        _check_zip(path)
    try:
        with warnings.catch_warnings():  # torch warns about odd pickles, which end as errors here
            warnings.simplefilter("ignore")
            loaded = torch.load(os.fspath(path), weights_only=True, mmap=form == "zip", map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: refused, it holds Python objects besides tensors, which could run code if opened; "
                "ask its author for a plain state dict or a .safetensors file"
            ) from error
        # Before this, torch advises to load the file without its safeguard.
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = (text or type(error).__name__).splitlines()[0][:120]
        raise ValueError(
            f"{path}: not a readable PyTorch checkpoint, cut short or damaged ({reason}); "
            "download or copy it again"
        ) from error
    return _state_dict(path, loaded)


def _check_zip(path: str | os.PathLike[str]) -> None:
    """Refuse what `torch.save` did not write: cut short, foreign, or compressed (a possible zip bomb)."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: the checkpoint is cut short or damaged ({error}); download it again"
        ) from error
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path}: expected weights, this is a TorchScript program; save its state_dict() instead"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise ValueError(
            f"{path}: expected a checkpoint, this is another zip archive ({', '.join(names[:3])}, …): "
            "unpack it and give the .pt or .safetensors file inside"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{path}: expected a file as torch.save writes it, this one was compressed again")


def _state_dict(path: str | os.PathLike[str], loaded: Any) -> dict[str, Tensor]:
    """Find the state dict in what a file held."""
    import torch

    if isinstance(loaded, Mapping) and {"average", "optimiser", "settings"} <= loaded.keys():
        raise ValueError(
            f"{path} is for a training run to go on from, not to use; take average.safetensors beside it, or "
            "weights.safetensors when the run is at its end"
        )
    inner = loaded
    for _ in range(4):  # deeper nesting is unheard of, and a hostile pickle may hold itself
        if not isinstance(inner, Mapping):
            break
        inner = next((inner[k] for k in STATE_DICT_KEYS if isinstance(inner.get(k), Mapping)), inner)
    if isinstance(inner, Mapping):
        tensors = {
            k: v.detach() for k, v in inner.items() if isinstance(k, str) and isinstance(v, torch.Tensor)
        }
        if tensors:
            return tensors
    found = "no dictionary"
    if isinstance(loaded, Mapping):
        found = (
            f"the keys {', '.join(str(key) for key in list(loaded)[:5])}" if loaded else "an empty dictionary"
        )
    raise ValueError(
        f"{path}: expected a state dict (names to tensors) at the top or under "
        f"{' / '.join(STATE_DICT_KEYS[:3])}, found {found}"
    )


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_plain(path: str | os.PathLike[str], name: str, tensor: Tensor, file_bytes: int) -> None:
    """Refuse tensors that are not values in the file: they cannot be weights, and may exhaust memory."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ValueError(
            f"{path}: expected plain dense tensors, {name} is sparse, quantized or without values"
        )
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise ValueError(
            f"{path}: {name} claims {tuple(tensor.shape)} values, more than the file's {file_bytes} bytes "
            "can hold; the file is damaged or hostile"
        )


def _check_finite(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    import torch

    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise ValueError(
            f"{path}: expected finite weights, {len(bad)} of {len(tensors)} tensors hold NaN or infinity "
            f"(first: {bad[0]}); the training diverged or the file is damaged, use an earlier checkpoint"
        )


def _to_dtype(name: str, tensor: Tensor, dtype: Any) -> Tensor:
    """A contiguous CPU tensor, cast when it is floating-point."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        limit = torch.finfo(dtype).max
        if (
            dtype == torch.float16
            and tensor.numel()
            and bool((tensor.abs() > limit)[torch.isfinite(tensor)].any())
        ):
            raise ValueError(
                f"{name} has values beyond ±{limit:.0f}, the range of fp16: write bf16 or fp32 instead"
            )
        tensor = tensor.to(dtype)
    return tensor.contiguous()
