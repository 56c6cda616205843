"""The Slicer extension as files: what CMake builds, what the catalogue reads, icons, requirements.

No Slicer is needed: a stand-in for its CMake package, two functions that put files where Slicer's put them,
shows that the extension configures and that what it builds can be imported.
"""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from Testing.lib.test_packaging import pyproject  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "GSMedSegLib"
MODULE = ROOT / "GSMedSeg"
ICONS = MODULE / "Resources" / "Icons"

NOT_SHIPPED = {"CMakeLists.txt", "__pycache__", ".DS_Store"}
SIDE_PX = {"GSMedSeg": 128} | dict.fromkeys(
    ("Accept", "AddBackground", "AddForeground", "Box", "Clear", "Hint", "Redo", "Undo"), 32
)

# Source: slicer-extension-catalog-entry-schema-v1.0.1.json of Slicer; no other field is allowed.
REQUIRED_FIELDS = {"$schema", "category", "scm_url"}
KNOWN_FIELDS = REQUIRED_FIELDS | {
    "build_dependencies",
    "build_subdirectory",
    "enabled",
    "scm_revision",
    "scm_type",
    "tier",
}

# As Slicer's macro of that name: a file that is not there is an error, WITH_SUBDIR keeps the folder's name.
STAND_IN = """
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME missing, or unknown: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  set(built "${CMAKE_BINARY_DIR}/built")
  if(MY_WITH_SUBDIR)
    get_filename_component(folder "${CMAKE_CURRENT_SOURCE_DIR}" NAME)
    set(built "${built}/${folder}")
  endif()
  foreach(file IN LISTS MY_SCRIPTS MY_RESOURCES)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: no file ${file}")
    endif()
    configure_file("${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${built}/${file}" COPYONLY)
  endforeach()
  file(APPEND "${CMAKE_BINARY_DIR}/told" "module ${MY_NAME}\\n")
endfunction()
function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "" ${ARGN})
  file(APPEND "${CMAKE_BINARY_DIR}/told" "unittest ${MY_SCRIPT}\\n")
endfunction()
set(BUILD_TESTING ON)
"""


def cmake_list(folder: Path, name: str) -> list[str]:
    """The entries of a list that a folder's CMakeLists.txt sets."""
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"^set\({name}\s(.*?)\)", text, re.M | re.S)
    assert found, f"{folder.name}/CMakeLists.txt does not set {name}"
    return found[1].split()


def cmake_text(name: str) -> str:
    """A quoted value of the extension's CMakeLists.txt, found as the catalogue's checks find it."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf'^set\({name} "([^"$]+)"\)$', text, re.M)
    assert found, f"CMakeLists.txt does not set {name} to plain text on one line"
    return found[1]


def files_in(folder: Path) -> set[str]:
    """What a folder ships, by path within it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and NOT_SHIPPED.isdisjoint(path.relative_to(folder).parts)
    }


@pytest.mark.parametrize("folder", [MODULE, LIBRARY], ids=lambda folder: folder.name)
def test_cmake_names_each_file_once_and_in_order(folder: Path):
    scripts = cmake_list(folder, "MODULE_PYTHON_SCRIPTS")
    resources = cmake_list(folder, "MODULE_PYTHON_RESOURCES")
    there = files_in(folder)
    missing, gone = there - {*scripts, *resources}, {*scripts, *resources} - there
    assert not missing, f"add {sorted(missing)} to {folder.name}/CMakeLists.txt"
    assert not gone, f"{folder.name}/CMakeLists.txt names {sorted(gone)}, which is not there"
    assert {Path(name).suffix for name in scripts} == {".py"}
    assert ".py" not in {Path(name).suffix for name in resources}
    assert len({*scripts, *resources}) == len(scripts) + len(resources)
    assert scripts == sorted(scripts)
    assert resources == sorted(resources)


def test_slicer_finds_one_module():
    """It takes every Python file directly in a module path for a module."""
    assert [path.name for path in MODULE.glob("*.py")] == ["GSMedSeg.py"]
    assert not list(ROOT.glob("*.py"))


def test_the_library_is_there_once():
    """A copy inside the module's folder would be imported in place of the real one."""
    assert not (MODULE / "GSMedSegLib").exists()
    assert [path.parent for path in ROOT.glob("*/*/__init__.py") if path.parent.name == "GSMedSegLib"] == []


def test_the_extension_configures(tmp_path: Path):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake on this machine")
    slicer, project = tmp_path / "slicer", tmp_path / "project"
    slicer.mkdir()
    (slicer / "use.cmake").write_text(STAND_IN, encoding="utf-8")
    for name in ("generate", "cpack"):
        told = f'file(APPEND "${{CMAKE_BINARY_DIR}}/told" "{name} ${{EXTENSION_HOMEPAGE}}\\n")\n'
        (slicer / f"{name}.cmake").write_text(told, encoding="utf-8")
    (slicer / "SlicerConfig.cmake").write_text(
        "set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)\n"
        "set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/generate.cmake)\n"
        "set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/cpack.cmake)\n",
        encoding="utf-8",
    )
    # Around the extension, so that its project() looks for no compiler: there is nothing to compile.
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(StandIn LANGUAGES NONE)\n"
        "macro(project name)\n  _project(${name} LANGUAGES NONE)\nendmacro()\n"
        f'add_subdirectory("{ROOT.as_posix()}" extension)\n',
        encoding="utf-8",
    )
    build = tmp_path / "build"
    run = subprocess.run(
        [cmake, "-S", project, "-B", build, f"-DSlicer_DIR={slicer}", "-Wno-dev", "-Werror=dev"],
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    homepage = cmake_text("EXTENSION_HOMEPAGE")
    assert (build / "told").read_text(encoding="utf-8").splitlines() == [
        "module GSMedSeg",
        "unittest GSMedSeg.py",
        "module GSMedSegLib",
        f"generate {homepage}",
        f"cpack {homepage}",
    ]
    built = build / "built"
    assert files_in(built) == files_in(MODULE) | {f"GSMedSegLib/{name}" for name in files_in(LIBRARY)}
    assert [path.name for path in built.glob("*.py")] == ["GSMedSeg.py"]
    code = "import GSMedSegLib.model_store as store; print(store.resolve('compact'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=built, check=True, capture_output=True, encoding="utf-8"
    )
    assert Path(run.stdout.strip()).is_relative_to(built)


def test_the_catalogue_entry_has_what_its_schema_asks_for():
    entry = json.loads((ROOT / "GSMedSeg.json").read_text(encoding="utf-8"))
    assert REQUIRED_FIELDS <= set(entry) <= KNOWN_FIELDS
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
        r"slicer-extension-catalog-entry-schema-v1\.0\.\d\.json#",
        entry["$schema"],
    )
    assert entry["category"] == "Segmentation"
    assert entry["scm_revision"]
    assert entry["tier"] in (1, 3, 5)
    depends = cmake_text("EXTENSION_DEPENDS")
    assert entry["build_dependencies"] == ([] if depends == "NA" else depends.split())


def test_one_address_is_given_everywhere():
    """The page, the repository, the pictures' raw addresses, and what people are asked to cite."""
    homepage = cmake_text("EXTENSION_HOMEPAGE")
    entry = json.loads((ROOT / "GSMedSeg.json").read_text(encoding="utf-8"))
    assert entry["scm_url"] == f"{homepage}.git"
    assert f'repository-code: "{homepage}"' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    raw = homepage.replace("//github.com/", "//raw.githubusercontent.com/") + f"/{entry['scm_revision']}/"
    pictures = [cmake_text("EXTENSION_ICONURL"), *cmake_text("EXTENSION_SCREENSHOTURLS").split()]
    for url in pictures:
        assert url.startswith(raw)
        assert (ROOT / url.removeprefix(raw)).is_file()
    assert pictures[0].endswith("/GSMedSeg/Resources/Icons/GSMedSeg.png")


def test_the_licence_has_the_name_the_catalogue_looks_for():
    assert (ROOT / "LICENSE.txt").read_text(encoding="utf-8").strip()


def test_there_is_no_icon_without_a_size():
    assert {path.stem for path in ICONS.iterdir()} == set(SIDE_PX)


@pytest.mark.parametrize("name", SIDE_PX)
def test_icons_show_on_light_and_dark(name: str):
    """Square, transparent at the corners, and most of what is drawn differs from white and from dark grey."""
    with Image.open(ICONS / f"{name}.png") as icon:
        assert (icon.format, icon.mode, icon.size) == ("PNG", "RGBA", (SIDE_PX[name],) * 2)
        raw = icon.tobytes()
    pixels = [tuple(raw[start : start + 4]) for start in range(0, len(raw), 4)]
    assert pixels[0][3] == pixels[-1][3] == 0
    drawn = [pixel[:3] for pixel in pixels if pixel[3] > 128]
    assert len(drawn) > 0.08 * len(pixels)
    for ground in ((255, 255, 255), (45, 45, 48)):
        seen = [pixel for pixel in drawn if max(abs(a - b) for a, b in zip(pixel, ground)) > 60]
        assert len(seen) > 0.5 * len(drawn)


def test_one_list_of_requirements(pyproject: dict):  # noqa: F811 (the fixture)
    """The dependencies come from the file that 3D Slicer reads, and from nowhere else."""
    assert pyproject["project"]["dynamic"] == ["dependencies"]
    assert "dependencies" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["dependencies"] == {
        "file": ["GSMedSegLib/requirements.txt"]
    }


def test_requirements_are_as_simple_as_their_readers():
    """Comments on lines of their own (`slicer.packaging`), lower bounds only (the doctor), in order."""
    lines = (LIBRARY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in required if not re.fullmatch(r"[A-Za-z][\w-]*>=\d+(\.\d+)*", line)] == []
    assert required == sorted(required, key=str.lower)


def test_the_package_metadata_says_the_same(tmp_path: Path):
    """As the build backend writes it: every requirement, without the comments."""
    for name in ("pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "GSMedSegLib").mkdir()
    for name in ("__init__.py", "requirements.txt"):
        shutil.copy(LIBRARY / name, tmp_path / "GSMedSegLib")
    pytest.importorskip("setuptools", minversion="77")
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as f; print(f('out'))"
    run = subprocess.run(
        [sys.executable, "-c", f"import os; os.mkdir('out'); {code}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    metadata = tmp_path / "out" / run.stdout.split()[-1] / "METADATA"
    stated = email.message_from_string(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist")
    lines = (LIBRARY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert stated is not None
    assert [r for r in stated if "extra ==" not in r] == [x for x in lines if x and not x.startswith("#")]
