"""Any challenge container or script as a segmenter: a case goes in as a file, its labels come out as one."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from GSMedSegLib.checkpoint import sha256_of
from GSMedSegLib.labels import LabelArray
from GSMedSegLib.npz import Case, read_labels, write_case

GRACE_S = 2.0
"""From asking a program to end to ending it."""

ASK_S = 10.0
"""For Docker to say which image it has under a name."""

_DOCKERS = ("docker", "podman")

_SILENT = ("_TOKEN", "_DATA")
"""Ends of the names of our variables that decide on no answer: secrets, and where images lie."""

_FILE_NAME = re.compile(r'[^.<>:"/\\|?*\x00-\x1f][^<>:"/\\|?*\x00-\x1f]*')
"""Good on every system, and not hidden: programs look for the cases that they are to segment."""

_TAIL_BYTES = 1 << 16
_LONGEST_LINE = 300


class ContainerSegmenter:
    """Runs a program through the challenge's file contract; a `challenge.Segmenter`.

    The program starts in a fresh folder with `inputs/CASE.npz` and an empty `outputs/`, and has to leave
    `outputs/CASE.npz` with `segs`. As in the challenge, that file is all that counts: a program that writes
    it and then ends with an exit code other than 0 has answered.

    Docker does not end a container because its command line was ended: where there is a time limit, let
    `docker container run` have `--init`, so that the request to end reaches the program.

    Example:
        ContainerSegmenter(
            "docker container run --rm -v {inputs}:/workspace/inputs/ -v {outputs}:/workspace/outputs/ "
            'team:latest /bin/bash -c "sh predict.sh"'
        )

    Args:
        command: split into words as a shell does, but run without one; `{inputs}` and `{outputs}` become the
            absolute paths of the two folders. The working folder being another one, files that it names
            other than the program itself need absolute paths.
        timeout_s: for a run; after it the program and what it started are ended. None waits for ever.

    Raises:
        ValueError: an empty command or one with an open quote, a program that cannot be found, or a timeout
            that is not positive.
    """

    def __init__(self, command: str, timeout_s: float | None = None) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"a timeout is a positive number of seconds, got {timeout_s}")
        program, *self._arguments = _words(command)
        found = shutil.which(program)
        if found is None:
            raise ValueError(f"there is no program {program!r} to run; check its name, or give its full path")
        self._program = os.path.abspath(found)  # noqa: PTH100 - Path.absolute keeps the dots of ../
        self._timeout_s = timeout_s

    def segment(self, case: Case) -> LabelArray:
        """Run the program on a case; it sees image, spacing and prompts, and never the truth.

        Returns:
            (K, J, I) labels, class c as c.

        Raises:
            ValueError: the case's name cannot be a file's.
            RuntimeError: no answer in time, none at all, or none that is a label map of the image's shape.
            OSError: the files cannot be written or the program cannot be started.
        """
        if not _FILE_NAME.fullmatch(case.name):
            raise ValueError(f"the name of a case becomes a file's, so {case.name!r} will not do; rename it")
        # A container's root may leave folders that are not ours to remove: the answer is good all the same.
        with tempfile.TemporaryDirectory(prefix="gsmedseg-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch).resolve()
            inputs, outputs = folder / "inputs", folder / "outputs"
            _prepare(inputs, outputs, case)
            complaint = self._run(folder, {"{inputs}": str(inputs), "{outputs}": str(outputs)})
            return _read_answer(outputs / f"{case.name}.npz", case, complaint)

    def settings(self) -> dict[str, str]:
        """What its answers hang on beside the words of the command, as far as that is seen from here.

        Returns:
            the SHA-256 of the program, and of files that the command or a variable gives by their whole
            paths; of Docker and Podman the IDs of images that the command names instead of the program, where
            they can be asked; and the variables `GSMEDSEG_…`.
        """
        found = {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("GSMEDSEG_") and not name.endswith(_SILENT)
        }
        named = [*self._arguments, *found.values()]
        if Path(self._program).stem in _DOCKERS:
            images = _image_ids(self._program, self._arguments)
            if images:
                found["image ID"] = ", ".join(images)
        else:
            named = [self._program, *named]
        for word in named:
            with contextlib.suppress(OSError):  # of a word that is no file's name, or a file that is not ours
                if Path(word).is_absolute() and Path(word).is_file():
                    found[f"{word} SHA-256"] = sha256_of(word)
        return found

    def _run(self, folder: Path, places: dict[str, str]) -> str:
        """Run the program to its end, and return how that was: its exit code and last words."""
        words = [self._program, *(_filled_in(word, places) for word in self._arguments)]
        # Files rather than pipes: nothing fills up, and nobody waits for what the program left running.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **_own_group()
            )
            try:
                code = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"stopped after {self._timeout_s:g} s without an end") from None
            finally:
                if process.returncode is None:  # too slow, or the user interrupts
                    _end(process)
            said = _last_line(err) or _last_line(out)
        return f"exit code {code}" + (f": {said}" if said else "")


def _words(command: str) -> list[str]:
    """The words of a command line, of which there is at least one."""
    windows = sys.platform == "win32"
    try:
        words = shlex.split(command, posix=not windows)
    except ValueError as error:
        raise ValueError(f"the command has an open quote or ends in a backslash: {command}") from error
    if windows:  # where backslashes separate folders, and shlex leaves the quotes on
        words = [w[1:-1] if len(w) > 1 and w[0] == w[-1] and w[0] in "\"'" else w for w in words]
    if not words or not words[0]:
        raise ValueError("the command is empty; give the program that is to segment the cases")
    return words


def _image_ids(docker: str, words: list[str]) -> list[str]:
    """The IDs of those words that are names of images; none where Docker does not say."""
    names = [word for word in words if not word.startswith("-")]
    ask = [docker, "image", "inspect", "--format", "{{.Id}}", *names]
    try:
        said = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(dict.fromkeys(said.stdout.decode("utf-8", "replace").split()))


def _filled_in(word: str, places: dict[str, str]) -> str:
    for placeholder, path in places.items():
        word = word.replace(placeholder, path)
    return word


def _prepare(inputs: Path, outputs: Path, case: Case) -> None:
    """Both folders, open to whichever user a container runs as; the folder around them is ours alone."""
    file = inputs / f"{case.name}.npz"
    inputs.mkdir()
    outputs.mkdir()
    write_case(file, replace(case, truth=None))
    file.chmod(0o644)
    inputs.chmod(0o755)
    outputs.chmod(0o777)


def _read_answer(file: Path, case: Case, complaint: str) -> LabelArray:
    place = f"outputs/{file.name}"
    if not file.is_file():
        raise RuntimeError(f"the program left no {place}; {complaint}")
    try:
        labels = read_labels(file, "segs")
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{str(error).replace(str(file), place)}; {complaint}") from error
    if labels.shape != case.image.shape:
        raise RuntimeError(
            f"{place}: segs must have the shape of imgs, {case.image.shape}, got {labels.shape}; {complaint}"
        )
    return labels


def _own_group() -> dict[str, Any]:
    """Starts a program apart from us, so that it can be ended with all that it starts."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a running program and what it started: asks first, then does not ask."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.kill()
    else:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(stream: IO[bytes]) -> str:
    """The last line that says something, without what would move a terminal's cursor; empty without one."""
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
    for line in reversed(stream.read().decode("utf-8", "replace").splitlines()):
        printable = "".join(c if c.isprintable() else " " for c in line).strip()
        if printable:
            return printable[:_LONGEST_LINE]
    return ""
