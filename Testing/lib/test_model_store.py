"""Weights by name: downloaded under their terms, imported, found again. No request leaves this machine."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from GSMedSegLib import download as download_module
from GSMedSegLib import model_store
from GSMedSegLib.checkpoint import read_checkpoint, sha256_of
from GSMedSegLib.model_store import CATALOGUE, convert, fetch, import_file, list_weights, resolve
from Testing.lib.file_server import FileServer, serve

TENSORS = {
    "image_encoder.conv.weight": torch.arange(8.0).reshape(2, 4),
    "point_head.bias": torch.tensor([-1.5, 0.25]),
}


def saved(content: Any) -> bytes:
    """The bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WEIGHTS = saved(TENSORS)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of our own, on a machine without proxy."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("GSMEDSEG_OFFLINE", raising=False)
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download_module, "RETRY_WAIT_S", 0.0)
    return tmp_path / "home" / "weights"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(FileServer(WEIGHTS)) as running:
        yield running


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    path.write_bytes(WEIGHTS)
    return path


def publish_checksum(monkeypatch: pytest.MonkeyPatch, checksum: str) -> None:
    """As if vista3d's publisher named a checksum."""
    monkeypatch.setitem(CATALOGUE, "vista3d", replace(CATALOGUE["vista3d"], checksum=checksum))


# The catalogue


def test_every_public_entry_says_where_from_and_under_which_terms() -> None:
    for entry in CATALOGUE.values():
        assert entry.licence is not None
        assert entry.licence.url.startswith("https://")
        assert entry.licence.name in entry.terms
        assert entry.licence.url in entry.terms
        if entry.url is not None:
            assert entry.url.startswith("https://")
            assert entry.page is not None
            assert entry.page.startswith("https://")
            assert entry.suffix in model_store.SUFFIXES
        if entry.checksum is not None:
            algorithm, digest = entry.checksum.split(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_list_weights_tells_what_is_here(checkpoint: Path, store: Path) -> None:
    names = ["compact", "vista3d", "vista3d-monai", "vista3d-cvpr2025"]
    assert [entry.name for entry in list_weights()] == names
    assert not any(entry.path for entry in list_weights()[1:])
    import_file(checkpoint)
    import_file(checkpoint, "vista3d")
    listed = {entry.name: entry.path for entry in list_weights()}
    assert list(listed) == [*names, "mine"]
    assert listed["mine"] == store / "mine.pt"
    assert listed["vista3d"] == store / "vista3d.pt"
    assert "not known" in list_weights()[-1].terms


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_nowhere_is_no_weights(store: Path) -> None:
    """As to a share that is away: what comes with the package can be used all the same."""
    store.mkdir(parents=True)
    (store / "shared.safetensors").symlink_to(store / "away" / "shared.safetensors")
    assert resolve("compact").is_file()
    with pytest.raises(ValueError, match="there is no 'shared'"):
        resolve("shared")


def test_the_store_lies_in_the_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GSMEDSEG_HOME")
    folder = model_store.weights_folder()
    assert folder.is_absolute()
    assert folder.name == "weights"
    assert "gsmedseg" in folder.parts


# Finding


def test_resolve_names_and_paths(checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(checkpoint) == checkpoint
    assert resolve(str(checkpoint)) == checkpoint
    import_file(checkpoint)
    assert resolve("mine") == store / "mine.pt"
    monkeypatch.chdir(checkpoint.parent)
    (checkpoint.parent / "mine").touch()
    assert resolve("mine") == store / "mine.pt"
    assert resolve("./mine") == Path("mine")


def test_resolve_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled weights lie in the package."""
    monkeypatch.setattr(model_store, "__file__", str(tmp_path / "model_store.py"))
    with pytest.raises(ValueError, match="install GSMedSeg again"):
        resolve("compact")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gsmedseg-compact.safetensors").touch()
    assert resolve("compact") == tmp_path / "weights" / "gsmedseg-compact.safetensors"
    assert fetch("compact", accept_terms=False) == resolve("compact")


def test_resolve_says_how_to_get_what_is_not_here() -> None:
    with pytest.raises(
        ValueError, match=r"weights fetch vista3d \(or .*weights import FILE --name vista3d\)"
    ):
        resolve("vista3d")
    with pytest.raises(ValueError, match=r"by name \(compact, vista3d.*there is no 'vista4d'"):
        resolve("vista4d")


# Fetching


def test_fetch_asks_downloads_and_records(server: FileServer, store: Path) -> None:
    """The terms are shown first; the second call finds the file and asks nothing."""
    shown: list[str] = []
    seen: list[tuple[int, int | None]] = []

    def accept(terms: str) -> bool:
        assert server.requests == []
        shown.append(terms)
        return True

    path = fetch(
        "vista3d",
        accept_terms=accept,
        url=server.url,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert path == store / "vista3d.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert shown == [CATALOGUE["vista3d"].terms]
    assert "NVIDIA Open Model License" in shown[0]
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    record = f"{sha256_of(path)}  vista3d.safetensors\n"
    assert (store / "vista3d.safetensors.sha256").read_text() == record
    kept = {"vista3d.safetensors", "vista3d.safetensors.sha256"}
    assert {p.name for p in store.iterdir()} - {".vista3d.safetensors.lock"} == kept
    assert resolve("vista3d") == path
    assert fetch("vista3d", accept_terms=False, offline=True) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [False, lambda terms: False], ids=["flag", "function"])
def test_without_acceptance_nothing_is_asked_for(answer: Any, server: FileServer, store: Path) -> None:
    with pytest.raises(ValueError, match=r"NCLS v1.*https://.*--accept-terms.*accept_terms=True"):
        fetch("vista3d-monai", accept_terms=answer, url=server.url)
    assert server.requests == []
    assert not store.exists()


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_offline_forbids_the_network(
    way: str, server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = True if way == "argument" else None
    monkeypatch.setenv("GSMEDSEG_OFFLINE", "0" if offline else "1")
    with pytest.raises(ValueError, match=r"switched off.*weights import FILE --name vista3d"):
        fetch("vista3d", accept_terms=True, offline=offline, url=server.url)
    assert server.requests == []
    assert not store.exists()


@pytest.mark.parametrize(
    ("value", "off"), [("", False), ("0", False), ("No", False), ("1", True), ("yes", True)]
)
def test_the_offline_switch(value: str, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSMEDSEG_OFFLINE", value)
    assert model_store.is_offline() is off


def test_offline_false_overrules_the_environment(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSMEDSEG_OFFLINE", "1")
    assert fetch("vista3d", accept_terms=True, offline=False, url=server.url).exists()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of compact, vista3d.* got 'vista4d'"):
        fetch("vista4d", accept_terms=True)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_published_checksum_is_checked(
    algorithm: str, server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right file passes; with one byte changed it is deleted and named."""
    publish_checksum(monkeypatch, f"{algorithm}:{hashlib.new(algorithm, WEIGHTS).hexdigest()}")
    server.content = WEIGHTS[:-1] + b"x"
    with pytest.raises(ValueError, match=rf"not the published vista3d: its {algorithm} should be .* and is "):
        fetch("vista3d", accept_terms=True, url=server.url)
    assert not any(p.suffix in {".safetensors", ".part"} for p in store.iterdir())
    server.content = WEIGHTS
    assert fetch("vista3d", accept_terms=True, url=server.url).read_bytes() == WEIGHTS


@pytest.mark.parametrize("checksum", [None, "sha256:" + "0" * 64], ids=["unpublished", "published"])
def test_a_web_page_in_place_of_weights(
    checksum: str | None, server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consent or quota page is called that, checksum or not."""
    monkeypatch.setitem(CATALOGUE, "vista3d", replace(CATALOGUE["vista3d"], checksum=checksum))
    server.content = b"<!DOCTYPE html><title>Quota exceeded</title>"
    with pytest.raises(
        ValueError, match=r"web page.*https://huggingface.*weights import FILE --name vista3d"
    ):
        fetch("vista3d", accept_terms=True, url=server.url)
    with pytest.raises(ValueError, match="not on this machine"):
        resolve("vista3d")
    assert not (store / "vista3d.safetensors.part").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.ones(2)}, "VISTA3D network.*image_encoder"),
        ({**TENSORS, "point_head.bias": torch.tensor([float("nan")])}, "NaN"),
    ],
    ids=["another network", "NaN"],
)
def test_without_a_checksum_the_file_must_be_a_sound_network(
    content: Any, message: str, server: FileServer
) -> None:
    server.content = saved(content)
    with pytest.raises(ValueError, match=message):
        fetch("vista3d", accept_terms=True, url=server.url)
    with pytest.raises(ValueError, match="not on this machine"):
        resolve("vista3d")


def test_a_later_download_must_be_the_same_file(server: FileServer, store: Path) -> None:
    """Trust on first use: the record outlives the file, and can be deleted on purpose."""
    path = fetch("vista3d", accept_terms=True, url=server.url)
    path.unlink()
    server.content, server.etag = saved({**TENSORS, "point_head.bias": torch.ones(2)}), '"v2"'
    with pytest.raises(ValueError, match=r"not the vista3d that was here before.*delete .*\.sha256"):
        fetch("vista3d", accept_terms=True, url=server.url)
    (store / "vista3d.safetensors.sha256").unlink()
    assert fetch("vista3d", accept_terms=True, url=server.url).read_bytes() == server.content


def test_a_file_damaged_on_this_disk_is_downloaded_again(server: FileServer) -> None:
    path = fetch("vista3d", accept_terms=True, url=server.url)
    path.write_bytes(WEIGHTS[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        fetch("vista3d", accept_terms=True, url=server.url, offline=True)
    assert fetch("vista3d", accept_terms=True, url=server.url).read_bytes() == WEIGHTS


def test_an_interrupted_fetch_is_resumed(server: FileServer) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    server.cut_after = [500]
    with pytest.raises(KeyboardInterrupt):
        fetch("vista3d", accept_terms=True, url=server.url, progress=stop)
    assert fetch("vista3d", accept_terms=True, url=server.url).read_bytes() == WEIGHTS
    assert server.asked("Range") == [None, "bytes=500-"]


def test_of_two_at_once_one_downloads(server: FileServer) -> None:
    """As when several jobs of a cluster begin: the other waits, and finds the file."""
    found: list[Path] = []
    other = threading.Thread(
        target=lambda: found.append(fetch("vista3d", accept_terms=True, url=server.url)), daemon=True
    )

    def meanwhile(done: int, total: int | None) -> None:
        other.start()
        other.join(0.5)

    path = fetch("vista3d", accept_terms=True, url=server.url, progress=meanwhile)
    other.join(30)
    assert found == [path]
    assert path.read_bytes() == WEIGHTS
    assert len(server.requests) == 1


@pytest.mark.parametrize("lock", [NotImplementedError, OSError])
def test_a_file_system_without_locks(
    lock: type[Exception], server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody waits."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise lock

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert fetch("vista3d", accept_terms=True, url=server.url).read_bytes() == WEIGHTS


def test_a_store_that_cannot_be_looked_into(
    checkpoint: Path, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes with the package is there all the same, and what to do about the rest is said.

    Such is another user's home in a container; a name that is too long fails alike, whoever runs this test.
    """
    monkeypatch.setenv("GSMEDSEG_HOME", str(tmp_path / ("x" * 300)))
    assert resolve("compact").is_file()
    assert resolve(checkpoint) == checkpoint
    with pytest.raises(ValueError, match="the weights vista3d are not on this machine"):
        resolve("vista3d")
    for store in (
        lambda: import_file(checkpoint),
        lambda: fetch("vista3d", accept_terms=True, url=server.url),
    ):
        with pytest.raises(OSError, match="set GSMEDSEG_HOME to a folder that you may write to"):
            store()
    assert server.requests == []


def test_a_store_that_is_closed(server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, as for all users of a computer, and may be read only."""
    store.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match="set GSMEDSEG_HOME to a folder that you may write to"):
        fetch("vista3d", accept_terms=True, url=server.url)
    assert server.requests == []


def test_a_failed_download_says_how_to_do_it_by_hand(server: FileServer) -> None:
    server.status = [404]
    with pytest.raises(ConnectionError, match=r"HTTP 404.*get the file from https://.*weights import FILE"):
        fetch("vista3d", accept_terms=True, url=server.url)


def test_fetch_goes_through_the_proxy(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/weights"))
    fetch("vista3d", accept_terms=True, url="http://mirror.invalid/vista3d")
    assert [path for path, _ in server.requests] == ["http://mirror.invalid/vista3d"]


# Importing


def test_import_copies_and_records(checkpoint: Path, store: Path) -> None:
    """The original may go; the copy is found by name; importing the same again changes nothing."""
    path = import_file(checkpoint)
    assert path == store / "mine.pt"
    assert path.read_bytes() == WEIGHTS
    assert (store / "mine.pt.sha256").read_text() == f"{sha256_of(checkpoint)}  mine.pt\n"
    assert import_file(checkpoint) == path
    convert(checkpoint, checkpoint.with_name("mine.safetensors"))
    assert import_file(checkpoint.with_name("mine.safetensors"), "small").name == "small.safetensors"


def test_import_does_not_replace_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = import_file(checkpoint)
    other = tmp_path / "other" / "mine.safetensors"
    other.parent.mkdir()
    convert(checkpoint, other)
    with pytest.raises(ValueError, match="other weights named mine already"):
        import_file(other)
    assert path.read_bytes() == WEIGHTS
    path.unlink()
    assert import_file(other).read_bytes() == other.read_bytes()


def test_importing_public_weights_checks_their_checksum(checkpoint: Path, store: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.pth is not the published vista3d-monai.*another --name"):
        import_file(checkpoint, "vista3d-monai")
    assert not store.exists()


@pytest.mark.parametrize("name", ["compact", "", "a b", "../up", ".hidden", "-x", "a/b"])
def test_names_that_cannot_be(name: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="expected a name of letters"):
        import_file(checkpoint, name)


def test_import_refuses_what_is_no_network(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "resnet.pt"
    path.write_bytes(saved({"fc.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"no tensor is named image_encoder.*the first is fc\.weight"):
        import_file(path)
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="web page"):
        import_file(path)
    with pytest.raises(FileNotFoundError):
        import_file(tmp_path / "nowhere.pt")
    assert not store.exists()


# Converting


def test_convert_writes_safetensors_with_its_origin(checkpoint: Path, tmp_path: Path) -> None:
    """By path and by name; eighths are exact in fp16."""
    import_file(checkpoint)
    for src in ("mine", checkpoint):
        target = tmp_path / "out.safetensors"
        convert(src, target)
        read = read_checkpoint(target)
        assert read.metadata["source_sha256"] == sha256_of(checkpoint)
        assert read.metadata["source"] == resolve(src).name
        assert read.metadata["dtype"] == "fp16"
        assert {t.dtype for t in read.tensors.values()} == {torch.float16}
        assert all(torch.equal(read.tensors[k].float(), v) for k, v in TENSORS.items())


def test_converting_twice_keeps_the_metadata(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a.safetensors", "fp32")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "bf16")
    metadata = read_checkpoint(tmp_path / "b.safetensors").metadata
    assert metadata == {
        "format": "pt",
        "source": "a.safetensors",
        "source_sha256": sha256_of(tmp_path / "a.safetensors"),
        "dtype": "bf16",
    }


def test_convert_refuses_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        convert(checkpoint, tmp_path / "out.pt")
    with pytest.raises(ValueError, match="there is no 'nowhere'"):
        convert("nowhere", tmp_path / "out.safetensors")
    checkpoint.write_bytes(saved({**TENSORS, "point_head.bias": torch.tensor([float("nan")])}))
    with pytest.raises(ValueError, match="NaN"):
        convert(checkpoint, tmp_path / "out.safetensors")
    assert set(tmp_path.iterdir()) == before


def test_convert_does_not_write_over_its_source(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    convert(checkpoint, path)
    with pytest.raises(ValueError, match="expected another file"):
        convert(path, path, "bf16")


def test_importing_the_module_does_not_load_torch() -> None:
    """`gsmedseg weights list` stays fast."""
    code = "import sys, GSMedSegLib.model_store as m; m.list_weights(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
