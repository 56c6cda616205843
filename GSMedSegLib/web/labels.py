"""What a control is called for those who do not see its icon."""

from __future__ import annotations

from typing import Any


def labelled(name: str, role: str = "") -> dict[str, Any]:
    """Arguments of a widget that give it a name for screen readers; trame knows no such attribute by itself.

    Args:
        name: in words.
        role: what it is, of those that ARIA knows; empty where its element says so.
    """
    properties: list[Any] = [("aria_label", "aria-label")]
    if not role:
        return {"aria_label": name, "__properties": properties}
    return {"aria_label": name, "role": role, "__properties": [*properties, "role"]}
