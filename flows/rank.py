"""The process of one rank of a training, started by torchrun or by a dask worker: join the group, train, tell. Knows neither of them.

torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m flows.rank MODEL_OUT
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from functools import partial
from importlib import import_module
from operator import methodcaller
from typing import Any, NoReturn, TextIO

from flows.settings import launched_rank
from unet_core import errors
from unet_core.errors import InputError, UnetCoreError

TARGET = "unet_core.training.loop:train_rank"  # (folder, group, on_step) -> summary
_PR_SET_PDEATHSIG = 1  # prctl.h of Linux

Tell = Callable[[dict[str, Any]], None]


def as_json(value: Any) -> Any:
    """A report or summary as what JSON has: a dataclass becomes an object."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def resolve(target: str) -> Callable[..., Any]:
    """The function named ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Train as one rank, and end this process: with 0, with 2 for bad input, with 1 else."""
    parser = argparse.ArgumentParser(prog="flows.rank", description="One rank of a training; torchrun gives it its number.")
    parser.add_argument("folder", help="of the model, with its planned training")
    parser.add_argument("--target", default=TARGET, help="module:function that trains")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--loaders", type=int, help="processes of this rank that read crops ahead")
    parser.add_argument("--timeout-minutes", type=float, default=5.0, help="longest wait for the other ranks")
    parser.add_argument("--rank", type=int, help="and --size and --address: instead of torchrun's environment")
    parser.add_argument("--size", type=int)
    parser.add_argument("--address")
    parser.add_argument("--reports", type=int, metavar="FD", help="file descriptor for reports, one JSON object a line")
    options = parser.parse_args(arguments)
    tell: Tell = _printed
    if options.reports is not None:
        end_with_parent()
        pipe = os.fdopen(options.reports, "w", buffering=1)
        tell = partial(_printed, file=pipe)
    code = 0
    try:
        tell({"kind": "done", "summary": as_json(_train(options, tell))})
    except Exception as error:
        import traceback

        traceback.print_exc()
        tell({"kind": "error", "type": _public_name(error), "message": _message(error)})
        code = 2 if isinstance(error, InputError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the group's threads may wait for a rank that is gone, or abort the process when they are taken down


def _train(options: argparse.Namespace, tell: Tell) -> Any:
    launched = launched_rank()
    if options.rank is not None:
        rank, size, address, local = options.rank, options.size, options.address, 0
    elif launched:
        rank, size, address, local = launched.rank, launched.size, "env://", launched.local_rank
    else:
        raise InputError(
            "This process has no rank; start it with 'torchrun --standalone --nproc-per-node N -m flows.rank FOLDER'."
        )
    from unet_core.training.group import join

    cuda = options.device.startswith("cuda")
    group = join(
        rank, size, address, "nccl" if cuda else "gloo", options.timeout_minutes, f"cuda:{local}" if cuda else options.device
    )
    on_step = (lambda report: tell({"kind": "step", "report": as_json(report)})) if rank == 0 else (lambda report: None)
    more = {} if options.loaders is None else {"loaders": options.loaders}
    summary = resolve(options.target)(options.folder, group, on_step, **more)
    group.barrier()  # a rank that ends first would be missed by those still at work
    group.close()
    return summary if rank == 0 else None


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended: a rank without a supervisor is no help."""
    if sys.platform == "linux":  # reaches a stopped process too
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _printed(report: dict[str, Any], file: TextIO | None = None) -> None:
    print(_line(report), file=file, flush=True)


def _line(report: dict[str, Any]) -> str:
    return json.dumps(report, default=methodcaller("item"))  # of a number that is numpy's or torch's


def _public_name(error: Exception) -> str:
    """The nearest class of `unet_core.errors`, so that the other side can raise it again; empty for what is no error of ours."""
    names = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, UnetCoreError)]
    return next((name for name in names if hasattr(errors, name)), "")


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UnetCoreError) else f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":
    main()
