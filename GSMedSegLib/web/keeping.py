"""When the work of a page is kept."""

from __future__ import annotations

from dataclasses import dataclass

SOON_S, LATEST_S = 2.0, 20.0
"""After so long without a change what was done is kept; so long after the first change in any case."""

RETRY_S = 5.0
"""What could not be kept is tried again after so long."""


@dataclass
class Keeping:
    """Which changes are kept, and when the others are due.

    Attributes:
        kept: number of the change up to which the work is kept.
        seen: number of the last change.
        last_s: when it was made, on the clock of the caller.
    """

    kept: int = -1
    seen: int = -1
    last_s: float = 0.0
    _first_s: float = 0.0
    _not_before_s: float = 0.0

    def see(self, changes: int, now_s: float) -> None:
        """Take note of how many changes there are."""
        if changes != self.seen:
            if self.seen == self.kept:
                self._first_s = now_s
            self.seen, self.last_s = changes, now_s

    def due(self, busy: bool, now_s: float) -> bool:
        """Whether it is time; while an answer is waited for only after `LATEST_S`."""
        if self.seen == self.kept or now_s < self._not_before_s:
            return False
        return (not busy and now_s > self.last_s + SOON_S) or now_s > self._first_s + LATEST_S

    def succeeded(self, changes: int) -> None:
        """All up to a change is kept."""
        self.kept = changes

    def failed(self, now_s: float) -> None:
        """Not so; later again."""
        self._not_before_s = now_s + RETRY_S
