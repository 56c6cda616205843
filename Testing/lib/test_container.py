"""Programs that answer a case through files: small Python scripts in place of containers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from GSMedSegLib import container
from GSMedSegLib.challenge import play
from GSMedSegLib.checkpoint import sha256_of
from GSMedSegLib.container import ContainerSegmenter
from GSMedSegLib.npz import Case, read_case
from GSMedSegLib.prompts import Box, Click

THRESHOLD = """
    import numpy as np
    from pathlib import Path
    (file,) = Path("inputs").iterdir()
    with np.load(file) as case:
        np.savez_compressed(Path("outputs") / file.name, segs=(case["imgs"] > 100).astype(np.float32))
"""
"""Float labels, as the challenge's own example has them."""

Write = Callable[[str], str]

posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups and signals are POSIX's")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temp folder, with nothing else in it; its name has a space, as users' have."""
    folder = tmp_path / "temp folder"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Write:
    """Writes a script and returns the command that runs it."""

    def write(source: str) -> str:
        file = tmp_path / "a script.py"
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return f'"{sys.executable}" "{file}"'

    return write


@pytest.fixture
def case() -> Case:
    """A bright cube in the dark, with a truth that nobody but the scorer may see."""
    truth = np.zeros((6, 7, 8), np.uint8)
    truth[2:5, 2:5, 3:6] = 1
    return Case("CT_cube 1", truth * 200, (2.0, 1.0, 0.5), truth=truth)


def ends(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process is gone, or is soon; a zombie waiting for its parent is gone."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, encoding="utf-8"
        ).stdout
        if state.strip()[:1] in ("", "Z"):
            return True
        time.sleep(0.02)
    return False


def test_labels_come_back(program: Write, case: Case, scratch: Path) -> None:
    """By the working folder; floats become whole numbers, and nothing is left behind."""
    labels = ContainerSegmenter(program(THRESHOLD), timeout_s=60).segment(case)
    np.testing.assert_array_equal(labels, case.truth)
    assert labels.dtype == np.uint8
    assert list(scratch.iterdir()) == []


def test_a_whole_case_is_played(program: Write, case: Case) -> None:
    """Six runs, each from files alone."""
    boxes = (Box((2, 2, 3), (4, 4, 5), 3),)
    result = play(ContainerSegmenter(program(THRESHOLD)), replace(case, boxes=boxes)).result
    assert (result.dice_auc, result.surface_dice_auc, result.errors) == (4, 4, ())


def test_folders_by_name(program: Write, case: Case, tmp_path: Path) -> None:
    """Docker's way: a word `FOLDER:/workspace/inputs/` with an absolute path in it, spaces and all."""
    command = program(f"""
        import os, sys, numpy as np
        from pathlib import Path
        inputs, outputs = (Path(word.removesuffix(":/there/")) for word in sys.argv[1:3])
        assert inputs.is_absolute() and outputs.is_absolute() and not list(outputs.iterdir())
        assert sys.argv[3:] == ["sh predict.sh", "{{other}}", "$HOME", "*"], sys.argv
        os.chdir(r"{tmp_path}")
        (file,) = inputs.iterdir()
        np.savez(outputs / file.name, segs=np.load(file)["imgs"] // 200)
    """)
    words = '{inputs}:/there/ {outputs}:/there/ "sh predict.sh" {other} $HOME *'
    np.testing.assert_array_equal(ContainerSegmenter(f"{command} {words}").segment(case), case.truth)


def test_what_the_program_gets(program: Write, case: Case, tmp_path: Path) -> None:
    """The file is kept for us by the program: all that the case has but for the truth, and nothing else."""
    kept = tmp_path / "kept.npz"
    command = program(THRESHOLD + f'    import shutil; shutil.copy(file, r"{kept}")\n')
    clicks = ((Click((3, 3, 4), True), None, Click((0, 0, 0), False)), (Click((5, 6, 7), True), None, None))
    full = replace(
        case, boxes=(Box((2, 2, 3), (4, 4, 5), 3), None), clicks=clicks, prev_pred=case.image // 200
    )
    ContainerSegmenter(command).segment(full)
    with np.load(kept, allow_pickle=True) as archive:  # our own
        assert set(archive) == {"imgs", "spacing", "boxes", "clicks", "clicks_order", "prev_pred"}
        assert archive["clicks"][0] == {"fg": [[3, 3, 4]], "bg": [[0, 0, 0]]}
        assert archive["clicks_order"].tolist() == [["fg", None, "bg"], ["fg", None, None]]
    got = read_case(kept)
    assert (got.spacing_mm, got.boxes, got.clicks) == (full.spacing_mm, full.boxes, full.clicks)
    np.testing.assert_array_equal(got.image, full.image)

    ContainerSegmenter(command).segment(case)
    with np.load(kept) as archive:
        assert set(archive) == {"imgs", "spacing"}


@posix
def test_any_user_may_answer(program: Write, case: Case, scratch: Path) -> None:
    """Whatever the mask of new files; the folder around is its owner's."""
    command = program(
        """
        import os
        from pathlib import Path
        modes = {n: oct(Path(n).stat().st_mode & 0o777) for n in (".", "inputs", "outputs")}
        (file,) = Path("inputs").iterdir()
        raise SystemExit(" ".join([*modes.values(), oct(file.stat().st_mode)]))
        """
    )
    mask = os.umask(0o077)
    try:
        with pytest.raises(RuntimeError, match="0o700 0o755 0o777 0o100644"):
            ContainerSegmenter(command).segment(case)
    finally:
        os.umask(mask)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import sys; print('starts'); print('no GPU\\n\\n', file=sys.stderr); sys.exit(3)",
            "the program left no outputs/CT_cube 1.npz; exit code 3: no GPU",
        ),
        ("1 / 0", "no outputs/CT_cube 1.npz; exit code 1: ZeroDivisionError: division by zero"),
        ("pass", "no outputs/CT_cube 1.npz; exit code 0$"),
        ("print('\\x1b[31mred\\r  half\\x07 done  \\r\\n')", "exit code 0: half  done$"),
        ("import sys; sys.stderr.buffer.write(b'x' * 999 + b'\\xff')", "exit code 0: x{300}$"),
        (
            "import numpy as np; np.savez('outputs/CT_cube 1', segs=np.zeros((6, 7, 9)))",
            r"^outputs/CT_cube 1.npz: segs must have the shape of imgs, \(6, 7, 8\), got \(6, 7, 9\); exit",
        ),
        (
            "import numpy as np; np.savez('outputs/CT_cube 1', seg=np.zeros((6, 7, 8)))",
            "^outputs/CT_cube 1.npz: the key 'segs' is missing; the file has: seg; exit code 0$",
        ),
        (
            "import numpy as np; np.savez('outputs/CT_cube 1', segs=np.full((6, 7, 8), 0.5))",
            "segs must hold whole numbers, got fractions",
        ),
        (
            "import numpy as np; np.savez('outputs/CT_cube 1', segs=np.full((6, 7, 8), np.nan))",
            "segs must hold labels from 0",
        ),
        ("open('outputs/CT_cube 1.npz', 'w').write('segs')", "not a readable .npz file"),
        ("import os; os.mkdir('outputs/CT_cube 1.npz')", "left no outputs/CT_cube 1.npz"),
        pytest.param(
            "import os; os.mkfifo('outputs/CT_cube 1.npz')", "left no outputs/CT_cube 1.npz", marks=posix
        ),
    ],
    ids=[
        *("crash", "error", "nothing", "terminal", "long line", "shape", "key", "fractions", "NaN"),
        *("no archive", "folder", "pipe"),
    ],
)
def test_programs_that_do_not_answer(
    source: str, message: str, program: Write, case: Case, scratch: Path
) -> None:
    """One line says what is wrong with the file, how the program ended and its last words."""
    with pytest.raises(RuntimeError, match=message) as caught:
        ContainerSegmenter(program(source), timeout_s=60).segment(case)
    assert "\n" not in str(caught.value)
    assert str(scratch) not in str(caught.value)
    assert list(scratch.iterdir()) == []


def test_a_pickle_is_not_run(program: Write, case: Case, tmp_path: Path) -> None:
    """Not even an answer may bring code along."""
    touched = tmp_path / "touched"
    command = program(f"""
        import numpy as np
        class Hostile:
            def __reduce__(self):
                return open, (r"{touched}", "w")
        np.savez("outputs/CT_cube 1", segs=np.full((6, 7, 8), Hostile(), object))
    """)
    with pytest.raises(RuntimeError, match="segs must hold numbers, got object"):
        ContainerSegmenter(command).segment(case)
    assert not touched.exists()


def test_only_the_file_counts(program: Write, case: Case) -> None:
    """As in the challenge: an exit code other than 0 after an answer changes nothing."""
    labels = ContainerSegmenter(program(THRESHOLD + "    raise SystemExit(5)\n")).segment(case)
    np.testing.assert_array_equal(labels, case.truth)


def test_every_run_starts_afresh(program: Write, case: Case) -> None:
    """What an earlier round left is gone."""
    command = program(
        """
        from pathlib import Path
        seen = sorted(path.as_posix() for path in Path().rglob("*"))
        for folder in (".", "inputs", "outputs"):
            (Path(folder) / "left").touch()
        raise SystemExit(", ".join(seen))
        """
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"exit code 1: inputs, inputs/CT_cube 1.npz, outputs$"):
            ContainerSegmenter(command).segment(case)


def test_much_is_printed(program: Write, case: Case) -> None:
    """More than a pipe holds, on both streams; neither fills up nor reaches the terminal."""
    noise = "    import sys\n    for s in (sys.stdout, sys.stderr): s.write('all is well\\n' * 200_000)\n"
    labels = ContainerSegmenter(program(noise + THRESHOLD), timeout_s=60).segment(case)
    np.testing.assert_array_equal(labels, case.truth)


def test_nothing_can_be_asked(program: Write, case: Case) -> None:
    with pytest.raises(RuntimeError, match="EOFError"):
        ContainerSegmenter(program("input('Sure? ')"), timeout_s=60).segment(case)


HANGS = """
    import signal, subprocess, sys, time
    from pathlib import Path
    code = {code!r}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.read(1)
    Path(r"{pids}").write_text(str(child.pid))
    exec(code)
"""
"""A program with a child; both sleep, the child says when it does."""

SLEEPS = "import sys, time; sys.stdout.write('.'); sys.stdout.flush(); time.sleep(100)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS


@pytest.mark.parametrize(
    "code", [SLEEPS, pytest.param(STUBBORN, marks=posix)], ids=["asked to end", "made to end"]
)
def test_a_program_that_hangs(
    code: str, program: Write, case: Case, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is ended when its time is up, with what it started."""
    monkeypatch.setattr(container, "GRACE_S", 0.2)
    pids = tmp_path / "pids"
    segmenter = ContainerSegmenter(program(HANGS.format(code=code, pids=pids)), timeout_s=2)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^stopped after 2 s without an end$"):
        segmenter.segment(case)
    assert time.monotonic() - began < 30
    assert sys.platform == "win32" or ends(int(pids.read_text()))
    assert list(scratch.iterdir()) == []


@posix
def test_interrupting_us_interrupts_it(program: Write, case: Case, tmp_path: Path, scratch: Path) -> None:
    """It has a process group of its own, which the terminal's Ctrl-C does not reach."""
    pids = tmp_path / "pids"
    segmenter = ContainerSegmenter(program(HANGS.format(code=SLEEPS, pids=pids)), timeout_s=60)

    def interrupt() -> None:
        while not pids.exists() or not pids.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell has its background jobs ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            segmenter.segment(case)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ends(int(pids.read_text()))
    assert list(scratch.iterdir()) == []


def test_what_it_leaves_running_is_not_waited_for(program: Write, case: Case) -> None:
    """Though it holds the streams open."""
    starts = """
    import subprocess, sys
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
    """
    began = time.monotonic()
    ContainerSegmenter(program(THRESHOLD + starts)).segment(case)
    assert time.monotonic() - began < 20


@posix
def test_a_program_beside_us(
    program: Write, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is from where we are, not from where the program will be."""
    _, script = program(THRESHOLD).split(" ", 1)
    (tmp_path / "run.sh").write_text(f'#!/bin/sh\nexec "{sys.executable}" {script}\n', encoding="utf-8")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.testing.assert_array_equal(ContainerSegmenter("../run.sh").segment(case), case.truth)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program --rm", "there is no program 'no-such-program'"),
        ("./gone.sh", r"there is no program './gone.sh'"),
        ("{inputs}/run", "there is no program '{inputs}/run'"),
        ("", "the command is empty"),
        ("  ", "the command is empty"),
        ('""', "the command is empty"),
        ('sh -c "echo', "open quote"),
    ],
)
def test_commands_that_cannot_run(command: str, message: str) -> None:
    """Are refused before the first case."""
    with pytest.raises(ValueError, match=message):
        ContainerSegmenter(command)


def test_what_the_answers_hang_on(program: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the program would find, whether a word or a variable names them; no secrets."""
    for name in [name for name in os.environ if name.startswith("GSMEDSEG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    weights, table, secret = (tmp_path / name for name in ("w.pt", "table.csv", "secret"))
    for file in (weights, table, secret):
        file.write_bytes(b"abc")
    monkeypatch.setenv("GSMEDSEG_WEIGHTS", str(weights))
    monkeypatch.setenv("GSMEDSEG_TOKEN", str(secret))
    segmenter = ContainerSegmenter(
        f"{program('pass')} {{inputs}} table.csv '{table}' '/{'x' * 300}' '{tmp_path}'"
    )
    script, abc = tmp_path / "a script.py", hashlib.sha256(b"abc").hexdigest()
    before = segmenter.settings()
    assert before == {
        "GSMEDSEG_WEIGHTS": str(weights),
        f"{sys.executable} SHA-256": sha256_of(sys.executable),
        f"{script} SHA-256": hashlib.sha256(b"pass").hexdigest(),
        f"{table} SHA-256": abc,
        f"{weights} SHA-256": abc,
    }
    script.write_text("fail", encoding="utf-8")
    after = segmenter.settings()
    assert [key for key in before if before[key] != after[key]] == [f"{script} SHA-256"]


@posix
@pytest.mark.parametrize("name", ["docker", "podman"])
def test_which_image_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may come to stand for another image; who cannot be asked stops nobody."""
    docker = tmp_path / name
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def settings(script: str) -> dict[str, str]:
        docker.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        docker.chmod(0o755)
        segmenter = ContainerSegmenter(f"{name} run --rm -m 32G --name team:latest team:latest sh predict.sh")
        return {key: value for key, value in segmenter.settings().items() if not key.startswith("GSMEDSEG_")}

    known = """
        [ "$1 $2 $3 $4" = "image inspect --format {{.Id}}" ] || exit 3
        for word; do [ "$word" = team:latest ] && echo sha256:NUMBER || echo "no image $word" >&2; done
        exit 1
    """
    assert settings(known.replace("NUMBER", "1")) == {"image ID": "sha256:1"}
    assert settings(known.replace("NUMBER", "2")) == {"image ID": "sha256:2"}
    assert settings("echo is the daemon running? >&2; exit 1") == {}
    monkeypatch.setattr(container, "ASK_S", 0.5)
    assert settings("exec sleep 5") == {}


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_timeouts_are_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="a timeout is a positive number of seconds"):
        ContainerSegmenter(f'"{sys.executable}"', timeout_s)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../up", "a/b", "a\\b", "C:x", "a\nb", "a\0b"])
def test_names_that_are_no_file_names(name: str, program: Write, case: Case, scratch: Path) -> None:
    """A case's name decides where a file is written."""
    with pytest.raises(ValueError, match="the name of a case becomes a file's"):
        ContainerSegmenter(program(THRESHOLD)).segment(replace(case, name=name))
    assert list(scratch.iterdir()) == []


def test_names_in_other_scripts(program: Write, case: Case) -> None:
    named = replace(case, name="Fall 1, Größe 2 (β)")
    np.testing.assert_array_equal(ContainerSegmenter(program(THRESHOLD)).segment(named), case.truth)


def test_words_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backslashes separate folders there; quotes hold a word together and are no part of it."""
    monkeypatch.setattr(container.sys, "platform", "win32")
    words = container._words(r'"C:\Program Files\py.exe" run.py -v {inputs}:/in/ -c "sh predict.sh"')
    assert words == [r"C:\Program Files\py.exe", "run.py", "-v", "{inputs}:/in/", "-c", "sh predict.sh"]
