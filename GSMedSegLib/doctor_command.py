"""The command `gsmedseg doctor`: what is wrong with this machine, and the fix."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from GSMedSegLib import __version__
from GSMedSegLib.console import command

if TYPE_CHECKING:
    from GSMedSegLib.doctor import Finding
    from GSMedSegLib.torch_health import State

UNWELL = 1
"""Exit code when there is a problem."""

ORDER: tuple[State, ...] = ("problem", "warning", "ok")
"""What matters first."""


def add_doctor(commands: Any) -> None:
    """Declares the command."""
    parser = command(
        commands,
        "doctor",
        _doctor,
        "say what is wrong with this computer, and the fix",
        "The report can be passed on: it names neither people nor images. The exit code is 1 if there is a "
        "problem, 0 otherwise.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="leave out what takes seconds: importing torch, checksums"
    )


def _doctor(options: argparse.Namespace) -> int:
    from GSMedSegLib.doctor import examine

    findings = examine(quick=options.quick)
    if options.json:
        about = {"gsmedseg": __version__, "quick": options.quick, "findings": [asdict(f) for f in findings]}
        print(json.dumps(about, indent=2))
    else:
        print(report(findings, min(shutil.get_terminal_size((100, 24)).columns, 110)))
    return UNWELL if any(finding.state == "problem" for finding in findings) else 0


def report(findings: list[Finding], columns: int = 100) -> str:
    """The findings as aligned text: a summary, problems, warnings, then what is well.

    Args:
        findings: from `examine`.
        columns: the longest line, but for words that are longer by themselves.
    """
    count = Counter(finding.state for finding in findings)
    said = [f"{count[state]} {state}{'s' * (count[state] > 1)}" for state in ORDER[:2] if count[state]]
    lines = [f"GSMedSeg {__version__}: {' and '.join(said) or 'all is well'}", ""]
    name_width = max((len(finding.name) for finding in findings), default=0)
    indent = " " * (len("PROBLEM") + 2 + name_width + 2)
    for finding in sorted(findings, key=lambda finding: ORDER.index(finding.state)):
        mark = finding.state.upper() if finding.state != "ok" else "ok"
        head = f"{mark:<7}  {finding.name:<{name_width}}  "
        lines += _wrap(head, finding.found, indent, columns)
        if finding.advice:
            lines += _wrap(
                f"{indent}fix: " if mark != "ok" else f"{indent}tip: ", finding.advice, indent, columns
            )
    return "\n".join(lines)


def _wrap(head: str, text: str, indent: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(columns, len(indent) + 40),
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]
