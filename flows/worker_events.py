"""What workers tell those who watch a run: which block they did, and what they logged. One topic of dask's for all runs.

A scheduler keeps a thousand messages of a topic, whoever listens, so that a topic for each run would fill it in the course of years.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from distributed import Worker, get_worker

from flows.supervision import run_watched
from unet_core.ledger import Record

TOPIC = "unet-flows"
_NO_COMPUTING = ("read", "encode", "write", "wait")  # phases of a unit in which the network does not run
_LONGEST_LINE = 2000  # letters
_RUN: ContextVar[str] = ContextVar("run")


def run_key(output_url: str, request_key: str) -> str:
    """Names a run; two results of one image, made at once, have the same request."""
    return f"{request_key}-{hashlib.sha256(output_url.encode()).hexdigest()[:8]}"


def run_told(output_url: str, request_key: str, stage_name: str, index: int) -> Record:
    """``run_watched`` on a worker, of which those who watch are told.

    Raises:
        BlockError: likewise.
    """
    worker, run = get_worker(), run_key(output_url, request_key)
    with _forwarded(worker, run):
        record = run_watched(output_url, request_key, stage_name, index)
    computing = sum(seconds for phase, seconds in record.seconds.items() if phase not in _NO_COMPUTING)
    unit = {"stage": stage_name, "index": index, "voxels": record.voxels, "work": record.work_seconds, "computing": computing}
    worker.log_event(TOPIC, {"run": run} | unit)
    return record


class _Forwarding(logging.Handler):
    """Sends warnings and errors of any library to those who watch the run that its thread works for."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(logging.WARNING)
        self.worker = worker
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self._last = _RUN.get(self._last)  # threads that libraries start work for the run of the last unit
        try:
            line = f"{record.name}: {record.getMessage()}"[:_LONGEST_LINE]
            self.worker.log_event(TOPIC, {"run": self._last, "level": record.levelno, "line": line})
        except Exception:  # a line that cannot be told stops no block
            self.handleError(record)


@contextmanager
def _forwarded(worker: Worker, run: str) -> Iterator[None]:
    for name in ("", "distributed"):  # dask's loggers do not pass on what they are told
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Forwarding) and handler.worker is worker for handler in logger.handlers):
            logger.addHandler(_Forwarding(worker))
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def listen(client: Any, run: str, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Call ``on_event`` with what workers tell of a run, in the thread of dask's client."""

    def hear(event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, dict) and message.get("run") == run:
            on_event(message)

    client.subscribe_topic(TOPIC, hear)
