"""Windows of several sizes before one view."""

from __future__ import annotations

from typing import Any

from GSMedSegLib.web.sizes import SharedSize


class FakeAdapter:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def update_size(self, origin: str, size: dict[str, float]) -> None:
        """Of a window."""
        self.told.append((size["w"], size["h"], size["p"]))

    def on_interaction(self, origin: str, event: dict[str, Any]) -> None:
        """In a window."""
        self.told.append(event["type"])


def test_a_view_has_the_size_of_the_window_that_is_used():
    adapter, ratios = FakeAdapter(), []
    SharedSize(adapter, ratios.append)
    adapter.update_size("", {"w": 508.0, "h": 330.0, "p": 1})
    adapter.update_size("", {"w": 380.5, "h": 346.0, "p": 2})
    adapter.on_interaction("", {"type": "move", "w": 380.5, "h": 346.0})
    adapter.on_interaction("", {"type": "move", "w": 508.0, "h": 330.0})
    adapter.on_interaction("", {"type": "press", "w": 508.0, "h": 330.0})
    small, large = (508.0, 330.0, 1), (380.5, 346.0, 2)
    assert adapter.told == [small, large, "move", small, "move", "press"]
    assert ratios == [1, 2, 1]


def test_what_says_no_size_or_one_that_was_not_told_changes_none():
    adapter = FakeAdapter()
    SharedSize(adapter, lambda _: None)
    adapter.on_interaction("", {"type": "move", "w": 10, "h": 10})
    adapter.update_size("", {"w": 508.0, "h": 330.0, "p": 1})
    adapter.on_interaction("", {"type": "start"})
    adapter.on_interaction("", {"type": "move", "w": 10, "h": 10})
    assert adapter.told == ["move", (508.0, 330.0, 1), "start", "move"]
