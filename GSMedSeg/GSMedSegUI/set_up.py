"""First use: the packages that the engine needs, installed into Slicer's Python when the user agrees."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import slicer
from slicer.i18n import tr as _

import GSMedSegLib
from GSMedSegLib.machine import Machine, canonical, release
from GSMedSegUI.process import run_module

SERVICE_PACKAGES = (
    "fastapi>=0.115",
    "prometheus-client>=0.20",
    "psutil>=5.9",
    "pydantic>=2",
    "uvicorn>=0.30",
)
"""As the extra `server` of the pip package has them."""

TORCH = "torch"


def requirements() -> list[str]:
    """What the engine needs, "name>=version": the library's own list, and the service's."""
    text = (Path(GSMedSegLib.__file__).parent / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [*filter(None, lines), *SERVICE_PACKAGES]


def missing() -> list[str]:
    """Requirements whose package is not installed, or too old; nothing is imported."""
    installed, absent = Machine().installed, []
    for requirement in requirements():
        name, _separator, lowest = requirement.partition(">=")
        version = installed.get(canonical(name))
        if version is None or release(version) < release(lowest):
            absent.append(requirement)
    return absent


def ensure_installed(log: Callable[[str], None]) -> bool:
    """Ask, and install what is missing or too old.

    Args:
        log: told what is being done.

    Returns:
        whether everything is there; False when the user does not agree.

    Raises:
        RuntimeError: an installation failed.
    """
    absent = missing()
    if not absent:
        log(_("Everything is installed"))
        return True
    question = _(
        "The engine needs packages that are not installed yet, or too old:\n\n{names}\n\nThey are "
        "downloaded from the Python package index (torch: up to several GB with a GPU, some 200 MB without) "
        "into Slicer's own Python; the log below shows how it goes. Install them now?"
    ).format(names=", ".join(absent))
    if not slicer.util.confirmOkCancelDisplay(question, _("GSMedSeg: set up the engine")):
        return False
    if any(requirement.startswith(TORCH) for requirement in absent):
        _install_torch(log, next(r for r in absent if r.startswith(TORCH)))
    others = [requirement for requirement in absent if not requirement.startswith(TORCH)]
    if others:
        log(_("Installing {names}").format(names=", ".join(others)))
        _pip_install(others, log)
    left = missing()
    if left:
        raise RuntimeError(_("still missing: {names}; see the log").format(names=", ".join(left)))
    log(_("Everything is installed"))
    return True


def _install_torch(log: Callable[[str], None], requirement: str) -> None:
    """By the PyTorch extension, which chooses the build for the GPU; by pip where it is not there."""
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        log(_("Installing torch by pip; with the PyTorch extension the build for your GPU would be chosen"))
        _pip_install([requirement], log)
        return
    log(_("Installing torch by the PyTorch extension"))
    version = requirement.removeprefix(TORCH)
    if (
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=version)
        is None
    ):
        raise RuntimeError(_("torch could not be installed; see the log of the PyTorch extension"))


def _pip_install(packages: Sequence[str], log: Callable[[str], None]) -> None:
    """By pip itself, in Slicer's Python, so that the log shows what it does while it does it."""
    if run_module(log, "pip", "install", "--only-binary", ":all:", *packages) != 0:
        raise RuntimeError(_("pip could not install {names}; see the log").format(names=", ".join(packages)))
    importlib.invalidate_caches()
