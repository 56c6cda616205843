"""Settings are read, overridden, and refused with a reason."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

import Training
from Training import config as configuration
from Training.config import GROUPS, Config, Optimisation, Sampling, Source, as_table, read_config

CONFIGS = Path(Training.__file__).parent / "configs"


@pytest.fixture
def config_file(tmp_path):
    """Writes a configuration and returns its path."""

    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_an_empty_file_is_the_defaults(config_file):
    """Everything has a default."""
    assert read_config(config_file("")) == Config()


def test_values_of_every_type(config_file):
    """Tables, lists of tables, lists, text, numbers; a whole number will do for a float."""
    config = read_config(
        config_file(
            'output = "x y"\n[[data]]\npath = "cases"\nweight = 2\n[[data]]\nkind = "scenes"\n'
            "[sampling]\nroi = 32\nstages = [{ centre = 1, uniform = 0.5 }]\n"
            "[optimisation]\nrate_factors = { image_encoder = 0.1 }\ncompile = true\n"
        )
    )
    assert config.data == (Source(path="cases", weight=2.0), Source("scenes"))
    assert type(config.data[0].weight) is float
    assert config.sampling == Sampling(roi=32, stages=({"centre": 1.0, "uniform": 0.5},))
    assert config.optimisation == Optimisation(rate_factors={"image_encoder": 0.1}, compile=True)


def test_the_command_line_wins(config_file):
    """`--key value` without its group, dashes or underscores, any TOML value; what is no TOML is text."""
    overrides = [
        "--epochs",
        "9",
        "--save-every-s",
        "2.5",
        "--sampling.roi",
        "32",
        "--init",
        "",
        "--data",
        "my cases",
    ]
    config = read_config(
        config_file("seed = 3\n[optimisation]\nepochs = 7\nema = 0.5\n"),
        [*overrides, "--more_clicks", "[0.5, 0.5]", "--skip_broken", "true"],
    )
    assert config == Config(
        seed=3,
        save_every_s=2.5,
        init="",
        data=(Source(path="my cases"),),
        skip_broken=True,
        sampling=Sampling(roi=32, more_clicks=(0.5, 0.5)),
        optimisation=Optimisation(epochs=9, ema=0.5),
    )


def test_a_path_on_the_command_line_keeps_what_the_file_says_of_its_cases(config_file):
    """Their window above all: with it the weights are trained. Of several sources none is meant."""
    text = '[[data]]\npath = "old"\nwindow = [-160, 240]\n'
    assert read_config(config_file(text), ["--data", "new"]).data == (
        Source(path="new", window=(-160.0, 240.0)),
    )
    with_scenes = text + '[[data]]\nkind = "scenes"\n'
    assert read_config(config_file(with_scenes), ["--data", "new"]).data[0].window == (-160.0, 240.0)
    assert read_config(config_file(text + text), ["--data", "new"]).data == (Source(path="new"),)
    assert read_config(config_file("data = 3"), ["--data", "new"]).data == (Source(path="new"),)


@pytest.mark.parametrize("text", ["2024", "2024-05-01", "true"])
def test_a_name_may_look_like_a_number(config_file, text):
    assert read_config(config_file(""), ["--output", text]).output == text
    assert read_config(config_file(""), ["--output", f'"{text}"']).output == text


def test_every_setting_has_one_meaning():
    """No name in two groups, so the command line needs no groups."""
    groups = [getattr(Config(), group) for group in GROUPS]
    names = [f.name for group in groups for f in fields(group)] + [f.name for f in fields(Config)]
    once = {name for name in names if names.count(name) > 1}
    assert not once


def test_every_setting_is_described():
    """In the docstring of its class; the network's are those of `Shape`."""
    for kind in (configuration.Source, configuration.Validation, Sampling, Optimisation):
        described = kind.__doc__ or ""
        assert all(f.name in described for f in fields(kind)), kind


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("epochz = 7", [], "unknown setting 'epochz'; known are data, root"),
        ("", ["--epochz", "7"], "unknown setting 'epochz'"),
        ("[sampling]\nstages = 3", [], "sampling: stages should be of type list, got 3"),
        ("seed = 1.5", [], "seed should be of type int, got 1.5"),
        ("seed = true", [], "seed should be of type int, got True"),
        ("additions = 1", [], "additions should be of type bool, got 1"),
        ("", ["--additions", "False"], "additions should be of type bool, got 'False'"),
        ("", ["--learning_rate", "'1e-3'"], "learning_rate should be of type float"),
        ("[network]\nmixer = 8", [], "network: mixer should be of type list, got 8"),
        ("sampling = 3", [], "sampling should be a table, got 3"),
        ("", ["--epochs"], "expected pairs of `--key value`"),
        ("", ["epochs", "3"], "expected pairs of `--key value`"),
        ("seed = ", [], "is not valid TOML"),
        ("", ["--crop", "whole"], "crop: expected one of views, voxels; got 'whole'"),
        ("[sampling]\nstages = [{ middle = 1 }]", [], "stages: expected one of centre, edge_centre"),
        ("[sampling]\nstages = [{ centre = 0 }]", [], "stages needs at least one table"),
        ("[sampling]\nstages = []", [], "stages needs at least one table"),
        (
            "",
            ["--candidates", "2", "--objects", "3"],
            "candidates is 0 or at least objects, which is 3; got 2",
        ),
        ("", ["--candidates", "-1"], "candidates is 0 or at least objects"),
        ("", ["--more_clicks", "[0.0]"], "more_clicks are probabilities, not all 0"),
        ("", ["--precision", "fp8"], "precision: expected one of auto, fp32, bf16, fp16"),
        ("", ["--optimiser", "sgd"], "optimiser: expected one of adamw, muon; got 'sgd'"),
        ("", ["--cuts", "1.5"], "cuts is at least 0 and less than 1, got 1.5"),
        ("", ["--bent", "-0.1"], "bent is at least 0 and less than 1, got -0.1"),
        ("", ["--clip_norm", "-1"], "clip_norm is at least 0, got -1.0"),
        ("", ["--limit_cases", "-1"], "limit_cases is at least 0, got -1"),
        ("", ["--views", "0"], "views is greater than 0, got 0"),
        ("", ["--ema", "1.0"], "ema is at least 0 and less than 1"),
        ('[[data]]\nkind = "cases"', [], 'a source of kind "cases" has a path'),
        ('[[data]]\nkind = "scenes"\npath = "x"', [], 'a source of kind "scenes" has no path'),
        ('[[data]]\npath = "x"\nweight = 0', [], "the weight of a source is positive"),
        ('[[data]]\npath = "x"\nmembranes = true', [], 'source of maps; this one is of kind "cases"'),
    ],
)
def test_what_makes_no_sense_is_refused(config_file, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        read_config(config_file(text), overrides)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml does not exist; see Training/configs"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_we_ship_are_sound(path):
    """They read, and survive the way into a checkpoint."""
    config = read_config(path, ["--output", "elsewhere"])
    assert config.output == "elsewhere"
    assert as_table(config)["sampling"]["roi"] == config.sampling.roi


def test_the_seeds_recipe():
    """Its numbers, as its public code has them."""
    config = read_config(CONFIGS / "seed.toml")
    sampling, optimisation = config.sampling, config.optimisation
    assert (sampling.views, sampling.roi, sampling.objects) == (4, 128, 10)
    assert sampling.stages == ({"uniform": 1.0}, {"edge_centre": 1.0})
    assert sampling.special_labels == (23, 24, 25, 26, 27, 57, 128)
    assert (optimisation.learning_rate, optimisation.weight_decay) == (2e-5, 1e-5)
    assert replace(config, additions=False) == config
