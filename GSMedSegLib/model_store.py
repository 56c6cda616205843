"""The network weights this machine has, and the public ones it can get.

Three kinds: `compact` comes with GSMedSeg; the public VISTA3D checkpoints are downloaded under their
publisher's terms and never passed on; any other file is imported. Downloads and imports lie in
`weights_folder()`, each beside a `.sha256` file.

Where the publisher names a checksum, it is checked. Where none is published, the file must be a VISTA3D
checkpoint, and the checksum of the first download is written down, so that a later download of anything else
is noticed (trust on first use).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from GSMedSegLib.atomic import atomic_path, check_target
from GSMedSegLib.checkpoint import (
    DType,
    file_digest,
    file_form,
    read_checkpoint,
    sha256_of,
    write_safetensors,
)
from GSMedSegLib.download import Progress, download

BUNDLED = "compact"
SUFFIXES = (".safetensors", ".pt")
NETWORK_PARTS = ("image_encoder.", "point_head.")
"""Tensor names that every VISTA3D network has, of whatever width."""


@dataclass(frozen=True)
class Licence:
    """The terms weights come under.

    Attributes:
        name: as the publisher calls it.
        summary: one sentence.
        url: the full text.
    """

    name: str
    summary: str
    url: str


@dataclass(frozen=True)
class Entry:
    """Weights known by name.

    Attributes:
        name: what the command line calls them.
        about: one line.
        url: where they are downloaded from; None for bundled and imported ones.
        page: the publisher's page, for a browser.
        licence: None for imported ones, whose terms we do not know.
        size_mb: about, in 10⁶ bytes.
        checksum: the publisher's, as "algorithm:hexadecimal"; None where none is published.
        suffix: of the file.
        path: where the file lies on this machine; None when it is not here.
    """

    name: str
    about: str
    url: str | None = None
    page: str | None = None
    licence: Licence | None = None
    size_mb: int | None = None
    checksum: str | None = None
    suffix: str = ".safetensors"
    path: Path | None = None

    @property
    def terms(self) -> str:
        """What to show before a download."""
        if self.licence is None:
            return f"{self.name}: your own weights; their terms are not known here."
        size = f", about {self.size_mb} MB" if self.size_mb else ""
        return (
            f"{self.name}: {self.about}{size}\nfrom {self.page or self.url}\n"
            f"Licence: {self.licence.name}\n{self.licence.summary}\nFull text: {self.licence.url}"
        )


_NONCOMMERCIAL = (
    "Research or evaluation only; derived weights too; any copy passed on carries the same licence."
)

# Source: Project-MONAI/VISTA vista3d/README.md (2026-05-19) names the weights, the Hugging Face repository
# and both licences: its table has the Open Model License, its last section the noncommercial one. The
# revision is that repository's commit "Fix license mismatch". Size: its file list. Neither prints a checksum.
_VISTA3D = Entry(
    name="vista3d",
    about="VISTA3D for CT (NVIDIA NV-Segment-CT), 127 classes and clicks",
    url="https://huggingface.co/nvidia/NV-Segment-CT/resolve/"
    "afb51518689f71e6abb367ee6301b2cd0225c66a/vista3d_pretrained_model/model.safetensors",
    page="https://huggingface.co/nvidia/NV-Segment-CT",
    licence=Licence(
        "NVIDIA Open Model License",
        "Commercial use is allowed by this licence; the authors' code repository still names the "
        "noncommercial licence for the same weights: ask NVIDIA before you rely on it.",
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    ),
    size_mb=872,
)

# Source: Project-MONAI/model-zoo models/vista3d/large_files.yml (2024-10-11) for the address and the MD5, its
# docs/README.md and LICENSE for the terms. Size: the same bundle's file list on Hugging Face (MONAI/vista3d).
_VISTA3D_MONAI = Entry(
    name="vista3d-monai",
    about="VISTA3D for CT as in MONAI's model zoo, 127 classes and clicks",
    url="https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/model_vista3d.pt",
    page="https://github.com/Project-MONAI/model-zoo/tree/dev/models/vista3d",
    licence=Licence(
        "NVIDIA License (NCLS v1)",
        _NONCOMMERCIAL,
        "https://github.com/Project-MONAI/model-zoo/blob/dev/models/vista3d/LICENSE",
    ),
    size_mb=872,
    checksum="md5:6ce45a8edde4400c5d28d5e74d7b61d5",
    suffix=".pt",
)

# Source: Project-MONAI/VISTA vista3d/cvpr_workshop/README.md, "challenge subsets finetuned checkpoint", to
# which GS_MedSegFM points as well (it publishes no weights of its own); the licence is that of
# vista3d/README.md. Neither prints a checksum or a size.
_VISTA3D_CVPR = Entry(
    name="vista3d-cvpr2025",
    about="VISTA3D fine-tuned on CT, MR, PET, ultrasound and microscopy of the CVPR 2025 challenge",
    url="https://drive.usercontent.google.com/download?id=1hQ8imaf4nNSg_43dYbPSJT0dr7JgAKWX&export=download&confirm=t",
    page="https://drive.google.com/file/d/1hQ8imaf4nNSg_43dYbPSJT0dr7JgAKWX/view",
    licence=Licence(
        "NVIDIA OneWay Noncommercial License",
        _NONCOMMERCIAL,
        "https://github.com/Project-MONAI/VISTA/blob/main/vista3d/NVIDIA%20OneWay%20Noncommercial%20License.txt",
    ),
    suffix=".pt",
)

_COMPACT = Entry(
    name=BUNDLED,
    about="GSMedSeg's own small network, comes with the package",
    licence=Licence("Apache-2.0", "Free for any use.", "https://www.apache.org/licenses/LICENSE-2.0"),
)

CATALOGUE = {entry.name: entry for entry in (_COMPACT, _VISTA3D, _VISTA3D_MONAI, _VISTA3D_CVPR)}


def weights_folder() -> Path:
    """Where downloaded and imported weights lie: under GSMEDSEG_HOME, else in the user's cache folder."""
    home = os.environ.get("GSMEDSEG_HOME")
    return (Path(home).expanduser() if home else user_cache_path("gsmedseg", appauthor=False)) / "weights"


def is_offline() -> bool:
    """Whether GSMEDSEG_OFFLINE forbids the network."""
    return os.environ.get("GSMEDSEG_OFFLINE", "").lower() not in {"", "0", "false", "no", "off"}


def list_weights() -> list[Entry]:
    """All weights known by name: bundled, public, then imported; `Entry.path` tells which are here."""
    known = [replace(entry, path=_path_if_here(entry)) for entry in CATALOGUE.values()]
    folder = weights_folder()
    files = folder.iterdir() if os.access(folder, os.R_OK) and folder.is_dir() else ()
    own = sorted(p for p in files if p.suffix in SUFFIXES and p.stem not in CATALOGUE and p.name[0] != ".")
    return known + [
        Entry(p.stem, "imported", size_mb=round(p.stat().st_size / 1e6), suffix=p.suffix, path=p)
        for p in own
        if _is_there(p)
    ]


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of weights given by name or by path; a name goes before a file of that name.

    Raises:
        ValueError: there is no such name or file, or the weights are not on this machine yet.
    """
    name = os.fspath(name_or_path)
    for entry in list_weights():
        if entry.name == name:
            if entry.path is None:
                raise ValueError(_not_here(entry))
            return entry.path
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = ", ".join(entry.name for entry in list_weights())
    raise ValueError(f"expected weights by name ({known}) or the path of a file, there is no {name!r}")


def fetch(
    name: str,
    *,
    accept_terms: Callable[[str], bool] | bool,
    offline: bool | None = None,
    progress: Progress | None = None,
    url: str | None = None,
) -> Path:
    """Get public weights by name; what is here and whole already is not downloaded again.

    Of several processes that want the same file one downloads it, the others wait.

    Args:
        name: one of `list_weights()`.
        accept_terms: True, or a function that is given the terms and returns whether the user accepts them.
        offline: forbid the network; None asks `is_offline()`.
        progress: called with the bytes here and the bytes in all (None where unknown).
        url: another place to download the same file from, such as a mirror inside a hospital.

    Returns:
        The file.

    Raises:
        ValueError: the name is unknown, the terms were not accepted, the network is forbidden, or what came
            is not the file expected (it is deleted).
        OSError: the download failed, or the store is not ours to write to; says what to do.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise ValueError(f"expected one of {', '.join(CATALOGUE)} to fetch, got {name!r}")
    if entry.url is None:
        return resolve(name)
    if whole := _whole(entry):
        return whole
    if is_offline() if offline is None else offline:
        here = _path_if_here(entry)
        state = "not on this machine" if here is None else f"damaged ({here} is not what was downloaded)"
        raise ValueError(
            f"{name} is {state} and the network is switched off (GSMEDSEG_OFFLINE); "
            f"switch it on, {_by_hand(entry)}"
        )
    if not (accept_terms(entry.terms) if callable(accept_terms) else accept_terms):
        assert entry.licence is not None
        raise ValueError(
            f"{name} is not downloaded, its terms were not accepted ({entry.licence.name}); read "
            f"{entry.licence.url}, then add --accept-terms (in Python: accept_terms=True)"
        )
    target = _file_of(entry)
    _make_store(target)
    with _alone(target):
        if whole := _whole(entry):  # another process was faster
            return whole
        try:
            download(
                url or entry.url, target, check=lambda file: _check(file, entry, target), progress=progress
            )
        except ConnectionError as error:
            raise ConnectionError(f"{error}; {_by_hand(entry)}") from error
        except ValueError as error:
            raise ValueError(f"{error}; {_by_hand(entry)}") from error
        _record(target)
    return target


def import_file(path: str | os.PathLike[str], name: str | None = None) -> Path:
    """Copy a checkpoint into the store, so that it can be used by name.

    Args:
        path: any file that `read_checkpoint` reads.
        name: to call it; None takes the file's own. Under the name of public weights with a known checksum,
            only those are taken.

    Returns:
        The file in the store.

    Raises:
        ValueError: it is not a VISTA3D checkpoint or holds NaN, the name is taken by other weights, or it is
            not the public file of that name.
        OSError: it cannot be read or copied.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or name == BUNDLED:
        raise ValueError(
            f"expected a name of letters, digits, '.', '_' and '-', other than {BUNDLED}, got {name!r}; "
            "give one with --name"
        )
    suffix = ".safetensors" if file_form(path) == "safetensors" else ".pt"
    entry = CATALOGUE.get(name) or Entry(name, "imported")
    entry = replace(entry, suffix=suffix)
    target = _file_of(entry)
    here = next((p for s in SUFFIXES if _is_there(p := target.with_name(name + s))), None)
    if here is not None:
        if sha256_of(here) == sha256_of(path):
            return here
        raise ValueError(
            f"there are other weights named {name} already ({here}): choose another --name or delete it"
        )
    _check(path, entry, target)
    _make_store(target)
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
    _record(target)
    return target


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], dtype: DType = "fp16") -> None:
    """Write weights of any form as safetensors.

    The file's metadata names its source and the source's SHA-256.

    Args:
        src: a name or a path, as for `resolve`.
        dst: the file to write, ending in .safetensors.
        dtype: "fp32", "fp16" or "bf16" for the floating-point tensors.

    Raises:
        ValueError: `src` is not a checkpoint, holds NaN or does not fit in fp16, or `dst` has another suffix
            or is the same file.
        OSError: a file cannot be read or written.
    """
    source, target = resolve(src), Path(dst)
    if target.suffix != ".safetensors":
        raise ValueError(f"expected a file name ending in .safetensors to write, got {target}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"expected another file to write than the one to read, got {target} for both")
    read = read_checkpoint(source, check_finite=True, with_sha256=True)
    origin = {"source": source.name, "source_sha256": str(read.sha256), "dtype": dtype}
    write_safetensors(target, read.tensors, {**read.metadata, **origin}, dtype)


def _file_of(entry: Entry) -> Path:
    """Where the file of an entry belongs."""
    if entry.name == BUNDLED:
        return Path(__file__).parent / "weights" / "gsmedseg-compact.safetensors"
    return weights_folder() / (entry.name + entry.suffix)


def _path_if_here(entry: Entry) -> Path | None:
    """The file of an entry; an import of public weights may have the other suffix."""
    places = [_file_of(entry)]
    if entry.name != BUNDLED:
        places += [weights_folder() / (entry.name + suffix) for suffix in SUFFIXES]
    return next((place for place in places if _is_there(place)), None)


def _is_there(place: Path) -> bool:
    """False also where one may not look, as in another user's home in a container."""
    try:
        return place.exists()
    except OSError:
        return False


def _whole(entry: Entry) -> Path | None:
    """The file of an entry if it is here, and what was downloaded or imported."""
    here = _path_if_here(entry)
    return here if here is not None and _recorded(here) in {None, sha256_of(here)} else None


def _make_store(target: Path) -> None:
    """Make the folder of a file that is to be written.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_target(target)
    except OSError as error:
        advice = "set GSMEDSEG_HOME to a folder that you may write to"
        raise OSError(error.errno, f"{error.strerror}; {advice}", str(target.parent)) from error


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Waits while another process downloads the file; on a file system without locks it does not."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(NotImplementedError, OSError):
            held.enter_context(FileLock(target.with_name(f".{target.name}.lock")))
        yield


def _not_here(entry: Entry) -> str:
    if entry.name == BUNDLED:
        return f"the bundled weights are missing ({_file_of(entry)}): install GSMedSeg again"
    return (
        f"the weights {entry.name} are not on this machine; run: gsmedseg weights fetch {entry.name} "
        f"({_by_hand(entry)})"
    )


def _by_hand(entry: Entry) -> str:
    return f"or get the file from {entry.page} and run: gsmedseg weights import FILE --name {entry.name}"


def _check(file: Path, entry: Entry, target: Path) -> None:
    """Refuse a file that is not what the entry promises; see the module's docstring for what that means."""
    if entry.checksum is not None:
        algorithm, expected = entry.checksum.split(":")
        found = file_digest(file, algorithm)
        if found != expected:
            file_form(file)  # a web page has a better explanation than a wrong checksum
            raise ValueError(
                f"{file.name} is not the published {entry.name}: its {algorithm} should be {expected} and is "
                f"{found}; download it again, or import it under another --name"
            )
    trusted = _recorded(target) if entry.url else None
    if trusted not in {None, sha256_of(file)}:
        file_form(file)
        raise ValueError(
            f"{file.name} is not the {entry.name} that was here before (sha256 {trusted}); if the publisher "
            f"has a new version that you trust, delete {_record_of(target)} and try again"
        )
    tensors = read_checkpoint(file, check_finite=True).tensors
    missing = [part for part in NETWORK_PARTS if not any(name.startswith(part) for name in tensors)]
    if missing:
        raise ValueError(
            f"{file.name}: expected the weights of a VISTA3D network, no tensor is named {missing[0]}… "
            f"(the first is {next(iter(tensors))})"
        )


def _record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _record(target: Path) -> None:
    """Write the checksum beside a file, as `sha256sum --check` reads it."""
    with atomic_path(_record_of(target)) as temporary:
        temporary.write_text(f"{sha256_of(target)}  {target.name}\n", encoding="utf-8")


def _recorded(target: Path) -> str | None:
    """The checksum written beside a file; None without one."""
    try:
        return _record_of(target).read_text(encoding="utf-8").split()[0]
    except (FileNotFoundError, IndexError):
        return None
