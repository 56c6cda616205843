"""MONAI's VISTA3D weights give MONAI's own answers; the additions do nothing until they are trained."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.vista3d import vista3d132

from GSMedSegLib.network import VISTA3D132, Network, Shape, build_network, shape_of
from GSMedSegLib.prompt_maps import Prompts

PLAIN = Shape(8, (1, 1, 2), 16)
FULL = Shape(8, (1, 1, 2), 16, True, (8, 16), detail=8)


def relative_difference(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def random_image(*size, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 1, *size, generator=generator)


def some_prompts():
    """Three objects with three clicks each, padding among them, every kind of label, corners and edges."""
    coords = torch.tensor(
        [
            [[3, 4, 5], [0, 0, 0], [15, 15, 15]],
            [[8, 1, 14], [2, 2, 9], [0, 0, 0]],
            [[15, 0, 7], [7, 7, 7], [6, 12, 3]],
        ]
    )
    labels = torch.tensor([[1, 0, 1], [3, 2, -1], [-1, 1, 0]])
    return Prompts(coords, labels)


@pytest.mark.parametrize(
    ("init_filters", "blocks_down", "width", "size"),
    [(8, (1, 1, 2), 16, (16, 16, 16)), (8, (1, 2), 24, (16, 18, 20)), (16, (1, 1, 1, 1), 16, (16, 24, 16))],
)
def test_monai_weights_give_monais_logits(make_monai, init_filters, blocks_down, width, size):
    """A whole VISTA3D state dict loads and decodes as in MONAI, for all click labels and several objects."""
    monai = make_monai(init_filters, blocks_down, width)
    image, prompts = random_image(*size), some_prompts()
    with torch.inference_mode():
        theirs = monai(image, point_coords=prompts.coords.clone(), point_labels=prompts.labels.clone())
        ours = build_network(monai.state_dict())(image, prompts)
    assert ours.shape == theirs.shape == (3, 1, *size)
    assert relative_difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_every_kind_of_click_agrees_with_monai(make_monai, label):
    """A single click of each label gives MONAI's logits, and the four kinds give four answers."""
    monai = make_monai()
    image, coords = random_image(16, 16, 16), torch.tensor([[[9, 2, 5]]])
    network = build_network(monai.state_dict())
    with torch.inference_mode():
        theirs = monai(image, point_coords=coords.clone(), point_labels=torch.tensor([[label]]))
        ours = network(image, Prompts(coords, torch.tensor([[label]])))
        other = network(image, Prompts(coords, torch.tensor([[(label + 1) % 4]])))
    assert relative_difference(ours, theirs) <= 1e-5
    assert relative_difference(other, theirs) > 1e-3


def test_the_public_shape_is_read_from_the_public_network():
    """`vista3d132`'s own tensors are recognised as its sizes, and are all that our network needs."""
    with torch.device("meta"):
        tensors = vista3d132().state_dict()
        ours = Network(VISTA3D132).state_dict()
    assert shape_of(tensors) == VISTA3D132
    assert {k: v.shape for k, v in ours.items()} == {k: tensors[k].shape for k in ours}
    rest = tensors.keys() - ours.keys()
    assert rest
    assert all(name.startswith(("class_head.", "image_encoder.up_layers_auto.")) for name in rest)


@pytest.mark.parametrize(
    "shape",
    [
        PLAIN,
        FULL,
        Shape(16, (1, 2, 2, 4), 32),
        Shape(8, (2, 1), 48, True),
        Shape(24, (1, 1, 2), 24, False, (8, 8, 16)),
        Shape(8, (1, 1, 2), 16, True, (8,), True, 24),
    ],
)
def test_shape_of_reads_every_size(shape):
    """What a network was made with is read back from its tensors."""
    with torch.device("meta"):
        assert shape_of(Network(shape).state_dict()) == shape


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        (Shape(8, (1,), 16), 2),
        (Shape(8, (1, 1, 1), 16), 4),
        (VISTA3D132, 16),
        (Shape(8, (1, 1), 16, True, (8,) * 4), 16),
    ],
)
def test_the_stride_is_the_largest_halving(shape, stride):
    """Levels of the encoder but the last halve; a mixer starts at half resolution."""
    assert shape.stride == stride


def test_new_additions_are_zero():
    """Click features and the outputs of mixer and full resolution start at nothing."""
    head = Network(FULL).point_head
    mixer = head.mixer
    for layer in (head.click_features, mixer.to_features, mixer.to_logits, mixer.detail.to_logits):
        assert all(not parameter.any() for parameter in layer.parameters())
    assert head.mixer.to_logits.bias is not None


def test_new_additions_change_no_answer(make_monai):
    """MONAI's weights in a network with untrained additions: the same logits, but for rounding."""
    tensors = make_monai().state_dict()
    plain, full = build_network(tensors), Network(FULL).eval()
    full.load_state_dict({**full.state_dict(), **plain.state_dict()})
    image, prompts = random_image(16, 16, 16), some_prompts()
    with torch.inference_mode():
        assert relative_difference(full(image, prompts), plain(image, prompts)) <= 1e-6


def test_trained_additions_change_the_answer(make_network):
    """Once trained, the mixer sees the previous mask, the click features the image under the click."""
    network, image, prompts = make_network(additions=True), random_image(16, 16, 16), some_prompts()
    previous = torch.full((3, 1, 16, 16, 16), -5.0)
    previous[:, :, 4:9] = 5
    with_previous = Prompts(prompts.coords, prompts.labels, previous)
    assert relative_difference(network(image, with_previous), network(image, prompts)) > 1e-3
    encoded = network.encode(image)
    before = network.point_head.decode(encoded, prompts)[0]
    network.point_head.click_features.weight.zero_()
    assert relative_difference(network.point_head.decode(encoded, prompts)[0], before) > 1e-3


@pytest.mark.parametrize("detail", [0, 8])
def test_the_previous_mask_is_seen_at_full_resolution(make_network, detail):
    """Two masks that are the same on average over 2³ voxels are told apart where there is a step to them."""
    network = make_network(additions=True, detail=detail)
    image, prompts = random_image(16, 16, 16), some_prompts()
    first = torch.full((3, 1, 16, 16, 16), -5.0)
    first[:, :, 4:10:2] = 5
    answers = [
        network(image, Prompts(prompts.coords, prompts.labels, mask)) for mask in (first, first.roll(1, 2))
    ]
    assert (relative_difference(*answers) > 1e-3) == bool(detail)


def test_there_is_no_detail_without_a_mixer():
    """Its features are what full resolution is added to."""
    with pytest.raises(ValueError, match="the step to full resolution follows a mixer"):
        Shape(8, (1, 1, 2), 16, detail=8)


def test_objects_of_a_batch_are_those_of_each_image_alone(make_network):
    """`owner` says which ROI an object lies in; nothing leaks from one to another."""
    network, images = make_network(additions=True), random_image(16, 16, 16, batch=2)
    prompts = some_prompts()
    owner = torch.tensor([1, 0, 1])
    together = network(images, Prompts(prompts.coords, prompts.labels, owner=owner))
    for row, image in enumerate(owner.tolist()):
        alone = network(
            images[image : image + 1], Prompts(prompts.coords[row, None], prompts.labels[row, None])
        )
        assert relative_difference(together[row], alone[0]) <= 1e-5


def test_build_network_is_ready_for_inference(make_monai):
    """fp16 weights become float32; nothing asks for gradients."""
    network = build_network({k: v.half() for k, v in make_monai().state_dict().items()})
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in network.parameters())


def test_a_foreign_state_dict_is_named_as_such():
    """No VISTA3D tensors at all: the message says what was looked for and what to do."""
    with pytest.raises(ValueError, match=r"VISTA3D network .*1 tensors, none named .* give a VISTA3D"):
        build_network({"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="VISTA3D"):
        build_network({})


def test_missing_tensors_are_named(make_monai):
    """A state dict with a hole names it."""
    tensors = make_monai().state_dict()
    del tensors["point_head.supported_embed.weight"]
    with pytest.raises(ValueError, match=r"1 tensors missing \(point_head.supported_embed.weight\), 0"):
        build_network(tensors)


def test_unknown_tensors_are_named(make_monai):
    """A tensor we have no place for is not dropped silently."""
    tensors = {**make_monai().state_dict(), "point_head.surprise": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"0 tensors missing \(\), 1 unknown \(point_head.surprise\)"):
        build_network(tensors)


def test_wrong_shapes_are_named(make_monai):
    """The tensor, its shape and the wanted one are told."""
    name = "point_head.zeroshot_embed.weight"
    tensors = {**make_monai().state_dict(), name: torch.zeros(1, 17)}
    with pytest.raises(ValueError, match=rf"{name} should be \(1, 16\) and is \(1, 17\)"):
        build_network(tensors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("point_head.mask_tokens.weight", torch.zeros(16)),
        ("point_head.mask_tokens.weight", torch.zeros(1, 12)),
        ("point_head.mask_tokens.weight", torch.zeros(1, 0)),
        ("image_encoder.encoder.conv_init.weight", torch.zeros(())),
        ("image_encoder.encoder.conv_init.weight", torch.zeros(0, 1, 3, 3, 3)),
        ("image_encoder.encoder.layers.3.blocks.1.conv1.conv.weight", torch.zeros(1)),
        ("image_encoder.encoder.layers.7.blocks.0.conv1.conv.weight", torch.zeros(1)),
        ("image_encoder.encoder.layers.999999999999.blocks.0.conv1.conv.weight", torch.zeros(1)),
        ("image_encoder.encoder.layers.2.blocks.999999999999.conv1.conv.weight", torch.zeros(1)),
        ("point_head.mixer.blocks_down.0.surprise", torch.zeros(1)),
        ("point_head.mixer.blocks_down.0.0.norm1.weight", torch.zeros(())),
        ("point_head.mixer.detail.norm_out.weight", torch.zeros(())),
        ("point_head.mixer.detail.norm_out.weight", torch.zeros(8)),
    ],
)
def test_tensors_that_contradict_the_sizes_are_refused(make_monai, name, value):
    """A hostile or damaged state dict ends in a ValueError about the checkpoint, whatever its sizes claim."""
    with pytest.raises(ValueError, match=r"VISTA3D|wrong shape"):
        build_network({**make_monai().state_dict(), name: value})
