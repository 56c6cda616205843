"""Whether VTK can draw here without a screen: where it cannot, it ends the process instead of raising."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

VARIABLE = "VTK_DEFAULT_OPENGL_WINDOW"
"""Environment variable that names VTK's way to draw; read once, when VTK is loaded."""

WAYS = ("vtkEGLRenderWindow", "vtkOSOpenGLRenderWindow")
"""Without an X server: by the graphics driver, or by the processor alone."""

ADVICE = (
    "VTK cannot draw on this computer; on Debian and Ubuntu: "
    "apt install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"
)

_RENDER = "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.SetSize(9, 9); w.Render()"
_TRIAL_S = 120.0


class Trial:
    """Draws in a process of its own, while this one loads what it needs.

    Args:
        ways: to try, one after the other; None takes what suits this system.
    """

    def __init__(self, ways: Sequence[str] | None = None) -> None:
        if ways is None:
            chosen = os.environ.get(VARIABLE)
            ways = [chosen] if chosen else list(WAYS) if sys.platform.startswith("linux") else [""]
        self._ways = list(ways)
        self._process = self._start()

    def finish(self) -> None:
        """Waits for the outcome, and has VTK draw in the way that worked.

        Raises:
            RuntimeError: nothing worked; the text says what to install.
        """
        while True:
            try:
                code = self._process.wait(_TRIAL_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            if code == 0:
                if self._ways[0]:
                    os.environ[VARIABLE] = self._ways[0]
                return
            del self._ways[0]
            if not self._ways:
                raise RuntimeError(ADVICE)
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self._ways[0]:
            environment[VARIABLE] = self._ways[0]
        return subprocess.Popen(
            [sys.executable, "-c", _RENDER],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
