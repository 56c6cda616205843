"""The size of a view, when several windows show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SharedSize:
    """Has a view take the size of the window that is used.

    Windows with the same address share the views, but each has a size and a sharpness of its own, which it
    tells when it opens or changes. A click in one whose picture was drawn for another would land elsewhere.

    Args:
        adapter: of the view, trame-rca's: it is told sizes and events, from now on by way of this.
        on_ratio: called when the view gets its size, with the pixels of the screen per pixel of the page.
    """

    def __init__(self, adapter: Any, on_ratio: Callable[[float], None]) -> None:
        self._resize, self._act, self._on_ratio = adapter.update_size, adapter.on_interaction, on_ratio
        self._now: tuple[float, float] | None = None
        self._ratios: dict[tuple[float, float], float] = {}
        """By width and height in pixels of the page, as they were told."""
        adapter.update_size, adapter.on_interaction = self.resize, self.act

    def resize(self, origin: str, size: dict[str, float]) -> None:
        """A window tells its width "w" and height "h" in pixels of the page, and its ratio "p"."""
        self._now = (size["w"], size["h"])
        self._ratios[self._now] = ratio = size.get("p", 1.0)
        self._on_ratio(ratio)
        self._resize(origin, size)

    def act(self, origin: str, event: dict[str, Any]) -> None:
        """The mouse or a key in a window of width "w" and height "h"."""
        window = (event.get("w", 0.0), event.get("h", 0.0))
        if window != self._now and window in self._ratios:  # else it is about to tell its size
            self.resize(origin, {"w": window[0], "h": window[1], "p": self._ratios[window]})
        self._act(origin, event)
