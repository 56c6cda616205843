"""What a control is called for those who do not see its icon."""

from __future__ import annotations

from typing import Any


def labelled(name: str) -> dict[str, Any]:
    """Arguments of a widget that give it a name for screen readers; trame knows no such attribute by itself.

    Args:
        name: in words.
    """
    return {"aria_label": name, "__properties": [("aria_label", "aria-label")]}
