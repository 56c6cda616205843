"""What every command has in common: how it is declared, how it says what went wrong, how far it is."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

FAILED = 2
"""Exit code when something could not be done; argparse uses the same for arguments it does not understand."""

LAST_PORT = 65535

_HINTS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "choose another folder, or ask for access",
    errno.EEXIST: "choose another name",
    errno.ENOTDIR: "a folder is needed here",
    errno.ENOSPC: "free some space, or write to another disk",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, rather than printing the usage of every option."""

    def error(self, message: str) -> NoReturn:
        """Ends the process; called by argparse."""
        self.exit(FAILED, f"gsmedseg: error: {' '.join(message.split())}; see {self.prog} --help\n")


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Declares a command.

    Args:
        commands: from `add_subparsers`.
        name: of the command.
        run: is called with the parsed arguments and returns the exit code.
        about: what it does, beginning in lower case, without a full stop.
        epilog: an example.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=epilog,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def port(text: str) -> int:
    """A port to listen on, as argparse wants it; 0 for any that is free."""
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {LAST_PORT}; got {text!r}")
    return int(text)


def when_input_ends(do: Callable[[], None]) -> None:
    """Do something when the standard input is closed, as it is when the parent process ends."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        do()

    threading.Thread(target=wait, daemon=True).start()


def tell(bar: Any, done: int, total: int | None) -> None:
    """Moves a progress bar to where the work is."""
    bar.total = total
    bar.update(done - bar.n)


def say(text: str) -> None:
    """Tells the user, on stderr, where it is not mixed with results."""
    print(f"gsmedseg: {text}", file=sys.stderr)


def reason(error: Exception) -> str:
    """What went wrong, in one line, below which a list of things to choose from stays a list."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        hint = f"; {_HINTS[error.errno]}" if error.errno in _HINTS else ""
        text = f"{where}{error.strerror}{hint}"
    elif isinstance(error, MemoryError):
        text = "not enough memory; crop the image, or close other programs"
    else:
        text = str(error) or type(error).__name__
    return "\n- ".join(" ".join(part.split()) for part in text.split("\n- "))
