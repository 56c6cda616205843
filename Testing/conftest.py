"""What all tests share: quiet threads, a cache folder of their own, the data sets, small networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports torch, which reads it once: more threads than this only make small tests slower, and
# two processes with a thread for every core each wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch and monai are imported by the fixtures that need them
    from monai.networks.nets.vista3d import VISTA3D

    from GSMedSegLib.engine import Engine
    from GSMedSegLib.network import Network

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, and no deadline: a busy machine is no failure.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, those of the page before all: else one process is left with them at the end."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name != "test_page.py"))


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


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """Small networks with random weights, the same for the same arguments.

    Called with `additions=True` for one with click features, a mixer and its step to full resolution, whose
    zeros are replaced as if it had been trained; with `blocks_down=…` and `width=…` for other sizes.
    """
    import torch

    from GSMedSegLib.network import Network, Shape

    def make(
        additions: bool = False,
        blocks_down: tuple[int, ...] = (1, 1, 2),
        width: int = 16,
        mixer: tuple[int, ...] = (8, 16),
        detail: int = 8,
        seed: int = 0,
    ) -> Network:
        torch.manual_seed(seed)
        shape = Shape(8, blocks_down, width)
        if additions:
            shape = replace(shape, click_features=True, mixer=mixer, detail=detail)
        network = Network(shape).eval()
        head = network.point_head
        if head.mixer is not None and head.click_features is not None:
            for layer in (head.mixer.to_features, head.mixer.to_logits, head.click_features):
                layer.reset_parameters()
            if head.mixer.detail is not None:
                head.mixer.detail.to_logits.reset_parameters()
        return network.requires_grad_(False)

    return make


@pytest.fixture
def make_monai() -> Callable[..., VISTA3D]:
    """MONAI's own VISTA3D at the same small sizes, with both branches."""
    import torch
    from monai.networks.nets import SegResNetDS2
    from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, PointMappingSAM

    def make(
        init_filters: int = 8, blocks_down: tuple[int, ...] = (1, 1, 2), width: int = 16, seed: int = 0
    ) -> VISTA3D:
        torch.manual_seed(seed)
        encoder = SegResNetDS2(
            in_channels=1,
            blocks_down=blocks_down,
            norm="instance",
            out_channels=width,
            init_filters=init_filters,
            dsdepth=1,
        )
        network = VISTA3D(
            image_encoder=encoder,
            class_head=ClassMappingClassify(n_classes=512, feature_size=width, use_mlp=True),
            point_head=PointMappingSAM(feature_size=width, n_classes=512, last_supported=132),
        )
        return network.eval().requires_grad_(False)

    return make


@pytest.fixture
def make_engine(make_network: Callable[..., Network]) -> Callable[..., Engine]:
    """Float32 engines on the CPU around `make_network`'s networks; `metadata` is the checkpoint's."""
    from GSMedSegLib.engine import Engine

    def make(metadata: Mapping[str, str] | None = None, cache_gb: float = 2.0, **network: Any) -> Engine:
        return Engine(make_network(**network), "cpu", "fp32", cache_gb, metadata)

    return make


@pytest.fixture
def blobs() -> Callable[..., NDArray[np.float32]]:
    """Images of smooth random blobs: structures to click on that are no symmetric special case."""
    from scipy import ndimage

    def make(*shape: int, seed: int = 0) -> NDArray[np.float32]:
        noise = np.random.default_rng(seed).standard_normal(shape)
        return ndimage.gaussian_filter(noise, 2.0).astype(np.float32)

    return make


@pytest.fixture
def training_data(tmp_path: Path) -> Path:
    """A small data folder to train on: two volumes of blobs, one label map, one lesion."""
    import SimpleITK as sitk
    from scipy import ndimage

    rng = np.random.default_rng(0)

    def write(array: NDArray[Any], *path: str) -> None:
        file = tmp_path.joinpath("data", "train", *path)
        file.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(image, str(file))

    for case in ("case_a", "case_b"):
        noise = ndimage.gaussian_filter(rng.standard_normal((20, 28, 24)), 3)
        labels = (noise > 0.03).astype(np.uint8) + (noise > 0.08)
        write(labels * 100 + rng.normal(0, 5, labels.shape).astype(np.float32), "blobs", case, "image.nii.gz")
        write(labels, "blobs", case, "label.nii.gz")
    noise = ndimage.gaussian_filter(rng.standard_normal((2, 24, 24, 24)), (0, 4, 4, 4))
    write((noise.argmax(0) + 1).astype(np.uint8), "labelmaps", "regions", "map.nii.gz")
    lesion = np.zeros((12, 12, 12), np.uint8)
    lesion[3:9, 3:8, 3:8] = 1
    write(lesion, "labelmaps", "open_ms_lesions", "lesion.nii.gz")
    return tmp_path / "data"
