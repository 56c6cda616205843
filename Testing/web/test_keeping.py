"""When work is kept, by a clock moved by hand."""

from __future__ import annotations

from GSMedSegLib.web.keeping import LATEST_S, RETRY_S, SOON_S, Keeping


def begun() -> Keeping:
    """All is kept, up to change 7 at 100 s."""
    keeping = Keeping()
    keeping.see(7, 100.0)
    keeping.succeeded(7)
    return keeping


def test_what_was_done_is_kept_soon_after_the_last_change():
    keeping = begun()
    assert not keeping.due(False, 200.0)
    keeping.see(8, 200.0)
    keeping.see(8, 201.0)  # the same one
    assert not keeping.due(False, 200.0 + SOON_S)
    assert keeping.due(False, 200.1 + SOON_S)
    assert not keeping.due(True, 200.1 + SOON_S), "an answer is waited for"
    keeping.succeeded(8)
    assert not keeping.due(False, 300.0)


def test_one_who_never_rests_is_kept_all_the_same():
    """A change every second, and an answer always on its way: after 20 s from the first, and again."""
    keeping = begun()
    kept_at_s = []
    for second in range(50):
        keeping.see(8 + second, 200.0 + second)
        if keeping.due(True, 200.5 + second):
            kept_at_s.append(200 + second)
            keeping.succeeded(8 + second)
    assert LATEST_S == 20
    assert kept_at_s == [220, 241]


def test_what_failed_is_tried_again_but_not_at_once():
    keeping = begun()
    keeping.see(8, 200.0)
    keeping.failed(203.0)
    assert not keeping.due(False, 202.9 + RETRY_S)
    assert keeping.due(False, 203.0 + RETRY_S)
