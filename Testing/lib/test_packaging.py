"""What holds for the project as a whole: who imports whom, what is installed, what stands in its files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import GSMedSegLib

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "GSMedSegLib"
MODULES = sorted(LIBRARY.rglob("*.py"))

# A module imports from the lines above its own, and from the left in its own line.
LAYERS = """
    atomic cropped geometry itk_warnings machine memory labels plain_pickle prompts text_files
    nifti intensity npz dicom_series volume_io metrics simulation roi
    checkpoint download model_store prompt_maps network
    layers decoder engine torch_health memory_need doctor
    segment edits hint guided reference adaptive
    predictor
    picture challenge case_source case_segmenter pace sharding batch
    peers container report evaluation demo service mrml
    console prompt_arguments engine_options weights_command cases_command predict_command evaluate_command
    serve_command doctor_command
    web web_command
    cli
"""

NOT_IN_THE_LIBRARY = {"slicer", "qt", "ctk", "vtk", "Training", "Testing"}

WITH_SLICER = {"mrml", "web"}
"""Packages of the library that are built on Slicer's data model, which trame-slicer brings along."""

IMPORTED_AS = {"pillow": "PIL", "scikit-image": "skimage"}
"""Distributions whose package has another name (case and dashes aside)."""

TEXT_SUFFIXES = {
    "",
    ".cfg",
    ".cff",
    ".cmake",
    ".ini",
    ".json",
    ".md",
    ".py",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names imported anywhere in a file, in functions and under TYPE_CHECKING too."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def library_module(dotted: str) -> str | None:
    """The module of GSMedSegLib behind an imported name, following the package's own lazy names."""
    package, _, rest = dotted.partition(".")
    if package != "GSMedSegLib" or not rest:
        return None
    name = rest.split(".")[0]
    if (LIBRARY / name).is_dir() or (LIBRARY / f"{name}.py").exists():
        return name
    return GSMedSegLib._HOME_OF.get(name)


def project_files() -> Iterator[Path]:
    """Text files that belong to the project: not what was built, cached or trained."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] not in (".ci", ".github")
        made = not {"build", "dist", "runs", "__pycache__"}.isdisjoint(parts) or ".egg-info" in str(path)
        if not hidden and not made and path.is_file() and path.suffix in TEXT_SUFFIXES:
            yield path


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_the_library_imports_leftwards_only(path: Path):
    own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # its lazy names are for the user; test_importing_the_library_is_cheap watches it
    order = LAYERS.split()
    assert own in order, f"put {own} into LAYERS, to the right of all that it imports"
    for dotted in imports_of(path):
        imported = library_module(dotted)
        if imported not in (None, own):
            assert order.index(imported) < order.index(own), f"{own} imports {imported}, which is built on it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_the_library_is_headless_and_knows_no_trainer(path: Path):
    """But for what the Slicer module and the browser app share, which is built on Slicer's data model."""
    with_slicer = path.relative_to(LIBRARY).parts[0] in WITH_SLICER
    allowed = {"slicer", "vtk"} if with_slicer else set()
    assert (NOT_IN_THE_LIBRARY - allowed).isdisjoint(name.split(".")[0] for name in imports_of(path))


def test_importing_the_library_is_cheap():
    """A command that only prints its help waits for neither torch nor monai."""
    heavy = {"torch", "monai", "SimpleITK", "scipy"}
    code = f"import GSMedSegLib, sys; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    )
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize("package", ["service.background", "npz", "intensity"])
def test_what_slicers_python_loads_needs_numpy_alone(package: str):
    """Slicer ships neither torch nor scipy; its module brings no packages into Slicer's Python."""
    missing = ["torch", "monai", "scipy", "edt", "safetensors", "tqdm", "fastapi", "uvicorn", "PIL"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import GSMedSegLib.{package}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")


def test_every_public_name_can_be_had():
    assert set(GSMedSegLib.__all__) <= set(dir(GSMedSegLib))
    assert set(GSMedSegLib._HOME_OF) == set(GSMedSegLib.__all__) - {"__version__"}
    for name in GSMedSegLib.__all__:
        assert getattr(GSMedSegLib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clicks'"):
        GSMedSegLib.Clicks  # noqa: B018 - looking it up is the test


def test_the_version_is_said_once_and_the_same(pyproject: dict):
    version = GSMedSegLib.__version__
    assert pyproject["project"]["version"] == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(
        rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )


def test_what_the_library_imports_is_declared(pyproject: dict):
    """A package is a dependency, or belongs to an extra other than dev and train: users have neither."""
    project = pyproject["project"]
    extras = [e for name, e in project["optional-dependencies"].items() if name not in ("dev", "train")]
    core = (LIBRARY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = sum(extras, [line for line in core if line and not line.startswith("#")])
    names = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in required}
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names} | {"slicer", "vtk"}
    for path in MODULES:
        imported = {name.split(".")[0] for name in imports_of(path)}
        unknown = imported - declared - sys.stdlib_module_names - {"GSMedSegLib"}
        assert not unknown, f"{path.name} imports {unknown}, which pyproject.toml does not declare"


def test_cmake_lists_the_files_that_are_there():
    """Wherever CMake names Python files, all of the folder are named and none that is gone."""
    for path in [p for p in project_files() if p.name == "CMakeLists.txt"]:
        listed = set(re.findall(r"[\w/]+\.py\b", path.read_text(encoding="utf-8")))
        if listed:
            assert listed == {p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*.py")}


def test_no_file_names_somebodys_machine():
    """Folders of one machine, and package sources other than the user's own settings, work nowhere else."""
    machine = re.compile(r"(?<![\w.<])/(?:work|root|home/\w+|Users/\w+|mnt)/|[A-Z]:\\Users")
    source = re.compile(
        r"(?:index-url|find-links|trusted-host)\b|PIP_(?:EXTRA_)?INDEX|//[\w.-]+/(?:pypi|simple)/"
    )
    for path in set(project_files()) - {Path(__file__).resolve()}:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found = machine.search(line) or source.search(line)
            assert not found, f"{path.relative_to(ROOT)}:{number} names {found and found.group()}"
