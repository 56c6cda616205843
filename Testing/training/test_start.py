"""The network a run starts from: new, given, or given and added to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from GSMedSegLib.checkpoint import read_checkpoint, write_safetensors
from GSMedSegLib.prompt_maps import Prompts
from Training.config import Config, NewNetwork, Optimisation, Sampling
from Training.start import FIRST_GUESS, new_network, start_network, with_additions

TINY = NewNetwork(8, (1, 1, 2), 16, (8, 16))
IMAGE = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = Prompts(torch.tensor([[[8, 8, 8], [2, 3, 4]]]), torch.tensor([[1, 0]]))


@pytest.fixture
def written(tmp_path, make_network):
    """Writes a tiny network's weights and returns their path."""

    def write(additions, **metadata):
        path = tmp_path / "weights.safetensors"
        write_safetensors(path, make_network(additions=additions).state_dict(), metadata)
        return str(path)

    return write


def config(init, **sampling):
    return Config(init=init, network=TINY, sampling=Sampling(roi=16, **sampling))


def test_a_new_network_guesses_background():
    """Before the first step nearly every voxel is background, and the additions are there."""
    torch.manual_seed(0)
    network, _, settled = start_network(config(""))
    assert network.point_head.mixer.to_logits.bias.item() == FIRST_GUESS
    assert network.shape.click_features
    assert network.shape.rater
    assert network.training
    assert settled.sampling.intensity == "view"
    with torch.no_grad():
        logits, coarse = network.point_head.decode(network.encode(IMAGE), PROMPTS)
    assert coarse.mean() < -1
    assert torch.isfinite(logits).all()
    with pytest.raises(ValueError, match="needs one"):
        new_network(replace(TINY, mixer=()))


@pytest.mark.parametrize("additions", [True, False])
def test_additions_change_nothing_at_first(written, additions):
    """A plain VISTA3D gains click features, mixer and detail and answers the same, but for rounding."""
    init = written(additions=False)
    plain, _, _ = start_network(replace(config(init), additions=False))
    network, _, settled = start_network(replace(config(init), additions=additions))
    assert (network.point_head.mixer is not None) == additions
    assert (network.shape.detail > 0) == additions
    with torch.no_grad():
        wanted, found = (net(IMAGE, PROMPTS) for net in (plain, network))
    assert torch.allclose(wanted, found, atol=1e-6)
    assert not settled.sampling.quick_rounds
    assert settled.optimisation.head_share == 1
    assert all(p.requires_grad for p in network.parameters())


def test_weights_with_additions_start_as_they_are(written):
    """Shape, weights and settings; the file is not touched."""
    init = written(additions=True, roi="16", intensity="view")
    wanted = read_checkpoint(init).tensors
    start = replace(config(init), optimisation=Optimisation(head_share=0.3))
    network, metadata, settled = start_network(start)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in network.state_dict().items())
    assert metadata["roi"] == "16"
    assert settled.sampling.intensity == "view"
    assert settled.sampling.quick_rounds
    assert settled.optimisation.head_share == 0.3
    assert with_additions(network, replace(TINY, mixer=(4, 8), detail=4)) is network


def test_intensities_are_those_of_the_weights(written):
    """A public checkpoint says nothing: the volume's percentiles, as in the seed. Or as the settings say."""
    init = written(additions=False)
    assert start_network(config(init))[2].sampling.intensity == "volume"
    assert start_network(config(init, intensity="view"))[2].sampling.intensity == "view"


def test_what_does_not_fit_is_refused(written, tmp_path):
    """A ROI that the network cannot take; weights that are not there."""
    init = written(additions=True)
    with pytest.raises(ValueError, match=r"roi: expected a multiple of \d+ voxels for these weights, got 18"):
        start_network(replace(config(init), sampling=Sampling(roi=18)))
    boxes = Sampling(roi=16, stages=({"box": 1.0},))
    plain = replace(config(written(additions=False)), sampling=boxes)
    with pytest.raises(ValueError, match="cannot be shown a box; set additions = true, or take box out"):
        start_network(replace(plain, additions=False))
    start_network(plain)
    with pytest.raises(ValueError, match=r"there is no '.*none\.safetensors'"):
        start_network(config(str(tmp_path / "none.safetensors")))


@pytest.mark.slow
def test_the_large_network_trains_as_it_is(tmp_path):
    """MONAI's `vista3d132`, strictly loaded, with additions that change nothing."""
    from monai.networks.nets.vista3d import vista3d132

    torch.manual_seed(0)
    path = tmp_path / "vista.pt"
    torch.save(vista3d132(in_channels=1).state_dict(), path)
    network, _, settled = start_network(Config(init=str(path), sampling=Sampling(roi=32)))
    assert network.point_head.mixer is not None
    assert sum(p.numel() for p in network.parameters()) > 196e6
    assert settled.sampling.intensity == "volume"
    plain, _, _ = start_network(Config(init=str(path), additions=False, sampling=Sampling(roi=32)))
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(image, PROMPTS), plain(image, PROMPTS), atol=1e-5)
