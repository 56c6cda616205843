"""The app: what happens in the page meets the workspace, and what the engine answers meets the page."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray
from trame.app import get_server

from GSMedSegLib.console import reason
from GSMedSegLib.mrml.placement import Placement
from GSMedSegLib.mrml.segments import Overwrite
from GSMedSegLib.service.background import Told
from GSMedSegLib.service.engines import EngineSource
from GSMedSegLib.web.address import Address
from GSMedSegLib.web.autosave import Autosave, Kept, digest_of
from GSMedSegLib.web.gate import make_gate
from GSMedSegLib.web.keeping import Keeping
from GSMedSegLib.web.opening import Opened, open_example, open_path, unpack
from GSMedSegLib.web.page import MODES, OF_THE_PAGE, STATE, build_page
from GSMedSegLib.web.saving import plan
from GSMedSegLib.web.surfaces import Surfaces, surface_of
from GSMedSegLib.web.transfers import Transfers
from GSMedSegLib.web.views import NAMES, SURFACE, Views, interaction_node
from GSMedSegLib.web.workspace import WARM_UP, Workspace

POLL_S = 0.02
SURFACE_S = 0.2
"""A surface follows its mask after so long: first the slices show it, and of masks in a row only the last."""

SERVE = Path(__file__).with_name("serve")

DOING = {
    "engine": "Starting the engine…",
    "image": "Sending the image to the engine…",
    "recovering": "The engine was lost; starting it again…",
    "clicks": "Segmenting…",
}

READY = "Ready: click on the object"
NOT_SMOOTHED = "The saved clicks do not hold the smoothing: masks made from them again are not smoothed"
DONE = "Done; where the mask is wrong, click with + or −"


class WebApp:
    """One user's page. Everything happens in one thread, but for the questions and slow files.

    Args:
        source: where the engine comes from.
        autosave: keeps what is done; None for not at all.
        engine_name: told in the page.
        not_kept: told there, too: why nothing is kept, where the user might expect it.
    """

    def __init__(
        self, source: EngineSource, autosave: Autosave | None, engine_name: str, not_kept: str = ""
    ) -> None:
        from trame_slicer.core import SlicerApp

        self._core = core = SlicerApp()  # without it the scene loses its colour tables
        slicer.mrmlScene = core.scene
        self._autosave = autosave
        self._server = get_server(client_type="vue3")
        self._state: Any = self._server.state
        shown = {"engine": engine_name, "saved": not_kept, "trame__title": "GSMedSeg"}
        self._state.update({**STATE, **shown})
        self._state.client_only(*OF_THE_PAGE)
        self._server.enable_module(
            {
                "serve": {"gsmedseg": str(SERVE)},
                "scripts": ["gsmedseg/gsmedseg.js"],
                "styles": ["gsmedseg/gsmedseg.css"],
            }
        )
        self.workspace = Workspace(core.scene, source)
        self._views = Views(core, self._server, self._maximise)
        self._interaction = interaction_node(core.scene)
        self._placement = Placement(core.scene, self._clicked, self._boxed, self._mode_changed)
        self._surfaces = Surfaces(core.scene, self._views.node(SURFACE).GetID())
        self._transfers = Transfers(self._save)
        self._opened: Opened | None = None
        self._ending = threading.Event()
        self._batch = ""
        self._digest = ""
        self._shown = -1
        self._keeping = Keeping()
        self._refused: int | None = None
        self._asked = 0
        self._failures: set[str] = set()
        self._page = build_page(self._server, self)
        self._listen()

    def run(
        self, address: Address, first: tuple[str, Callable[[], Opened]] | None, ready: Callable[[str], None]
    ) -> None:
        """Serve the page until the process is told to end.

        Args:
            address: where.
            first: image to open at once: what it is called, and a function that reads it.
            ready: called with the page's address when it can be opened.
        """
        controller = self._server.controller
        background: list[asyncio.Task[Any]] = []

        def bind(server: Any) -> None:
            server.app.middlewares.append(make_gate(address.token))
            server.app.add_routes(self._transfers.routes())

        def started(**_: Any) -> None:
            background.append(asyncio.get_running_loop().create_task(self._stop_when_told()))
            if self._ending.is_set():
                return
            ready(address.url(self._server.port))
            background.append(asyncio.get_running_loop().create_task(self._watch()))
            if first is not None:
                what, read = first
                background.append(asyncio.get_running_loop().create_task(self._open(read, what)))

        controller.on_server_bind.add(bind)
        controller.on_server_ready.add(started)
        if address.tls is not None:
            self._server.cli.set_defaults(ssl=",".join(map(str, address.tls)))
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # with nohup it is ignored
            signal.signal(hang_up, lambda *_: self.end())
        try:
            self._server.start(
                host=address.host,
                port=address.port,
                open_browser=False,
                show_connection_info=False,
                disable_logging=True,
                timeout=0,
            )
        finally:
            for task in background:
                task.cancel()
            self.close()

    def end(self) -> None:
        """Have `run` return, also when it is still to come; from any thread."""
        self._ending.set()

    def close(self) -> None:
        """Keep what was done, and let go of everything."""
        self._keep()
        self.workspace.close()
        self._transfers.close()

    # What the user does

    def act(self, action: str) -> None:
        """One of the keys' actions, such as "undo"."""
        if action in NAMES:
            self._maximise(action)
            return
        if not self._state.image:
            return
        workspace = self.workspace
        do: dict[str, Callable[[], Any]] = {
            "undo": workspace.undo,
            "redo": workspace.redo,
            "cancel": workspace.cancel,
            "add": workspace.add_segment,
            "hint": self._show_hint,
            "escape": self._escape,
            **{name: self._mode_setter(name) for name, *_ in MODES},
        }
        if action in do:
            self._try(do[action])

    def on_segment(self, what: str, segment_id: str, value: Any = None) -> None:
        """Something about a segment: choose, name, color, visible, locked, clear or remove."""
        workspace = self.workspace
        do: dict[str, Callable[[], Any]] = {
            "choose": lambda: workspace.choose(segment_id),
            "name": lambda: workspace.rename(segment_id, str(value)),
            "color": lambda: workspace.recolor(segment_id, str(value)),
            "visible": lambda: workspace.set_visible(segment_id, bool(value)),
            "locked": lambda: workspace.set_lock(segment_id, bool(value)),
            "clear": lambda: self._clear(segment_id),
            "remove": lambda: workspace.remove(segment_id),
        }
        if what in do:
            self._try(do[what])

    async def open_example(self) -> None:
        """Open the built-in image."""
        await self._open(open_example, "the example")

    async def open_upload(self, batch: str) -> None:
        """Open what the browser sent."""

        def read() -> Opened:
            folder = self._transfers.take(batch)
            unpack(folder)
            return open_path(folder)

        if await self._open(read, "the image", batch):
            self._transfers.forget(self._batch)
            self._batch = batch
        else:
            self._transfers.forget(batch)

    async def open_series(self, uid: str) -> None:
        """Open another DICOM series of the folder that is open."""
        folder = None if self._opened is None else self._opened.folder
        if folder is not None and uid != self._state.series_uid:
            await self._open(lambda: open_path(folder, uid), "the series", self._batch)

    def auto_range(self) -> None:
        """Brightness and contrast as at first."""
        self._try(lambda: self.workspace.set_range(*self.workspace.typical_range()))
        self._show_range()

    def fail(self, text: str) -> None:
        """Tell what went wrong."""
        self._state.update({"error": text, "failed": True, "opening": ""})

    # What the page is connected to

    def _listen(self) -> None:
        server = self._server
        server.trigger("act")(self.act)
        server.trigger("on_segment")(self.on_segment)
        server.trigger("open_example")(self.open_example)
        server.trigger("open_upload")(self.open_upload)
        server.trigger("open_series")(self.open_series)
        server.trigger("forget_upload")(self._transfers.forget)
        server.trigger("fail")(self.fail)
        server.state.change("opacity")(lambda opacity, **_: self.workspace.set_opacity(float(opacity)))
        server.state.change("surface")(lambda **_: self._show_surfaces(set()))
        server.state.change("shown_range")(self._range_moved)
        server.state.change("smoothing_mm", "hint", "overwrite")(self._options_changed)

    def _options_changed(self, smoothing_mm: float, hint: bool, overwrite: str, **_: Any) -> None:
        self.workspace.set_options(Overwrite(overwrite), float(smoothing_mm), bool(hint))
        self._show_clicks()

    def _range_moved(self, shown_range: list[float], **_: Any) -> None:
        if self.workspace.volume is not None and list(self.workspace.shown_range()) != shown_range:
            self.workspace.set_range(*shown_range)

    def _clicked(self, ras: NDArray[np.float64], positive: bool) -> bool:
        try:
            self.workspace.click(ras, positive)
        except (ValueError, RuntimeError) as error:
            self._state.message = str(error)
            return False
        self._views.jump_to(self.workspace.clicks_ras()[-1][0])  # the voxel's middle, where it is shown
        return True

    def _boxed(self, corners_ras: NDArray[np.float64]) -> None:
        self._try(lambda: self.workspace.box(corners_ras))
        self._placement.hide_box()

    def _mode_changed(self) -> None:
        if not hasattr(self, "_placement"):
            return
        windowing = self._interaction.GetCurrentInteractionMode() == self._interaction.AdjustWindowLevel
        self._state.mode = self._placement.active or ("window" if windowing else "view")

    def _mode_setter(self, mode: str) -> Callable[[], None]:
        def set_mode() -> None:
            again = self._state.mode == mode
            self._placement.stop()
            self._interaction.SetCurrentInteractionMode(self._interaction.ViewTransform)
            if mode == "window" and not again:
                self._interaction.SetCurrentInteractionMode(self._interaction.AdjustWindowLevel)
            elif mode in ("foreground", "background", "box"):
                self._placement.start(mode)
            self._mode_changed()

        return set_mode

    def _escape(self) -> None:
        if self.workspace.busy:
            self.workspace.cancel()
            self._state.message = "Cancelled; the mask before stays"
        else:
            self._mode_setter("view")()

    def _show_hint(self) -> None:
        self._state.hint = True
        self.workspace.set_options(hint=True)
        ras = self.workspace.hint_ras()
        if ras is not None:
            self._views.jump_to(ras)

    def _clear(self, segment_id: str) -> None:
        self.workspace.choose(segment_id)
        self.workspace.clear()

    def _maximise(self, name: str) -> None:
        self._state.maximised = "" if self._state.maximised == name else name

    def _try(self, do: Callable[[], Any]) -> None:
        """Does something; what goes wrong is told in the page."""
        try:
            do()
        except (ValueError, RuntimeError, OSError) as error:
            self.fail(reason(error))
        self._show()

    # Opening and saving

    async def _open(self, read: Callable[[], Opened], what: str, batch: str = "") -> bool:
        """Reads an image in a thread and shows it; whether that went well.

        One that takes longer than the user waits, who has asked for another one meanwhile, is not shown.
        """
        self._asked += 1
        asked = self._asked
        with self._state as state:
            state.opening = f"Opening {what}…"
        loop = asyncio.get_running_loop()
        try:
            opened = await loop.run_in_executor(None, read)
            digest = await loop.run_in_executor(None, digest_of, opened.volume)
            if asked != self._asked:
                return False
            with self._state:
                self._make_sure_it_is_kept()
                self._show_image(opened, digest)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises, the page does not wait for ever
            if asked == self._asked:
                with self._state:
                    self.fail(self._without_folder(reason(error), batch))
            return False
        with self._state as state:
            state.opening = ""
        self.workspace.warm_up()
        return True

    def _without_folder(self, text: str, batch: str) -> str:
        """An error's text without the folder that uploads are in, which means nothing to the user."""
        if batch:
            folder = str(self._transfers.take(batch))
            text = text.replace(f"{folder}/", "").replace(folder, "the folder")
        return text

    def _show_image(self, opened: Opened, digest: str) -> None:
        self._placement.stop()
        self._surfaces.keep(set())
        workspace, image = self.workspace, opened.volume
        workspace.open(image)
        self._opened, self._digest = opened, digest
        k, j, i = image.shape
        mm = " × ".join(f"{side:.3g}" for side in image.spacing_kji_mm[::-1])
        info = f"{i} × {j} × {k} voxels of {mm} mm"
        if not image.has_voxel_size:
            info += " (made up: the file gives no size)"
        self._state.update(
            {
                "image": image.name,
                "image_info": info,
                "message": info,
                "seconds": "",
                "series": [{"value": uid, "title": title} for uid, title in opened.series],
                "series_uid": opened.series_uid,
            }
        )
        self._show_range()
        self._views.show(workspace.volume)
        kept = self._load_kept(digest)
        if kept is not None:
            workspace.restore(kept.segmentation, kept.segment_id)
            when = time.strftime("%d %b, %H:%M", time.localtime(kept.saved_at))
            self._state.saved = f"restored, of {when}"
        self._keeping.see(workspace.changes, time.monotonic())
        self._keeping.succeeded(workspace.changes)
        self._mode_setter("view" if kept is not None else "foreground")()
        self._show()

    def _load_kept(self, digest: str) -> Kept | None:
        if self._autosave is None:
            return None
        try:
            return self._autosave.load(digest, self.workspace.volume)
        except (ValueError, OSError) as error:
            self.fail(reason(error))
            return None

    async def _save(self, kind: str, folder: Path) -> Path:
        files = () if self._opened is None else self._opened.dicom_files
        changes = self.workspace.changes
        path, write = plan(self.workspace, kind, folder, files)
        await asyncio.get_running_loop().run_in_executor(None, write)
        if self._autosave is None:
            self._keeping.succeeded(changes)
        if kind == "json" and self._state.smoothing_mm:
            with self._state as state:
                state.message = NOT_SMOOTHED
        return path

    def _make_sure_it_is_kept(self) -> None:
        """Before another image is opened; raises OSError once when that takes what cannot be kept."""
        changes = self.workspace.changes
        if not self._keep() and self._refused != changes:
            self._refused = changes
            not_kept = "are not kept" if self._autosave is None else "could not be kept"
            raise OSError(
                f"the segments and clicks on the image shown {not_kept}: save them, or open the other "
                "image again to go on without them"
            )

    def _keep(self) -> bool:
        """Keeps segments and clicks, if they are others than those kept; False when that fails.

        Without an autosave only the user keeps them, by saving.
        """
        workspace = self.workspace
        changes = workspace.changes
        if workspace.image is None or changes == self._keeping.kept:
            return True
        if self._autosave is None:
            return not any(row.clicks or row.volume_ml for row in workspace.rows())
        try:
            if workspace.rows():
                ledger = workspace.interaction.ledger
                self._autosave.save(self._digest, workspace.segmentation, ledger, workspace.segment_id)
            else:
                self._autosave.forget(self._digest)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and not tried again at once
            self._state.saved = f"not kept: {reason(error)}"
            self._keeping.failed(time.monotonic())
            return False
        self._state.saved = time.strftime("kept %H:%M")
        self._keeping.succeeded(changes)
        return True

    # What comes back

    async def _stop_when_told(self) -> None:
        while not self._ending.is_set():
            await asyncio.sleep(POLL_S)
        await self._server.stop()

    async def _watch(self) -> None:
        """Brings what the engine answered, and what the user did, into the page."""
        while True:
            await asyncio.sleep(POLL_S)
            for part in (self._bring, self._bring_surfaces, self._keep_when_due):
                try:
                    part()
                except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on and keeps its work
                    text = reason(error)
                    if text not in self._failures:
                        self._failures.add(text)
                        with self._state:
                            self.fail(text)

    def _bring(self) -> None:
        told = self.workspace.poll()
        self._transfers.forget_idle()
        self._keeping.see(self.workspace.changes, time.monotonic())
        if told or self._shown != self.workspace.changes:
            with self._state:
                for one in told:
                    self._tell(one)
                self._show()

    def _bring_surfaces(self) -> None:
        changed = set(self.workspace.changed_segments)
        if changed and time.monotonic() > self._keeping.last_s + SURFACE_S:
            self.workspace.changed_segments.clear()
            with self._state:
                self._show_surfaces(changed)

    def _keep_when_due(self) -> None:
        if self._autosave is not None and self._keeping.due(self.workspace.busy, time.monotonic()):
            with self._state:
                self._keep()

    def _tell(self, told: Told) -> None:
        state = self._state
        if told.tag == WARM_UP and not self.workspace.busy:
            if told.error is not None:
                self.fail(f"The engine does not start: {told.error}")
            state.message = READY if told.answer is not None else DOING.get(told.doing, "")
        elif told.tag == WARM_UP:
            return
        elif told.error is not None:
            self.fail(f"The mask could not be made: {told.error}")
        elif told.answer is not None:
            empty = told.answer.mask.array.size == 0
            state.message = "No object found here; click nearer to its middle" if empty else DONE
            state.seconds = f"{self.workspace.last_s:.2f} s"
        else:
            state.message = DOING[told.doing]
            state.progress = round(100 * told.done / told.total) if told.total > 1 else -1

    def _show(self) -> None:
        """Brings the page up to date with the workspace."""
        workspace, state = self.workspace, self._state
        if workspace.image is None:
            return
        self._shown = workspace.changes
        interaction = workspace.interaction
        rows = workspace.rows()
        state.segments = [
            {
                "id": row.id,
                "name": row.name,
                "color": row.color,
                "visible": row.visible,
                "locked": row.locked,
                "clicks": row.clicks,
                "volume": _volume(row.volume_ml),
            }
            for row in rows
        ]
        state.update(
            {
                "segment_id": workspace.segment_id,
                "can_undo": interaction.can_undo,
                "can_redo": interaction.can_redo,
                "busy": workspace.busy,
            }
        )
        self._show_clicks()
        for row in rows:
            self._surfaces.show(row.id, None, row.color, row.visible and bool(state.surface))
        self._surfaces.keep({row.id for row in rows})

    def _show_clicks(self) -> None:
        hint = self.workspace.hint_ras()
        self._state.hint_known = hint is not None
        self._placement.show(self.workspace.clicks_ras(), hint)

    def _show_surfaces(self, changed: set[str]) -> None:
        workspace = self.workspace
        if workspace.image is None:
            return
        for row in workspace.rows():
            surface = None
            if row.id in changed:
                surface = surface_of(workspace.mask(row.id), workspace.image.ijk_to_ras)
            self._surfaces.show(row.id, surface, row.color, row.visible and bool(self._state.surface))
        self._views.surfaces_changed()

    def _show_range(self) -> None:
        low, high = self.workspace.full_range()
        self._state.update(
            {
                "full_range": [low, high],
                "range_step": (high - low) / 500 or 1.0,
                "shown_range": list(self.workspace.shown_range()),
            }
        )


def _volume(size_ml: float) -> str:
    if size_ml == 0:
        return "empty"
    if size_ml < 0.1:
        return f"{1000 * size_ml:.3g} mm³"
    return f"{size_ml:.3g} ml" if size_ml < 100 else f"{size_ml:.0f} ml"
