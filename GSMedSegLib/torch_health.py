"""Whether torch works on this machine, and uses its graphics card: the verdicts, and what to do."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Literal

from GSMedSegLib.machine import Machine, release

State = Literal["ok", "warning", "problem"]
Verdict = tuple[State, str, str]
"""The state of what was looked at, what was found in one line, and advice, which may be empty."""

MIN_DRIVER = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for each major version of CUDA.
Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1."""

CHOOSE_TORCH = "choose the command for this computer at https://pytorch.org/get-started/locally"

OLD_NUMPY = '"numpy<2"'


def torch_advice(machine: Machine) -> str:
    """How to get torch for this machine."""
    if machine.system == "Darwin" and machine.architecture in ("x86_64", "amd64"):
        return (
            "there is no recent torch for Macs with an Intel processor: use an engine on another computer "
            "(gsmedseg serve)"
        )
    if machine.system == "Darwin":
        return "python -m pip install torch"
    with contextlib.suppress(RuntimeError):
        if machine.cards:
            return f"for the {machine.cards[0].name} {CHOOSE_TORCH}, a build with CUDA"
    return f"{CHOOSE_TORCH}; without an NVIDIA card take the CPU build, which is far smaller"


def check_torch_copies(machine: Machine) -> Verdict:
    """One torch, not two that hide each other."""
    folders = dict.fromkeys(os.path.realpath(entry or ".") for entry in machine.search_path)
    places = [folder for folder in folders if Path(folder, "torch", "__init__.py").is_file()]
    if len(places) > 1:
        found = f"{len(places)} installations: {', '.join(places)}"
        return (
            "warning",
            found,
            f"the first is used; remove the others, or clear PYTHONPATH ({places[0]} stays)",
        )
    return "ok", f"one, in {places[0]}" if places else "none", ""


def check_torch(machine: Machine) -> Verdict:
    """It can be imported, takes NumPy's arrays, and knows the processor's vector units."""
    result = machine.imports["torch"]
    if result.error is not None:
        if machine.installed.get("torch") is None:
            return "problem", "not installed", torch_advice(machine)
        advice = f"install it again: {torch_advice(machine)}"
        if "DLL" in result.error or "WinError" in result.error:
            advice = f"install Microsoft's Visual C++ Redistributable (x64) first; if it stays, {advice}"
        return "problem", result.error, advice
    facts = result.facts
    built = next(
        (f"{kind.upper()} {facts[kind]}" for kind in ("cuda", "rocm") if facts[kind]), "the CPU alone"
    )
    found = f"{result.version}, built for {built}; processor: {facts['cpu']}{', bfloat16' * facts['bf16']}"
    if not facts["numpy"]:
        advice = f"python -m pip install --upgrade torch, or: python -m pip install {OLD_NUMPY}"
        return "problem", f"{found}; it cannot use the NumPy installed", advice
    if machine.architecture in ("x86_64", "amd64") and facts["cpu"] == "DEFAULT":
        advice = "on this processor expect to wait; a GPU or another computer (gsmedseg serve) is faster"
        return "warning", f"{found} (no AVX2)", advice
    return "ok", found, ""


def check_driver(machine: Machine) -> Verdict:
    """The NVIDIA driver works, where there is a card."""
    try:
        cards = machine.cards
    except RuntimeError as error:
        return "warning", str(error), "restart the computer; if it stays, install the NVIDIA driver again"
    if cards:
        names = ", ".join(f"{card.name} ({card.memory_gib:.0f} GiB)" for card in cards)
        return "ok", f"{names}, driver {cards[0].driver}", ""
    if machine.nvidia_smi is None and machine.has_nvidia_card:
        advice = (
            "install the driver from https://www.nvidia.com/drivers; in a container, start it with --gpus all"
        )
        return "warning", "there is an NVIDIA card, but no driver for it", advice
    found = "no NVIDIA card"
    if machine.system == "Darwin":
        found += "; Apple's graphics are not used"
    return "ok", found, ""


def check_gpu(machine: Machine) -> Verdict:
    """Torch computes on the card, where there is one; says why not."""
    result = machine.imports["torch"]
    if result.error is not None:
        return "ok", "not looked at: torch cannot be imported", ""
    facts = result.facts
    if facts["gpus"]:
        return _check_working_gpu(facts)
    with contextlib.suppress(RuntimeError):
        if machine.cards:
            return _why_unused(machine, facts)
    return "ok", "none, the processor is used", ""


def _check_working_gpu(facts: dict[str, object]) -> Verdict:
    """The verdict on cards that torch sees: one that it was not compiled for still fails."""
    gpus, error = facts["gpus"], facts["gpu_error"]
    architectures = facts["architectures"]
    assert isinstance(gpus, list)
    assert isinstance(architectures, list)
    found = ", ".join(f"{name} ({gib:.0f} GiB, capability {capability})" for name, gib, capability in gpus)
    unfit = [] if facts["rocm"] else [c for _, _, c in gpus if not runs_on(c, architectures)]
    if unfit:
        newest = max((_numbers(a) for a in architectures), default=(0, 0))
        newer = _numbers(unfit[0]) > newest
        found += f"; this torch was compiled for {' '.join(architectures)}"
        advice = "install a newer torch" if newer else "install an older torch that still knows the card"
        return "problem", found, f"{advice} ({CHOOSE_TORCH}), or use --device cpu"
    if error is not None:
        advice = (
            "end other programs that use the card, restart, update the driver; until then use --device cpu"
        )
        return "problem", f"{found}; computing fails, {error}", advice
    return "ok", found, ""


def runs_on(capability: str, architectures: list[str]) -> bool:
    """Whether code compiled for some architectures runs on a card.

    Binary code (sm_XY) runs on the same major version from minor Y on, intermediate code (compute_XY) on
    everything from X.Y on.
    Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide, "Binary" and "PTX Compatibility".

    Args:
        capability: of the card, such as "8.6".
        architectures: such as "sm_80" or "compute_90"; none tells nothing, so that the answer is yes.
    """
    card = _numbers(capability)
    for architecture in architectures:
        built = _numbers(architecture)
        if architecture.startswith("sm_") and built[0] == card[0] and built <= card:
            return True
        if architecture.startswith("compute_") and built <= card:
            return True
    return not architectures


def _numbers(text: str) -> tuple[int, int]:
    """Major and minor of "8.6", "sm_86", "sm_90a" or "compute_120"."""
    digits = re.sub(r"\D", "", text) or "0"
    return int(digits[:-1] or "0"), int(digits[-1])


def _why_unused(machine: Machine, facts: dict[str, object]) -> Verdict:
    """Why torch does not see a card whose driver works."""
    card = machine.cards[0]
    hidden = machine.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        found = f"{card.name} is hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return "warning", found, "remove this variable to use the card"
    cuda = facts["cuda"]
    if not isinstance(cuda, str):
        found = f"{card.name} is not used: the torch installed is for the CPU alone"
        return "warning", found, f"python -m pip uninstall torch, then {CHOOSE_TORCH}, a build with CUDA"
    lowest, driver = MIN_DRIVER.get(int(cuda.split(".")[0])), release(card.driver)
    if lowest is not None and driver and driver[0] < lowest:
        fitting = [major for major, oldest in MIN_DRIVER.items() if driver[0] >= oldest]
        found = f"{card.name} is not used: driver {card.driver} is too old for CUDA {cuda} of this torch"
        advice = f"update the driver to {lowest} or newer"
        advice += f", or install torch for CUDA {max(fitting)} ({CHOOSE_TORCH})" if fitting else ""
        return "warning", found, advice
    found = f"{card.name} is not used: {facts['gpu_error'] or 'torch gives no reason'}"
    return "warning", found, "restart the computer; in a container, start it with --gpus all"
