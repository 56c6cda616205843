"""The browser app as a user has it: `gsmedseg web` in a process of its own, and a real browser before it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib.prompts import ClickLedger

pytest.importorskip("trame_slicer", reason="no Slicer core: pip install 'gsmedseg[web]'")

CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TOKEN = "a-token-for-the-tests-0123456789"
ANSWER_MS = 120_000
"""The machine may be busy: what is tested is that an answer comes, not when."""

SPACING_IJK_MM = (1.0, 1.2, 2.0)
ORIGIN_LPS_MM = (-20.0, 15.0, 40.0)


def make_image() -> NDArray[np.int16]:
    """(30, 50, 60) noise, a bright ellipsoid around (15, 25, 30), a darker ball around (15, 25, 50)."""
    k, j, i = np.mgrid[:30, :50, :60].astype(np.float32)
    image: NDArray[np.float64] = np.random.default_rng(0).normal(0, 6, k.shape)
    image[((k - 15) / 6) ** 2 + ((j - 25) / 9) ** 2 + ((i - 30) / 10) ** 2 < 1] += 120
    image[((k - 15) * 2) ** 2 + ((j - 25) * 1.2) ** 2 + (i - 50) ** 2 < 49] += 60
    return image.astype(np.int16)


@pytest.fixture(scope="session")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a NIfTI file."""
    image = sitk.GetImageFromArray(make_image())
    image.SetSpacing(SPACING_IJK_MM)
    image.SetOrigin(ORIGIN_LPS_MM)
    path = tmp_path_factory.mktemp("image") / "phantom.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


class WebServer:
    """`gsmedseg web` in a process.

    Args:
        home: where work is kept.
        arguments: of the command.
    """

    def __init__(self, home: Path, *arguments: str) -> None:
        environment = {**os.environ, "GSMEDSEG_HOME": str(home), "GSMEDSEG_WEB_TOKEN": TOKEN}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "GSMedSegLib.cli", "web", "--no-browser", "--port=0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line.startswith("open "):
                self.url = line.split()[1]
                return
        raise RuntimeError("gsmedseg web did not start: " + "".join(said))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def engine(self) -> Any:
        """The process of its engine."""
        import psutil

        (engine,) = [
            child for child in psutil.Process(self.pid).children(recursive=True) if "serve" in child.cmdline()
        ]
        return engine

    def end(self) -> int:
        """Have it end by itself; the exit code."""
        self._process.terminate()
        code = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


@pytest.fixture(scope="session")
def _draws() -> None:
    from GSMedSegLib.web.drawing import Trial

    try:
        Trial().finish()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps work."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(_draws: None, home: Path) -> Iterator[WebServer]:
    """A running server with the bundled weights, in fp32 so that every machine gives the same masks."""
    running = WebServer(home, "--precision=fp32")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Its thread has an event loop until it ends: there `asyncio.run` does not work."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium; on Debian: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


class Page:
    """The page before a user, with what a test asks of it.

    Args:
        browser: that shows it.
        url: of the page, its token included.
        size: of the window, pixels.
        touch: whether it is used with fingers.
        sharpness: pixels of the screen per pixel of the page, along a side.
    """

    def __init__(
        self,
        browser: Any,
        url: str,
        size: tuple[int, int] = (1280, 720),
        touch: bool = False,
        sharpness: float = 1.0,
    ) -> None:
        self.problems: list[str] = []
        self.page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, has_touch=touch, device_scale_factor=sharpness
        )
        self.page.set_default_timeout(ANSWER_MS)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self._base = url.split("?")[0]
        self.page.goto(url)
        self.page.wait_for_selector("#start-example, #view-Axial")

    def state(self, name: str) -> Any:
        """What the page knows by a name."""
        return self.page.evaluate(f"window.trame.state.get('{name}')")

    def until(self, expression: str) -> None:
        """Wait until something in JavaScript is true, `s` being the page's state."""
        self.page.wait_for_function(
            f"() => {{ const s = new Proxy({{}}, {{ get: (_, n) => window.trame.state.get(n) }}); "
            f"return {expression}; }}"
        )

    def upload(self, *files: Path) -> None:
        """Choose files, or a folder, in the dialog that the page shows."""
        with self.page.expect_file_chooser() as chooser:
            self.page.evaluate(f"window.gsmedseg.choose({'true' if files[0].is_dir() else 'false'})")
        chooser.value.set_files([str(file) for file in files])

    def open(self, file: Path) -> None:
        """Open an image and wait until it is there and clicks are possible."""
        self.upload(file)
        self.until(f"s.image === '{file.name.split('.')[0]}' && !s.opening")
        self.until("s.mode === 'foreground' || s.segments.length > 0")
        self.page.wait_for_timeout(500)  # the views take their size and draw

    def click(self, view: str, right: float = 0.5, down: float = 0.5) -> None:
        """Click in a view, at a share of its width and height."""
        box = self.page.locator(f"#view-{view}").bounding_box()
        self.page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])

    def tap(self, view: str, right: float = 0.5, down: float = 0.5) -> None:
        """Touch a view, at a share of its width and height."""
        box = self.page.locator(f"#view-{view}").bounding_box()
        self.page.touchscreen.tap(box["x"] + right * box["width"], box["y"] + down * box["height"])

    def mode(self, name: str) -> None:
        """Press a button of the bar."""
        if self.state("mode") != name:
            self.page.click(f"#mode-{name}")
            self.until(f"s.mode === '{name}'")

    def answered(self, clicks: int) -> None:
        """Wait until the chosen segment has so many clicks, and its mask is there."""
        chosen = "s.segments.find((x) => x.id === s.segment_id)"
        self.until(f"{chosen}?.clicks === {clicks} && !s.busy")

    def saved(self, kind: str) -> bytes:
        """What *Save* gives in a format."""
        answer = self.page.request.get(f"{self._base}save/{kind}")
        assert answer.ok, answer.text()
        return bytes(answer.body())

    def ledger(self) -> ClickLedger:
        """The clicks, as they are saved."""
        return ClickLedger.from_json(self.saved("json").decode())

    def clicks(self) -> list[tuple[int, int, int, bool]]:
        """(k, j, i) and whether it is a foreground click, of the only segment."""
        ledger = self.ledger()
        (name,) = ledger.objects
        return [(*click.kji, click.positive) for click in ledger.clicks(name)]

    def labels(self, folder: Path) -> NDArray[np.uint8]:
        """(K, J, I) the label map, as it is saved."""
        path = folder / "labels.nii.gz"
        path.write_bytes(self.saved("nii.gz"))
        labels: NDArray[np.uint8] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        return labels

    def picture(self, view: str) -> NDArray[np.uint8]:
        """(H, W, 3) of a view, as it is on the screen."""
        from PIL import Image

        png = self.page.locator(f"#view-{view}").screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def settled_picture(self, view: str) -> NDArray[np.uint8]:
        """A view once two pictures of it, half a second apart, are the same."""
        before = -1
        for _ in range(40):
            picture = self.picture(view)
            now = zlib.crc32(picture.tobytes())
            if now == before:
                return picture
            before = now
            self.page.wait_for_timeout(500)
        raise AssertionError(f"the {view} view does not come to rest")

    def shows(self, view: str, wanted: NDArray[np.uint8]) -> bool:
        """Whether a view comes to look like a picture of it, within some ten seconds."""
        for _ in range(20):
            if np.abs(self.picture(view).astype(int) - wanted).max(2).mean() < 2:
                return True
            self.page.wait_for_timeout(500)
        return False

    def start_over(self) -> None:
        """Delete all segments, one after the other."""
        while count := len(self.state("segments")):
            self.page.locator(".gs-segment [aria-label=More]").first.click()
            self.page.get_by_text("Delete for good").locator("visible=true").click()
            self.until(f"s.segments.length < {count}")

    def close(self) -> None:
        """Close the window; nothing may have failed in the page's own code."""
        self.page.close()
        assert self.problems == []


@pytest.fixture
def page(browser: Any, server: WebServer) -> Iterator[Page]:
    """The page in a window of 1280×720."""
    opened = Page(browser, server.url)
    yield opened
    opened.close()
