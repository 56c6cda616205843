"""Settings are read, overridden, and refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

import Training
from Training.config import Config, read_config


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
    """Integers, floats, lists, strings, booleans; a whole number will do for a float."""
    config = read_config(
        config_file('steps = 7\nlearning_rate = 1\nmixer = [8, 16]\noutput = "x y"\nbf16 = false\n')
    )
    assert config == Config(steps=7, learning_rate=1.0, mixer=(8, 16), output="x y", bf16=False)
    assert type(config.learning_rate) is float


def test_the_command_line_wins(config_file):
    """`--key value`, with dashes or underscores, any TOML value; what is no TOML is text."""
    overrides = ["--steps", "9", "--save-every-s", "2.5", "--output", "build/a", "--blocks_down", "[1, 2]"]
    config = read_config(config_file("steps = 7\nseed = 3\n"), [*overrides, "--bf16", "false", "--init", ""])
    assert config == Config(
        steps=9, seed=3, save_every_s=2.5, output="build/a", blocks_down=(1, 2), bf16=False, init=""
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("stpes = 7", [], "unknown setting 'stpes'; known are data, output"),
        ("", ["--stpes", "7"], "unknown setting 'stpes'"),
        ("steps = 'many'", [], "steps should be of type int, got 'many'"),
        ("steps = 1.5", [], "steps should be of type int, got 1.5"),
        ("steps = true", [], "steps should be of type int, got True"),
        ("bf16 = 1", [], "bf16 should be of type bool, got 1"),
        ("", ["--bf16", "False"], "bf16 should be of type bool, got 'False'"),
        ("learning_rate = '1e-3'", [], "learning_rate should be of type float"),
        ("mixer = 8", [], "mixer should be of type tuple, got 8"),
        ("data = 3", [], "data should be of type str, got 3"),
        ("steps = = 3", [], "is not valid TOML"),
        ("", ["--steps"], "expected pairs of `--key value`.*--steps"),
        ("", ["--steps=3"], "expected pairs of `--key value`.*--steps=3"),
    ],
)
def test_errors_teach(config_file, text, overrides, message):
    """The setting, what it should be and what came."""
    with pytest.raises(ValueError, match=message):
        read_config(config_file(text), overrides)


def test_a_missing_file_is_named(tmp_path):
    """With the place where examples lie."""
    with pytest.raises(ValueError, match=r"gone.toml does not exist; see Training/configs"):
        read_config(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(Training.__file__).parent / "configs").glob("*.toml")), ids=lambda p: p.name
)
def test_the_configurations_we_ship(path):
    """Each is read, trains for some steps, and draws from shares that add up to 1."""
    config = read_config(path)
    assert config.steps > 0
    assert config.real + config.maps + config.invented == pytest.approx(1)
    assert sum(config.more_clicks) == pytest.approx(1)
