"""Keys for the buttons, as long as the panel is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _


class Shortcuts:
    """Keys that work in the whole window; each is told in its button's tooltip.

    Args:
        actions: button and what to do, by key as Qt writes it.
    """

    def __init__(self, actions: Mapping[str, tuple[Any, Callable[[], None]]]) -> None:
        self._actions = dict(actions)
        self._active: list[Any] = []
        for key, (button, _action) in self._actions.items():
            button.toolTip = _("{text} (key: {key})").format(text=button.toolTip, key=key)

    def install(self) -> None:
        """Begin to listen; nothing happens when it does already."""
        if self._active:
            return
        for key, (button, action) in self._actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), slicer.util.mainWindow())
            shortcut.connect("activated()", _if_enabled(button, action))
            self._active.append(shortcut)

    def remove(self) -> None:
        """Give the keys back."""
        for shortcut in self._active:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._active.clear()


def _if_enabled(button: Any, action: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        if button.enabled:
            action()

    return run
