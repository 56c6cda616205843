"""The browser app: from a click in the page to the mask on the screen, and the memory of a long session.

`python -m Testing.benchmarks.web` clicks in a real browser on a ball in a 256³ image, each time anew, and has
an engine in this process answer the same click in turn, so that both see the same machine:
`build/bench/web.json`.
`--session 500` clicks as often in one session and follows the memory of server, engine and browser:
`build/bench/web_session.json`. The engine may keep 50 MB of encoded regions there, so that what it keeps on
purpose is soon full and a leak would show.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
from playwright.sync_api import sync_playwright

from GSMedSegLib.predictor import Predictor, load_engine
from GSMedSegLib.prompts import ObjectPrompts
from GSMedSegLib.volume_io import read_volume
from Testing.benchmarks.service import make_image
from Testing.web.conftest import CHROMIUM_FLAGS, Page, WebServer
from Testing.web.conftest import make_image as make_small_image

FOLDER = Path("build/bench")
CLICKS = 8
PAUSE_MS = 300
"""Between the two: a thread pool spins for a while after its work, and would take the other's processors."""

PRESSURE_MS = 1000
"""Until Chromium has freed what it can."""

CACHE_GB = 0.05
"""Of the engine in a long session."""

EVERY = 50
"""Clicks from one look at the memory to the next."""

# Resolves with the milliseconds from the next press of the mouse to the first look (every 30 ms) at which a
# point of the axial view, given as shares of its width and height, has a colour: the mask is on the screen.
WATCH = """([right, down]) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  window.seen = new Promise((resolve) => {
    window.addEventListener("pointerdown", () => {
      const began = performance.now();
      const look = () => {
        const image = document.querySelector("#view-Axial img.image-display-area");
        if (image?.complete && image.naturalWidth) {
          const x = right * image.naturalWidth, y = down * image.naturalHeight;
          context.drawImage(image, x, y, 1, 1, 0, 0, 1, 1);
          const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
          if (Math.max(r, g, b) - Math.min(r, g, b) > 40) return resolve(performance.now() - began);
        }
        setTimeout(look, 30);  // not every frame: drawing takes the processors that the engine needs
      };
      look();
    }, { capture: true, once: true });
  });
}"""


def measure(page: Page, server: WebServer, image_file: Path) -> dict[str, Any]:
    """Seconds from click to mask, in the page and by the engine alone."""
    volume = read_volume(image_file)
    predictor = Predictor(load_engine())
    predictor.set_image(volume.array, volume.ijk_to_ras)
    rows = []
    for number in range(CLICKS + 1):
        right, down = 0.5 + 0.006 * number, 0.5 - 0.004 * number
        page.page.wait_for_timeout(PAUSE_MS)
        page.page.evaluate(WATCH, [right + 0.03, down + 0.03])
        page.click("Axial", right, down)
        shown_s = page.page.evaluate("window.seen") / 1000
        page.answered(1)
        ledger = page.ledger()
        click = ledger.clicks(ledger.objects[0])[0]
        page.page.wait_for_timeout(PAUSE_MS)
        began = time.perf_counter()
        predictor.segment_from(ObjectPrompts((click,)))
        rows.append((shown_s, time.perf_counter() - began))
        page.page.click("#undo")
        page.until("s.segments[0].clicks === 0 && !s.busy")
    later = rows[1:]  # the first click waits for the image to be sent
    return {
        "overhead_s": round(statistics.median(shown - alone for shown, alone in later), 3),
        "page_s": round(statistics.median(shown for shown, _ in later), 3),
        "engine_s": round(statistics.median(alone for _, alone in later), 3),
        "clicks": len(later),
        "side": 256,
    }


def long_session(page: Page, server: WebServer, clicks: int, every: int = EVERY) -> list[dict[str, int]]:
    """MiB of memory after every `every` clicks: four on a segment, one undone, then another segment."""
    rng = np.random.default_rng(0)
    rows = []
    done = 0
    while done < clicks:
        for number in range(1, 5):
            page.mode("foreground" if number % 2 else "background")
            page.click(("Axial", "Coronal", "Sagittal")[done % 3], *rng.uniform(0.42, 0.58, 2).tolist())
            page.answered(number)
            done += 1
            if done % every == 0:
                rows.append({"clicks": done, **memory(page, server)})
                print(json.dumps(rows[-1]), flush=True)
        page.page.click("#undo")
        page.answered(3)
        if len(page.state("segments")) == 4:
            page.start_over()
        else:
            count = len(page.state("segments"))
            page.page.click("#add")
            page.until(f"s.segments.length === {count + 1}")
    return rows


def memory(page: Page, server: WebServer) -> dict[str, int]:
    """MiB of the server, its engine, the browser's process with the page, and the page's own objects.

    Chromium is told before that memory is short: else it keeps images that were shown as long as it likes.
    """
    chromium = page.page.context.new_cdp_session(page.page)
    chromium.send("Memory.simulatePressureNotification", {"level": "critical"})
    chromium.send("HeapProfiler.collectGarbage")
    chromium.detach()
    page.page.wait_for_timeout(PRESSURE_MS)
    heap = page.page.evaluate("performance.memory.usedJSHeapSize")
    pages = [
        process.memory_info().rss
        for process in psutil.Process().children(recursive=True)
        if "--type=renderer" in process.cmdline()
    ]
    return {
        "server": round(psutil.Process(server.pid).memory_info().rss / 2**20),
        "engine": round(server.engine().memory_info().rss / 2**20),
        "browser": round(max(pages) / 2**20),
        "page": round(heap / 2**20),
    }


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="Testing.benchmarks.web", description=__doc__)
    parser.add_argument("--session", type=int, metavar="N", help="click N times, and follow the memory")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        image_file = Path(folder) / "image.nii.gz"
        image = make_small_image() if options.session else make_image()
        sitk.WriteImage(sitk.GetImageFromArray(image), str(image_file))
        arguments = ["--cache-gb", str(CACHE_GB)] if options.session else []
        server = WebServer(Path(folder), "--no-autosave", *arguments)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
                page = Page(browser, server.url)
                page.open(image_file)
                page.until("s.message.startsWith('Ready')")
                if options.session:
                    rows = long_session(page, server, options.session)
                    figures, name = {"memory_mib": rows}, "web_session"
                else:
                    figures, name = measure(page, server, image_file), "web"
                browser.close()
        finally:
            server.end()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
