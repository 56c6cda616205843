"""The protocol on validation cases, and what is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from GSMedSegLib.case_source import find_sources
from GSMedSegLib.challenge import CaseResult, Round, failed_case
from GSMedSegLib.npz import Case, write_case
from GSMedSegLib.sharding import Ranks
from Training.config import Config, Sampling, Source, Validation
from Training.model_card import write_model_card
from Training.validation import draw_curves, summary, table, validate


def result(name, *dices):
    rounds = tuple(Round(0.0, (dice,), (dice / 2,)) for dice in dices)
    return CaseResult(name, "CT", ("1",), None, rounds)


def curve(start):
    return summary([result("a", *(start + 0.1 * n for n in range(5)))])


def test_the_summary_by_hand():
    """Means over the cases per click; the areas are trapezia over four steps; failed cases count with 0."""
    found = summary(
        [result("b", 0.2, 0.4, 0.4, 0.4, 0.6), failed_case("a", "CT", (), False, "cannot be read")]
    )
    assert found["dice"] == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.3])
    assert found["nsd"] == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.15])
    assert found["dsc_auc"] == pytest.approx(0.8)
    assert found["nsd_auc"] == pytest.approx(0.4)
    assert found["cases"] == pytest.approx({"a": 0, "b": 1.6})
    assert found["failed"] == {"a": "cannot be read"}


def test_validation_plays_the_protocol(make_network, tmp_path):
    """Every case, five clicks; the network is left as it was; a broken case is named and counts with 0."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[4:12, 4:12, 4:12] = 1
        image = (labels * 150 + rng.integers(0, 50, labels.shape)).astype(np.uint8)
        write_case(tmp_path / f"{name}.npz", Case(name, image, (1.0, 1.0, 1.0), labels))
    (tmp_path / "c.npz").write_bytes(b"nothing")
    network = make_network(additions=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = Config(sampling=Sampling(roi=16), validation=Validation(path=str(tmp_path)))
    seen = []
    found = validate(
        network,
        find_sources(tmp_path),
        config,
        {"roi": "16"},
        "cpu",
        Ranks(),
        done=lambda s: seen.append(s.name),
    )
    assert seen == ["a", "b", "c"]
    assert found["cases"].keys() == {"a", "b", "c"}
    assert found["failed"].keys() == {"c"}
    assert len(found["dice"]) == 5
    assert found["nsd"] == [0] * 5, "surfaces were not asked for"
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_table_by_hand():
    """Areas first, then Dice click by click."""
    lines = table(curve(0.1), curve(0.5)).splitlines()
    assert lines[2] == "| before | 1.200 | 0.600 | 0.100 | 0.200 | 0.300 | 0.400 | 0.500 |"
    assert lines[3] == "| after | 2.800 | 1.400 | 0.500 | 0.600 | 0.700 | 0.800 | 0.900 |"
    assert len({line.count("|") for line in lines}) == 1


def test_the_curves_are_a_picture(tmp_path):
    """A PNG with something on it."""
    draw_curves(tmp_path / "clicks.png", curve(0.1), curve(0.5))
    with Image.open(tmp_path / "clicks.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 800
    assert 0.01 < (pixels < 128).mean() < 0.5


@pytest.mark.parametrize(
    ("init", "origin", "said"),
    [
        ("", "", "random weights"),
        ("compact", "compact", "Apache-2.0"),
        ("vista3d", "vista3d", "NVIDIA Open Model License"),
        (
            "/patients/mine.safetensors",
            "vista3d",
            "Started from `mine.safetensors`, which was made from `vista3d`, whose terms hold for these "
            "weights too: NVIDIA Open Model License",
        ),
        ("/patients/mine.safetensors", "x.pt", "Started from `mine.safetensors`; what its terms ask for"),
    ],
)
def test_the_model_card_says_where_weights_come_from(tmp_path, init, origin, said):
    """Origin and terms, data without names of cases, scores, settings."""
    config = Config(
        init=init,
        output="/patients/Smith",
        root="/patients",
        data=(Source(path="/patients/liver"),),
        validation=Validation(path="/patients/others"),
    )
    measured = (curve(0.1), curve(0.5))
    write_model_card(tmp_path / "card.md", config, origin, 12, [(config.data[0], [])], [], measured)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert said in card
    assert "12 steps" in card
    assert "0 cases of `liver`" in card
    assert "/patients" not in card
    assert "| after | 2.800 |" in card
    assert "not a medical device" in card
    assert "failed" not in card


def test_a_card_says_that_cases_failed(tmp_path):
    """They count as 0, which would look like what the training brought."""
    bad = summary([result("a", *[0.5] * 5), failed_case("b", "CT", (), False, "the share is away")])
    write_model_card(
        tmp_path / "card.md", Config(), "compact", 3, [(Source("scenes"), [])], [], (bad, curve(0))
    )
    assert "Of them 1 failed, before or after, and count as 0" in (tmp_path / "card.md").read_text("utf-8")


def test_a_card_without_validation_says_so(tmp_path):
    write_model_card(tmp_path / "card.md", Config(), "compact", 3, [(Source("scenes"), [])], [], None)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "Not measured" in card
    assert "invented scenes, weight 1" in card
