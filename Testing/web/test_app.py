"""What the page does with images that come and errors that nobody expected: no browser, no engine."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from Testing.mrml.conftest import OBLIQUE, slicer_app  # noqa: F401 - a fixture for the tests here too

from GSMedSegLib.service.errors import EngineError  # isort: skip
from GSMedSegLib.volume_io import Volume  # isort: skip
from GSMedSegLib.web.app import WebApp, _volume  # isort: skip
from GSMedSegLib.web.autosave import Autosave  # isort: skip
from GSMedSegLib.web.opening import Opened  # isort: skip


class NoEngine:
    """An engine that is never there."""

    def connect(self, check: Any = None) -> Any:
        """Refuses."""
        raise EngineError("no engine in these tests")

    def lost(self) -> None:
        """Nothing to let go of."""


@pytest.fixture(scope="module")
def the_app(slicer_app: Any, _draws: None) -> Iterator[WebApp]:  # noqa: F811
    """One for all tests: it has Slicer's core, of which a process has one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trame_slicer.core.SlicerApp", lambda: slicer_app)
        app = WebApp(NoEngine(), None, "none")
        yield app
        app.close()


@pytest.fixture
def app(the_app: WebApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebApp:
    """The app, with a folder of its own for kept work."""
    monkeypatch.setattr(the_app, "_autosave", Autosave(tmp_path / "kept"))
    the_app._state.update({"error": "", "failed": False})
    return the_app


def image(name: str, wait_s: float = 0.0) -> Callable[[], Opened]:
    """Reads an image of 6×8×10 voxels, after a while."""

    def read() -> Opened:
        time.sleep(wait_s)
        return Opened(Volume(np.arange(480, dtype=np.int16).reshape(6, 8, 10), OBLIQUE, name))

    return read


def test_work_that_cannot_be_kept_is_not_replaced_unasked(app: WebApp, tmp_path: Path):
    """A full disk, say: the first try to open another image is refused, the second one is meant."""
    assert asyncio.run(app._open(image("first"), "the image"))
    app.workspace.add_segment("Liver")
    (tmp_path / "kept").write_text("in the way of the folder", encoding="utf-8")
    assert not asyncio.run(app._open(image("second"), "the image"))
    assert "could not be kept: save them, or open the other image again" in app._state.error
    assert app._state.saved.startswith("not kept: ")
    assert app._state.image == "first"
    assert [row.name for row in app.workspace.rows()] == ["Liver"]
    app.workspace.add_segment("Spleen")
    assert not asyncio.run(app._open(image("second"), "the image")), "more was done since"
    assert asyncio.run(app._open(image("second"), "the image"))
    assert app._state.image == "second"
    assert app.workspace.rows() == []


def click_once(app: WebApp) -> None:
    """A new segment with a click, for which no engine has to answer."""
    ras = (OBLIQUE @ [5, 4, 3, 1])[:3]
    app.workspace.interaction.add_click(app.workspace.add_segment("Liver"), ras, True)


def ask(app: WebApp, method: str, path: str, data: bytes | None = None) -> int:
    """Have a file sent or saved; the status."""

    async def run() -> int:
        served = web.Application()
        served.add_routes(app._transfers.routes())
        async with TestClient(TestServer(served)) as client:
            return int((await client.request(method, path, data=data)).status)

    return asyncio.run(run())


def test_work_that_is_kept_nowhere_is_not_replaced_unasked(app: WebApp, monkeypatch: pytest.MonkeyPatch):
    """With `--no-autosave`, or on a user's second page: only what the user saved is kept."""
    monkeypatch.setattr(app, "_autosave", None)
    assert asyncio.run(app._open(image("first"), "the image"))
    app.workspace.add_segment("nothing in it yet")
    assert asyncio.run(app._open(image("second"), "the image"))
    click_once(app)
    assert not asyncio.run(app._open(image("third"), "the image"))
    assert "are not kept: save them, or open the other image again" in app._state.error
    assert app._state.image == "second"
    assert asyncio.run(app._open(image("third"), "the image")), "asked for again"
    click_once(app)
    assert ask(app, "GET", "/save/json") == 200
    assert asyncio.run(app._open(image("fourth"), "the image")), "the user has saved it"
    click_once(app)
    assert ask(app, "GET", "/save/json") == 200
    app.workspace.add_segment("Spleen")
    assert not asyncio.run(app._open(image("fifth"), "the image")), "more was done since"
    assert app._state.image == "fourth"


def test_that_saved_clicks_hold_no_smoothing_is_said(app: WebApp):
    assert asyncio.run(app._open(image("first"), "the image"))
    click_once(app)
    before = app._state.message
    assert ask(app, "GET", "/save/json") == 200
    assert app._state.message == before
    app._state.smoothing_mm = 1.5
    try:
        assert ask(app, "GET", "/save/json") == 200
    finally:
        app._state.smoothing_mm = 0.0
    assert app._state.message.startswith("The saved clicks do not hold the smoothing")


def test_files_come_and_go_when_the_temporary_folder_was_tidied(app: WebApp):
    """As some systems do, with what nobody touched for some days; the new folder is its owner's alone."""
    assert asyncio.run(app._open(image("first"), "the image"))
    click_once(app)
    folder, batch = app._transfers._folder, "0123456789abcdef"
    shutil.rmtree(folder)
    assert ask(app, "GET", "/save/json") == 200
    shutil.rmtree(folder)
    assert ask(app, "PUT", f"/upload/{batch}/study/a.dcm", b"x") == 200
    assert folder.stat().st_mode & 0o077 == 0
    assert (app._transfers.take(batch) / "study" / "a.dcm").read_bytes() == b"x"
    app._transfers.forget(batch)
    shutil.rmtree(folder)
    folder.write_text("in the way", encoding="utf-8")
    assert ask(app, "GET", "/save/json") == 409, "told, not an error of the server"
    folder.unlink()


def test_a_voxel_size_that_is_made_up_is_said(app: WebApp):
    """The volumes in ml hang on it."""
    opened = image("first")()
    assert asyncio.run(app._open(lambda: opened, "the image"))
    assert "made up" not in app._state.image_info
    unknown = replace(opened, volume=replace(opened.volume, has_voxel_size=False))
    assert asyncio.run(app._open(lambda: unknown, "the image"))
    assert app._state.image_info.endswith(" mm (made up: the file gives no size)")


def test_a_view_of_another_size_keeps_zoom_and_middle(app: WebApp):
    """As with a second window before it, whose mouse moves; a view that shows the whole image still does."""
    assert asyncio.run(app._open(image("zoomed"), "the image"))
    import vtk

    view, node = app._views._views["Axial"], app._views.node("Axial")

    def resize(width: int, height: int) -> tuple[float, ...]:
        view.render_window().SetSize(width, height)
        view.interactor().InvokeEvent(vtk.vtkCommand.WindowResizeEvent)
        return (*node.GetFieldOfView()[:2], *node.GetXYZOrigin()[:2])

    wide, high = resize(500, 400), resize(300, 400)
    assert wide[0] / 500 == pytest.approx(wide[1] / 400)
    assert high[0] / 300 == pytest.approx(high[1] / 400)
    assert resize(500, 400) == pytest.approx(wide)
    node.SetFieldOfView(wide[0] / 4, wide[1] / 4, node.GetFieldOfView()[2])
    node.SetXYZOrigin(3.0, 4.0, 0.0)
    assert resize(300, 400) == pytest.approx((high[0] / 4, high[1] / 4, 3.0, 4.0))
    assert resize(500, 400) == pytest.approx((wide[0] / 4, wide[1] / 4, 3.0, 4.0))
    app._views.reset("Axial")
    assert resize(300, 400) == pytest.approx(high)


def test_the_watch_survives_what_nobody_expected(app: WebApp, monkeypatch: pytest.MonkeyPatch):
    """The error is told once, and the parts after it run all the same, again and again."""
    calls = {"bring": 0, "keep": 0}
    told = []

    def broken() -> None:
        calls["bring"] += 1
        raise KeyError("nobody expected this")

    def keep() -> None:
        calls["keep"] += 1

    monkeypatch.setattr(app, "_bring", broken)
    monkeypatch.setattr(app, "_keep_when_due", keep)
    monkeypatch.setattr(app, "fail", told.append)

    async def watch() -> None:
        watching = asyncio.create_task(app._watch())
        for _ in range(500):
            await asyncio.sleep(0.01)
            if calls["keep"] >= 3 or watching.done():
                break
        assert not watching.done(), "the watch has ended"
        watching.cancel()

    asyncio.run(watch())
    assert calls["bring"] >= 3
    assert len(told) == 1
    assert "nobody expected this" in told[0]


def test_a_reader_that_fails_as_nobody_expected_is_told(app: WebApp):
    def broken() -> Opened:
        raise KeyError("no such tag")

    assert not asyncio.run(app._open(broken, "the image"))
    assert "no such tag" in app._state.error
    assert app._state.opening == ""


def test_the_image_asked_for_last_is_shown(app: WebApp):
    """A large image takes its time; meanwhile the user opens another one and goes on with that."""

    async def both() -> list[bool]:
        slow = asyncio.create_task(app._open(image("large", wait_s=1.0), "the image"))
        await asyncio.sleep(0.1)
        small = await app._open(image("small"), "the image")
        return [await slow, small]

    assert asyncio.run(both()) == [False, True]
    assert app._state.image == "small"
    assert app._state.opening == ""
    assert not app._state.failed


@pytest.mark.parametrize("thin", [0, 1, 2])
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_the_slider_stays_in_the_image(app: WebApp, thin: int, slices: int):
    """Also with a single slice, where there is nothing to move through; obliquely, and along every axis."""
    shape = [10, 10, 10]
    shape[thin] = slices

    def read() -> Opened:
        array = np.arange(100 * slices, dtype=np.int16).reshape(shape)
        return Opened(Volume(array, OBLIQUE, "thin"))

    assert asyncio.run(app._open(read, "the image"))
    counts = []
    for view in ("Axial", "Coronal", "Sagittal"):
        slider, offset = app._state[f"{view}_slice"], app._state[f"{view}_offset"]
        assert slider["min"] - 1e-6 < offset < slider["max"] + 1e-6
        counts.append(round((slider["max"] - slider["min"]) / slider["step"]) + 1)
    assert sorted(counts) == sorted(shape)


@pytest.mark.parametrize(
    ("size_ml", "text"),
    [(0.0, "empty"), (0.0125, "12.5 mm³"), (0.1, "0.1 ml"), (31.44, "31.4 ml"), (1534.2, "1534 ml")],
)
def test_sizes_are_read_at_a_glance(size_ml: float, text: str):
    assert _volume(size_ml) == text
