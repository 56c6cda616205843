"""What all tests share: quiet threads, a cache folder of their own, the data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch, which reads it once: more threads than this only make small tests slower.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, and no deadline: a busy machine is no failure.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the weights that the user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSMEDSEG_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the data sets `dev`, `train` and `unlabelled`; skips the test where there is none."""
    folder = Path(os.environ.get("GSMEDSEG_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dev").is_dir():
        pytest.skip(f"no data sets in {folder}; set GSMEDSEG_DATA to the folder that has dev/ in it")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
