"""The network that a run starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from GSMedSegLib.checkpoint import read_checkpoint
from GSMedSegLib.model_store import resolve
from GSMedSegLib.network import Network, Shape, build_network
from Training.config import Config, NewNetwork

FIRST_GUESS = -2.0
"""Logit that a new network gives to every voxel: most are background."""


def start_network(config: Config) -> tuple[Network, dict[str, str], Config]:
    """The network to train, what its weights say about themselves, and the settings that suit it.

    Weights without the mixer and the click features gain them, at zero, where `config.additions` asks for it:
    they answer as before. A mixer that has learnt nothing yet cannot stand in for the head, so `quick_rounds`
    and `head_share` are set aside then.

    Raises:
        ValueError: unknown or broken weights, a ROI that does not fit the network, or boxes that it cannot
            be shown.
    """
    if not config.init:
        network, metadata = new_network(config.network), {"intensity": "view"}
    else:
        checkpoint = read_checkpoint(resolve(config.init), check_finite=True)
        network, metadata = build_network(checkpoint.tensors), dict(checkpoint.metadata)
        untrained = not network.shape.mixer
        if config.additions:
            network = with_additions(network, config.network)
        if untrained:
            config = replace(
                config,
                sampling=replace(config.sampling, quick_rounds=False),
                optimisation=replace(config.optimisation, head_share=1.0),
            )
    if config.sampling.intensity == "auto":
        intensity = metadata.get("intensity", "volume")
        config = replace(config, sampling=replace(config.sampling, intensity=intensity))
    roi, stride = config.sampling.roi, network.shape.stride
    if roi % stride or roi < stride:
        raise ValueError(f"roi: expected a multiple of {stride} voxels for these weights, got {roi}")
    if not network.shape.mixer and any(stage.get("box") for stage in config.sampling.stages):
        raise ValueError("stages: these weights cannot be shown a box; set additions = true, or take box out")
    return network.train().requires_grad_(True), metadata, config


def new_network(shape: NewNetwork) -> Network:
    """A network with random weights, mixer, click features and rater.

    Raises:
        ValueError: a shape without mixer, or that no network has.
    """
    if not shape.mixer:
        raise ValueError("mixer: a network that starts from nothing needs one, see docs/training.md")
    network = Network(
        Shape(shape.init_filters, shape.blocks_down, shape.width, True, shape.mixer, True, shape.detail)
    )
    assert network.point_head.mixer is not None
    last = network.point_head.mixer.to_logits
    last.reset_parameters()
    assert last.bias is not None
    torch.nn.init.constant_(last.bias, FIRST_GUESS)
    return network


def with_additions(network: Network, added: NewNetwork) -> Network:
    """The same network with click features, mixer and its step to full resolution; what it has, it keeps."""
    now = network.shape
    shape = replace(
        now, click_features=True, mixer=now.mixer or added.mixer, detail=now.detail or added.detail
    )
    if shape == network.shape:
        return network
    larger = Network(shape)
    larger.load_state_dict({**larger.state_dict(), **network.state_dict()})
    return larger
