"""The ranks of one training, each a process with a share of every batch: sums over them, and gradients averaged. Knows no images.

A training on one rank uses the same calls; they then change nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from unet_core.errors import GroupError, InputError

TIMEOUT_MINUTES = 5.0  # torch waits for half an hour
_NETWORK_WORDS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "timed out",
    "broken pipe",
)  # of torch's bare RuntimeErrors
_LOOK_SECONDS = 0.02

Backend = Literal["gloo", "nccl"]


@dataclass(frozen=True)
class Group:
    """One rank's view of the group. All ranks make the same calls in the same order.

    Args:
        rank: of this process, from 0.
        size: number of ranks.
        device: where this rank computes.
        timeout_minutes: longest wait for the other ranks in one call.
    """

    rank: int
    size: int
    device: torch.device
    timeout_minutes: float = TIMEOUT_MINUTES

    def total(self, own: Tensor) -> Tensor:
        """Sum over the ranks, the same bits on each; its gradient is that of the own part only.

        A loss that is a function of such sums has, on each rank, the gradient of the whole batch's loss with respect to the own
        part. `wrap` averages gradients, so the loss is to be multiplied by ``size`` before the backward pass.
        """
        return own if self.size == 1 else _Total.apply(own, self)  # type: ignore[no-untyped-call]

    def gather_counts(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Sum over the ranks of an int64 or float64 array; a copy."""
        if counts.dtype not in (np.int64, np.float64):
            raise TypeError(f"Counts are {counts.dtype}, not int64 or float64.")
        mine = torch.from_numpy(np.array(counts)).to(self.device)
        return self.summed(mine, "counting").cpu().numpy()

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.summed(torch.zeros(1, device=self.device), "waiting for all ranks").item()

    def broadcast_text(self, text: str) -> str:
        """The text of rank 0; that of other ranks is not looked at."""
        if self.size == 1:
            return text
        content = np.frombuffer(text.encode(), dtype=np.uint8).copy()
        with self.collective("telling a text"):
            length = torch.tensor([len(content)], device=self.device)
            dist.broadcast(length, 0)
            if self.rank:
                content = np.zeros(int(length.item()), dtype=np.uint8)
            values = torch.from_numpy(content).to(self.device)
            if len(content):
                dist.broadcast(values, 0)
            return values.cpu().numpy().tobytes().decode()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, which from now on has rank 0's weights and gradients averaged over the ranks; itself on one rank.

        Every parameter travels alone: buckets of several are laid out anew after the first step, and with three ranks or more the
        order of an element's sum, hence its last bit, would depend on how many steps ago the process started.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        known = signature(DistributedDataParallel).parameters  # torch 2.13 gave it another name, and warns of the old one
        buffers: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        with self.collective("sharing the initial weights"):
            return DistributedDataParallel(
                network,
                **buffers,  # synchronised batch norms have the same ones on each rank
                device_ids=[self.device] if self.device.type == "cuda" else None,
                bucket_cap_mb=1e-6,
            )

    @contextmanager
    def collective(self, doing: str) -> Iterator[None]:
        """Turn what torch raises when another rank is lost into a `GroupError`; for the backward pass of a wrapped network too.

        Raises:
            GroupError: with rank, what was done, after how long, and what to do. Errors of other kinds pass.
        """
        began = time.monotonic()
        try:
            yield
        except (RuntimeError, OSError) as error:
            if not _is_of_the_network(error):
                raise
            raise GroupError(
                f"Rank {self.rank} of {self.size}: {doing} failed after {time.monotonic() - began:.1f} s "
                f"(the longest wait is {60 * self.timeout_minutes:.0f} s; {_first_line(error)}). Another rank ended, hangs or cannot "
                "be reached; start the training again: it goes on from its last checkpoint."
            ) from error

    def close(self) -> None:
        """Leave the group; the other ranks' next call fails."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def summed(self, own: Tensor, doing: str) -> Tensor:
        """Sum over the ranks, the same bits on each, without a gradient; itself on one rank.

        Args:
            own: of this rank.
            doing: for the message, if another rank is lost.
        """
        if self.size == 1:
            return own
        summed = own.detach().clone(memory_format=torch.contiguous_format)
        with self.collective(doing):
            dist.all_reduce(summed)
        return summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, group: Group) -> Tensor:
        return group.summed(own, "adding up the loss")

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def single(device: str = "cpu") -> Group:
    """A group of one; every call is the identity."""
    return Group(0, 1, torch.device(device))


def join(
    rank: int,
    size: int,
    address: str,
    backend: Backend = "gloo",
    timeout_minutes: float = TIMEOUT_MINUTES,
    device: str | None = None,
) -> Group:
    """Wait for the other ranks, and form the group; a process is in one group at a time.

    Args:
        rank: of this process, from 0.
        size: number of ranks.
        address: ``tcp://HOST:PORT``, a free port on rank 0's host, on which rank 0 listens on that address only; ``env://`` as
            torchrun gives it.
        backend: ``gloo`` for CPUs, ``nccl`` for GPUs.
        timeout_minutes: longest wait for the others, here and in each later call.
        device: e.g. ``cuda:1``; by default the CPU with gloo, the first GPU with nccl.

    Raises:
        InputError: if rank, size or address have no meaning.
        GroupError: if not all ranks came in time.
    """
    if not 0 <= rank < size:
        raise InputError(f"Rank {rank} is not one of {size} ranks, which are counted from 0.")
    place = torch.device(device or ("cuda:0" if backend == "nccl" else "cpu"))
    group = Group(rank, size, place, timeout_minutes)
    if size == 1:
        return group
    if place.type == "cuda":
        torch.cuda.set_device(place)
    limit = timedelta(minutes=timeout_minutes)
    with group.collective(f"joining the group at {address}"):
        store = _meet(_store(rank, size, address, limit), rank, size, timeout_minutes)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        group.barrier()  # with nccl the first call connects
    return group


def _store(rank: int, size: int, address: str, limit: timedelta) -> Any:
    if address == "env://":
        return next(rendezvous(address, rank, size, timeout=limit))[0]
    parts = urlsplit(address)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise InputError(f"Group address '{address}' has no meaning; write tcp://HOST:PORT or env://.")
    if rank:
        return TCPStore(parts.hostname, parts.port, size, False, limit)
    # torch would listen on every interface, and asks nobody who they are.
    family = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((parts.hostname, parts.port))
        listening.listen(1024)
        return TCPStore(parts.hostname, parts.port, size, True, limit, master_listen_fd=os.dup(listening.fileno()))


def _meet(store: Any, rank: int, size: int, timeout_minutes: float) -> Any:
    """A part of the store that only the ranks that are here now use.

    torchrun keeps its store when it restarts ranks, and torch would connect to the addresses that the last ones left there. Each
    other rank greets under a number of its own until rank 0 answers it with the group's.
    """
    own = uuid4().hex
    if rank:
        store.set(f"greeting-{rank}", own)
        group = store.get(f"answer-{own}").decode()
        store.set(f"here-{group}-{rank}", "")
        return PrefixStore(group, store)
    deadline = time.monotonic() + 60 * timeout_minutes
    while missing := [other for other in range(1, size) if not store.check([f"here-{own}-{other}"])]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {', '.join(map(str, missing))} did not come")
        for other in missing:
            if store.check([f"greeting-{other}"]):
                store.set(f"answer-{store.get(f'greeting-{other}').decode()}", own)
        time.sleep(_LOOK_SECONDS)
    return PrefixStore(own, store)


def _is_of_the_network(error: Exception) -> bool:
    if isinstance(error, dist.DistError | OSError):
        return True
    return any(word in str(error).lower() for word in _NETWORK_WORDS)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
