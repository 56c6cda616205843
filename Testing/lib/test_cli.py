"""What all commands share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from GSMedSegLib import cli
from GSMedSegLib.cli import main
from GSMedSegLib.prompt_arguments import join_negative


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["segment", "--help"], ["predict", "-h"], ["weights", "fetch", "-h"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith("usage: gsmedseg")
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gsmedseg {cli.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND; see gsmedseg --help"),
        (["weights"], "ACTION; see gsmedseg weights --help"),
        (["fly"], "invalid choice: 'fly'"),
        (["segment", "image.nii"], "-o/--output; see gsmedseg segment --help"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_demo_gets_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: list[Path] = []
    monkeypatch.setattr("GSMedSegLib.demo.run_demo", folders.append)
    assert main(["demo"]) == 0
    assert main(["demo", str(tmp_path)]) == 0
    assert folders == [Path("build/demo"), tmp_path]


ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.mark.parametrize("arguments", [["--version"], ["weights", "list"], ["segment", "--help"]])
def test_short_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"""if True:
        import sys
        from GSMedSegLib.cli import main
        try:
            main({arguments})
        except SystemExit:
            pass
        heavy = {{"torch", "monai", "SimpleITK", "scipy"}} & set(sys.modules)
        sys.exit(f"loaded {{heavy}}" if heavy else 0)
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_broken_package_is_no_traceback(tmp_path: Path) -> None:
    """As a NumPy whose compiled part is missing."""
    (tmp_path / "numpy.py").write_text("raise ImportError('no module numpy.core')\n", encoding="utf-8")
    code = "import sys; from GSMedSegLib.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["segment", "x.nii.gz", "-o", "y.nii.gz", "--fg", "1,2,3"]
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "gsmedseg: error: a package is missing or broken (no module numpy.core); "
        "gsmedseg doctor says what to do"
    ]


def test_control_c_while_commands_are_loaded() -> None:
    code = """if True:
        import sys
        class Impatient:
            def find_spec(self, name, path, target=None):
                if name.endswith("_command"):
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Impatient())
        from GSMedSegLib.cli import main
        sys.exit(main(["weights", "list"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 130
    assert done.stderr == "gsmedseg: stopped; what was already written is whole, nothing else was\n"


@pytest.mark.slow
def test_a_process_of_its_own_says_one_line_too(image: Path, weights: Path, tmp_path: Path) -> None:
    """No warning of a library comes between, whether it works or fails; names may be of any script."""
    command = [sys.executable, "-m", "GSMedSegLib.cli", "segment", str(image), "-o", str(tmp_path / "o.nrrd")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for given, code, lines in ((weights, 0, (1, 0)), (image, 2, (0, 1))):
        clicks = ["--object", "肝臓", "--fg", "12,10,9", "--weights", str(given)]
        done = subprocess.run(
            [*command, *clicks], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == code, done.stderr
        assert (done.stdout.count("\n"), done.stderr.count("\n")) == lines, done.stderr


def test_negative_numbers_are_no_options() -> None:
    given = ["--fg", "-10,5,3", "--bg=-1,2,3", "--box", "-.5,1,1,2,2,2", "--fg", "1,2,3", "-o", "-x"]
    joined = ["--fg=-10,5,3", "--bg=-1,2,3", "--box=-.5,1,1,2,2,2", "--fg", "1,2,3", "-o", "-x"]
    assert join_negative(given) == joined
    assert join_negative(["--fg", "--bg", "-1,2,3"]) == ["--fg", "--bg=-1,2,3"]
