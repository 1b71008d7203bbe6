"""What foveal.parallel keeps for each process group: a communicator, its workspace, its streams."""

from __future__ import annotations

import ctypes
import datetime
import functools
import weakref
from collections import Counter
from typing import Any

import foveal
import torch
import torch.distributed as dist
from foveal import _foveal

_Message = tuple[int, int, int]  # address, bytes, peer


def _tensor_at(address: int, size: int) -> torch.Tensor:
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8)


def _exchange(group: Any, rank: int, sends: list[_Message], receives: list[_Message], timeout_seconds: float) -> None:
    """All messages of one exchange; those of one pair of ranks are told apart by their number."""
    own = [message for message in sends if message[2] == rank]
    for (to, size, _), (start, _, _) in zip([m for m in receives if m[2] == rank], own, strict=True):
        ctypes.memmove(to, start, size)
    works: list[Any] = []
    for start_one, messages in ((dist.irecv, receives), (dist.isend, sends)):
        number: Counter[int] = Counter()
        for address, size, peer in messages:
            if peer != rank:
                peer_of_all = dist.get_global_rank(group, peer)
                works.append(start_one(_tensor_at(address, size), peer_of_all, group=group, tag=number[peer]))
                number[peer] += 1
    for work in works:
        if not work.wait(datetime.timedelta(seconds=timeout_seconds)):
            raise TimeoutError(f"a rank has not come within {timeout_seconds} s")


class Rank:
    """What a process keeps for one group and device: communicator, workspace, streams."""

    def __init__(self, group: Any, device: torch.device, timeout_seconds: float) -> None:
        self.workspace = torch.zeros(0, dtype=torch.uint8, device=device)
        self.offsets: torch.Tensor | None = None
        self.stream: Any = None
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        if device.type == "cpu":
            exchange = functools.partial(_exchange, group, rank)
            self.communicator = _foveal.Communicator(rank, ranks, timeout_seconds, exchange)
            return
        backend = group._get_backend(device)
        if not hasattr(backend, "_comm_ptr"):
            raise foveal.UnsupportedError(f"tensors on {device} need a group of NCCL; this one's is {backend.name()}")
        if not backend._is_initialized():
            dist.barrier(group, device_ids=[device.index])  # NCCL's communicator is made with its first collective
        self.communicator = _foveal.Communicator(backend._comm_ptr(), "", timeout_seconds)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def allocate(self, size: int) -> int:
        """The address of so many bytes, a multiple of 256, that were zeros once."""
        if self.workspace.numel() < size + 256:
            self.workspace = torch.zeros(size + 256, dtype=torch.uint8, device=self.workspace.device)
        address: int = self.workspace.data_ptr()
        return address + -address % 256

    def upload(self, offsets: list[int]) -> int:
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=self.workspace.device)
        return self.offsets.data_ptr()


_ranks: weakref.WeakKeyDictionary[Any, dict[tuple[torch.device, float], Rank]] = weakref.WeakKeyDictionary()


def rank_of(group: Any, device: torch.device, timeout_seconds: float) -> Rank:
    of_group = _ranks.setdefault(group, {})
    key = (device, timeout_seconds)
    return of_group[key] if key in of_group else of_group.setdefault(key, Rank(group, device, timeout_seconds))
