"""The engine encodes once, remembers within its bounds, and answers as the plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GSMedSegLib.engine import Engine, ImageKey, find_device, find_precision, has_bf16
from GSMedSegLib.network import Network, Shape, build_network
from GSMedSegLib.prompt_maps import Prompts

ROI = torch.rand(16, 24, 32, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def relative_difference(ours, theirs):
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("additions", [False, True], ids=["plain", "additions"])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24, 32), (32, 16, 16)])
def test_the_engine_equals_the_plain_network(make_network, make_engine, additions, size):
    """float32, several objects, padded clicks, a previous mask: within 1e-5 of `Network.forward`."""
    roi = torch.rand(size, generator=torch.Generator().manual_seed(3))
    coords = torch.tensor([[[3, 4, 5], [0, 15, 0]], [[8, 1, 14], [0, 0, 0]], [[15, 15, 15], [2, 3, 4]]])
    labels = torch.tensor([[1, 0], [3, -1], [1, 1]])
    previous = torch.randn(3, *size, generator=torch.Generator().manual_seed(4)) * 4
    plain = make_network(additions=additions)
    engine = make_engine(additions=additions)
    embedding = engine.encode(roi)
    assert embedding.roi == size
    for given in (None, previous):
        with torch.inference_mode():
            theirs = torch.stack(
                [
                    plain(
                        roi[None, None],
                        Prompts(
                            coords[r : r + 1, labels[r] != -1],
                            labels[r : r + 1, labels[r] != -1],
                            None if given is None else given[r][None, None],
                        ),
                    )[0, 0]
                    for r in range(3)
                ]
            )
        ours = engine.decode(embedding, coords.numpy(), labels.numpy(), given)
        assert ours.shape == (3, *size)
        assert ours.dtype == torch.float32
        assert relative_difference(ours, theirs) <= 1e-5


def test_objects_do_not_touch_each_other(make_engine):
    """Ten objects decoded together are the ten decoded one by one, bit for bit."""
    engine = make_engine(additions=True)
    embedding = engine.encode(ROI)
    coords = np.random.default_rng(0).integers(0, 16, (10, 2, 3))
    labels = np.array([[1, 0]] * 10)
    together = engine.decode(embedding, coords, labels)
    for r in range(10):
        assert torch.equal(together[r], engine.decode(embedding, coords[r : r + 1], labels[r : r + 1])[0])


def test_a_decoded_embedding_is_unchanged(make_engine):
    """The first click decoded again after other clicks gives the same bits."""
    engine = make_engine(additions=True)
    embedding = engine.encode(ROI, key="roi")
    first = engine.decode(embedding, [[[1, 2, 3]]], [[1]])
    engine.decode(embedding, [[[9, 9, 9], [1, 1, 1]]], [[1, 0]], torch.ones(1, *ROI.shape))
    engine.decode(engine.encode(torch.rand(16, 16, 16)), [[[9, 9, 9]]], [[1]])
    assert torch.equal(engine.decode(engine.encode(ROI, key="roi"), [[[1, 2, 3]]], [[1]]), first)


def test_only_padding_is_no_error(make_engine):
    """An object without clicks gets finite logits, those of a padded click."""
    engine = make_engine()
    assert torch.isfinite(engine.decode(engine.encode(ROI), [[[0, 0, 0]]], [[-1]])).all()


def test_a_key_is_encoded_once(make_engine):
    """The second call with a key runs no encoder; a call without a key always does."""
    engine = make_engine()
    first = engine.encode(ROI, key="a")
    assert engine.encode(ROI, key="a") is first
    assert engine.encoded == 1
    engine.encode(ROI)
    engine.encode(ROI)
    assert engine.encoded == 3
    assert engine.cached("a")
    assert not engine.cached("b")
    engine.forget()
    assert not engine.cached("a")
    engine.encode(ROI, key="a")
    assert engine.encoded == 4


def test_a_roi_is_made_only_when_needed(make_engine):
    """A function that makes the ROI is called for the first encoding, and never for a key in the cache."""
    engine, made = make_engine(), []

    def make():
        made.append(None)
        return ROI

    embedding = engine.encode(make, key="a")
    assert engine.encode(make, key="a") is embedding
    assert len(made) == 1
    assert torch.equal(embedding.low, engine.encode(ROI).low)


def test_an_embeddings_bytes_by_hand(make_engine):
    """16 channels and the image at half resolution, 4 bytes each; additions: 8, and 8 at full resolution."""
    voxels = 8 * 12 * 16
    assert make_engine().encode(ROI).nbytes == voxels * (16 + 1) * 4
    assert make_engine(additions=True).encode(ROI).nbytes == voxels * (16 + 1 + 8 + 8 * 8) * 4


def test_the_cache_forgets_the_least_recently_used(make_engine):
    """Room for two: a third drops the one not used for longest, and a use counts."""
    one = make_engine().encode(ROI).nbytes
    engine = make_engine(cache_gb=2.5 * one / 2**30)
    engine.encode(ROI, key="a")
    engine.encode(ROI, key="b")
    engine.encode(ROI, key="a")
    engine.encode(ROI, key="c")
    assert [engine.cached(key) for key in "abc"] == [True, False, True]


def test_embeddings_of_a_forgotten_image_go(make_engine):
    """With the next encoding; those of an image that is still there, and those of none, stay."""
    engine = make_engine()
    forgotten, open_image = ImageKey(), ImageKey()
    lost = forgotten.of(1)
    for key in (lost, open_image.of(1), "alone"):
        engine.encode(ROI, key=key)
    assert engine.cached(forgotten.of(1))
    assert forgotten.of(1) != open_image.of(1)
    del forgotten
    engine.encode(ROI, key=open_image.of(2))
    assert not engine.cached(lost)
    assert [engine.cached(key) for key in (open_image.of(1), open_image.of(2), "alone")] == [True] * 3


def test_the_cache_counts_bytes_not_entries(make_engine):
    """A large ROI pushes out as many small ones as it takes."""
    small = torch.rand(16, 16, 16)
    engine = make_engine(cache_gb=9 * make_engine().encode(small).nbytes / 2**30)
    for key in range(9):
        engine.encode(small, key=key)
    assert all(engine.cached(key) for key in range(9))
    engine.encode(torch.rand(32, 32, 16), key="large")
    assert [engine.cached(key) for key in range(9)] == [False] * 4 + [True] * 5


def test_the_latest_is_kept_whatever_its_size(make_engine):
    """A cache too small for one ROI still spares the second encoding of it."""
    engine = make_engine(cache_gb=0.0)
    engine.encode(ROI, key="a")
    assert engine.cached("a")
    engine.encode(ROI, key="b")
    assert (engine.cached("a"), engine.cached("b")) == (False, True)


@pytest.mark.parametrize("size", [(16, 16, 18), (15, 16, 16), (0, 16, 16), (16, 16), (1, 16, 16, 16)])
def test_wrong_roi_sizes_teach(make_engine, size):
    """The stride and the size that came are both told."""
    with pytest.raises(ValueError, match=r"three sides that are multiples of 4 voxels; got \("):
        make_engine().encode(torch.zeros(size))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_roi_must_be_finite(make_engine, value):
    """One bad voxel is refused before it spoils every logit, and nothing is cached."""
    roi, engine = ROI.clone(), make_engine()
    roi[3, 4, 5] = value
    with pytest.raises(ValueError, match="finite intensities"):
        engine.encode(roi, key="bad")
    assert not engine.cached("bad")


@pytest.mark.parametrize(
    ("coords", "labels"),
    [([[1, 2, 3]], [1]), ([[[1, 2]]], [[1]]), ([[[1, 2, 3]]], [[1, 0]]), ([[[1, 2, 3]]], [1])],
)
def test_wrong_click_arrays_teach(make_engine, coords, labels):
    """Shapes that do not belong together are named."""
    engine = make_engine()
    with pytest.raises(ValueError, match=r"expected \(R, N, 3\) coordinates and \(R, N\) labels; got"):
        engine.decode(engine.encode(ROI), np.array(coords), np.array(labels))


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cudax", "cpu:0"])
def test_unknown_devices_teach(name):
    """The known names are listed."""
    with pytest.raises(ValueError, match="expected device auto, cpu or cuda; got"):
        find_device(name)


def test_cuda_where_there_is_none(monkeypatch):
    """The error says what to do; "auto" needs no telling."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"device {name} .* use --device cpu"):
            find_device(name)
    assert find_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)


def test_precisions_of_a_processor(monkeypatch):
    """bf16 where it is fast, never fp16 on a CPU; "auto" picks what is there."""
    assert find_precision("fp32", CPU) == torch.float32
    with pytest.raises(ValueError, match="expected precision auto, fp32, bf16, fp16; got 'half'"):
        find_precision("half", CPU)
    with pytest.raises(ValueError, match="fp16 is for CUDA"):
        find_precision("fp16", CPU)
    monkeypatch.setattr("GSMedSegLib.engine.has_bf16", lambda device: False)
    assert find_precision("auto", CPU) == torch.float32
    with pytest.raises(ValueError, match="no bfloat16 arithmetic; use precision fp32"):
        find_precision("bf16", CPU)
    monkeypatch.setattr("GSMedSegLib.engine.has_bf16", lambda device: True)
    assert find_precision("auto", CPU) == find_precision("bf16", CPU) == torch.bfloat16


def test_a_gpu_that_emulates_bf16_does_not_use_it(monkeypatch):
    """Turing (7.5) makes such tensors and is slower with them; Ampere (8.0) has the arithmetic."""
    of_gpu = {0: (7, 5), 1: (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: of_gpu[device.index])
    assert find_precision("auto", torch.device("cuda:0")) == torch.float32
    assert find_precision("auto", torch.device("cuda:1")) == torch.bfloat16


def test_the_engine_passes_wrong_names_on(make_network):
    """Wrong device or precision at construction."""
    with pytest.raises(ValueError, match="expected device"):
        Engine(make_network(), "gpu")
    with pytest.raises(ValueError, match="expected precision"):
        Engine(make_network(), "cpu", "double")


@pytest.mark.parametrize("additions", [False, True], ids=["plain", "additions"])
def test_bf16_is_close_to_float32(make_network, make_engine, additions):
    """Logits within a few per cent of their spread, and an embedding of half the bytes."""
    if not has_bf16(CPU):
        pytest.skip("this processor has no bfloat16 arithmetic")
    exact, half = make_engine(additions=additions), Engine(make_network(additions=additions), "cpu", "bf16")
    coords, labels = [[[3, 4, 5], [12, 20, 30]]], [[1, 0]]
    theirs = exact.decode(exact.encode(ROI), coords, labels)
    embedding = half.encode(ROI)
    assert embedding.low.dtype == torch.bfloat16
    ours = half.decode(embedding, coords, labels)
    assert ours.dtype == torch.float32
    assert (ours - theirs).std() < 0.05 * theirs.std()
    assert not torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("additions", [False, True], ids=["plain", "additions"])
def test_cuda_is_close_to_the_cpu(make_network, make_engine, additions):
    """The same code on a GPU gives the same logits, but for the order of its sums."""
    cpu, gpu = make_engine(additions=additions), Engine(make_network(additions=additions), "cuda", "fp32")
    theirs = cpu.decode(cpu.encode(ROI), [[[3, 4, 5]]], [[1]])
    ours = gpu.decode(gpu.encode(ROI), [[[3, 4, 5]]], [[1]]).cpu()
    assert relative_difference(ours, theirs) < 1e-2


def test_weights_without_a_rater_cannot_rate(make_network):
    """Asking them anyway says why."""
    engine = Engine(make_network(), "cpu")
    with pytest.raises(ValueError, match="without a rater"):
        engine.rate(engine.encode(torch.rand(16, 16, 16)), torch.zeros(16, 16, 16))


def test_a_rating_is_the_raters_share():
    """Read back from its own tensors the network still rates: 0..1, as the plain rater, and by the mask."""
    torch.manual_seed(0)
    weights = Network(Shape(8, (1, 1, 1), 16, True, (8, 16), rater=True)).state_dict()
    plain, engine = build_network(weights), Engine(build_network(weights), "cpu")
    image, logits = torch.rand(16, 16, 16), torch.randn(16, 16, 16)
    with torch.inference_mode():
        low = plain.encode(image[None, None]).low
        probability = torch.nn.functional.avg_pool3d(logits.sigmoid()[None, None], 2)
        expected = plain.point_head.rater(low, probability).sigmoid().item()
    embedding = engine.encode(image)
    assert engine.rate(embedding, logits) == pytest.approx(expected, abs=1e-5)
    assert engine.rate(embedding, -100 * torch.ones(16, 16, 16)) != pytest.approx(expected, abs=1e-5)
