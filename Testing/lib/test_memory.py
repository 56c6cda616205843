"""The allocator setting is a harmless no-op wherever it does not exist."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from GSMedSegLib.memory import keep_freed_memory


@pytest.mark.parametrize("platform", ["darwin", "win32", "emscripten"])
def test_other_platforms_are_left_alone(monkeypatch, platform):
    """No library is even looked for."""

    def no_library(name):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert keep_freed_memory() is False


@pytest.mark.parametrize("library", ["missing", "no mallopt"])
def test_linux_without_glibc(monkeypatch, library):
    """No libc.so.6, or one without mallopt, as with musl."""

    def load(name):
        if library == "missing":
            raise OSError("cannot open shared object file")
        return object()

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory() is False


@pytest.mark.parametrize("refused", [None, -1, -2, -3])
def test_all_three_settings_must_take(monkeypatch, refused):
    """The answer tells whether the allocator took the trim threshold, the top pad and the mmap threshold."""
    asked = {}

    class Glibc:
        @staticmethod
        def mallopt(option, value):
            asked[option] = value
            return int(option != refused)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc)
    assert keep_freed_memory() is (refused is None)
    if refused is None:
        assert asked == {-1: -1, -2: 64 * 2**20, -3: 32 * 2**20}


def test_a_process_goes_on_with_it():
    """In a process of its own: a bool, and memory can still be had and given back."""
    code = (
        "from GSMedSegLib.memory import keep_freed_memory as keep; assert isinstance(keep(), bool);"
        "import numpy; print(sum(float(numpy.ones(2**22).sum()) for _ in range(3)) == 3 * 2**22)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "True"
