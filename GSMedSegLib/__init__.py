"""GSMedSeg: segment anything in a 3D medical image from a few clicks.

Importing this package is cheap: neither torch nor monai is loaded before a name that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from GSMedSegLib.predictor import Predictor
    from GSMedSegLib.prompts import Box, Click, ClickLedger
    from GSMedSegLib.volume_io import read_volume, write_labelmap

__version__ = "0.1.0"

__all__ = ["Box", "Click", "ClickLedger", "Predictor", "__version__", "read_volume", "write_labelmap"]

_HOME_OF = {
    "Box": "prompts",
    "Click": "prompts",
    "ClickLedger": "prompts",
    "Predictor": "predictor",
    "read_volume": "volume_io",
    "write_labelmap": "volume_io",
}


def __getattr__(name: str) -> Any:
    """Imports the module behind a public name when the name is first used (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
