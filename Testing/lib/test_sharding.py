"""Cases shared out over processes: none lost, none twice, the work even."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from GSMedSegLib.sharding import Ranks, join_ranks, own_device

ROOT = Path(__file__).resolve().parents[2]


def test_the_largest_go_out_first() -> None:
    """9 to rank 0, 7 and then 2 to rank 1, which has least; 6 to rank 0 would be less even than it is."""
    items, sizes = ["a2", "b9", "c7", "d1"], [2, 9, 7, 1]
    assert Ranks(0, 2).share(items, sizes) == ["b9", "d1"]
    assert Ranks(1, 2).share(items, sizes) == ["a2", "c7"]


def test_one_process_has_all_in_order() -> None:
    assert Ranks().share([3, 1, 2], [1, 5, 9]) == [3, 1, 2]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 6))
def test_every_item_goes_to_one_process(sizes: list[int], processes: int) -> None:
    items = list(range(len(sizes)))
    shares = [Ranks(rank, processes).share(items, sizes) for rank in range(processes)]
    assert sorted(item for share in shares for item in share) == items
    loads = [sum(sizes[item] for item in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
        assert ranks.gather("x") == ["x"]
        assert ranks.agree(3) == 3


def test_two_processes_gather_and_agree(tmp_path: Path) -> None:
    """Under the real torchrun."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from GSMedSegLib.sharding import join_ranks\n"
        "with join_ranks() as ranks:\n"
        "    gathered = ranks.gather(('of', ranks.rank))\n"
        "    agreed = ranks.agree(ranks.rank + 40)\n"
        "    line = f'rank {ranks.rank} of {ranks.size}: {gathered} {agreed}\\n'\n"
        "    sys.stdout.write(line)\n",  # in one piece: both write to the same stream
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script)], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "rank 0 of 2: [('of', 0), ('of', 1)] 40",
        "rank 1 of 2: [] 40",
    ]


def test_without_a_gpu_the_device_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert own_device("auto") == "auto"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("auto") == "cuda:1"
    assert own_device("cpu") == "cpu"
    assert own_device("cuda:0") == "cuda:0"
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device("auto") == "auto"
