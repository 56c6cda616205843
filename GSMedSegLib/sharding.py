"""Cases shared out over the processes that `torchrun` starts, on one machine or several."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=2)
"""How long the first process that is done waits for the others; torchrun notices at once when one dies."""


class Ranks:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: 0 .. size − 1; rank 0 puts the results together.
        size: how many processes there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T], sizes: Sequence[float]) -> list[T]:
        """This process's items, in the order given: the largest go out first, each to whoever has least.

        Every process gets the same plan from the same items, and no item goes to two.

        Args:
            items: all there are, the same in every process.
            sizes: how much work each is, in any unit.
        """
        loads = [0.0] * self.size
        mine = []
        for n in sorted(range(len(items)), key=lambda n: (-sizes[n], n)):
            lightest = loads.index(min(loads))
            loads[lightest] += sizes[n]
            if lightest == self.rank:
                mine.append(n)
        return [items[n] for n in sorted(mine)]

    def gather(self, item: T) -> list[T]:
        """Every process's item, by rank, in rank 0; an empty list in the others."""
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        items: list[T | None] | None = [None] * self.size if self.first else None
        dist.gather_object(item, items)
        return [x for x in items if x is not None] if items is not None else []

    def agree(self, item: T) -> T:
        """Rank 0's item, in every process."""
        if self.size == 1:
            return item
        import torch.distributed as dist

        items = [item]
        dist.broadcast_object_list(items, src=0)
        return items[0]


@contextmanager
def join_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: "auto", "cpu" or "cuda": where tensors that they exchange may lie.

    Source: the environment variables RANK and WORLD_SIZE, https://docs.pytorch.org/docs/stable/elastic/run.html.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    cuda = device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: of several on a machine, each "auto" or "cuda" takes a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda"):
        return device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(local) % count}" if count else device
