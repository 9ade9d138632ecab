"""Units of work one after the other in this process: the next is read and the last committed while one computes. Knows no cluster.

reading     0   1     2     3
computing       0     1     2     3         in the calling thread, so that Ctrl-C stops the network at once
committing            0     1     2     3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from unet_core.agenda import Agenda, Units
from unet_core.attempts import Retried
from unet_core.errors import BlockError
from unet_core.ledger import Record
from unet_core.store import open_store
from unet_core.worker import Unit, open_worker


def run_units(output_url: str, request_key: str, stage_name: str, indices: Iterable[int]) -> Iterator[Record | BlockError]:
    """Compute units of one stage, of which everything that they read is committed; likewise."""
    stages = open_worker(output_url, request_key).plan.stages
    yield from run_ready(output_url, request_key, Agenda(stages, {stage_name: indices}))


def run_ready(output_url: str, request_key: str, units: Units) -> Iterator[Record | BlockError]:
    """Compute units; yields the record of each, or why it failed, in the order in which they were taken.

    Args:
        output_url: of the prepared output.
        request_key: of its request.
        units: to be done; told of each that is committed, before it is yielded.

    Raises:
        ResumeError: if image or model are no longer those of the plan.
        LeaseLostError: if another run has taken over the output.
    """
    retried = Retried(units, open_store(output_url))
    for outcome in _run_ready(output_url, request_key, retried):
        if isinstance(outcome, Record) or outcome.unit is None:
            yield outcome
        elif (text := retried.failed(outcome.unit, str(outcome))) is not None:
            yield BlockError(text)


def _run_ready(output_url: str, request_key: str, units: Units) -> Iterator[Record | BlockError]:
    """Likewise, with each attempt that failed."""
    with ThreadPoolExecutor(1, "unet-read") as reader, ThreadPoolExecutor(1, "unet-commit") as committer:

        def read_next() -> Future[Unit] | None:
            taken = units.take()
            return None if taken is None else reader.submit(_read, Unit(open_worker(output_url, request_key), *taken))

        def outcome(committing: Future[Record]) -> Record | BlockError:
            try:
                record = committing.result()
            except BlockError as error:
                return error
            units.committed(record.stage, record.index)
            return record

        ahead, committing = read_next(), None
        while ahead is not None or committing is not None:
            unit, failure = None, None
            if ahead is not None:
                reading, ahead = ahead, None
                try:
                    unit = reading.result()
                except BlockError as error:
                    failure = error
                ahead = read_next()
            if unit is not None:
                try:
                    unit.compute()
                except BlockError as error:
                    unit, failure = None, error
            if committing is not None:  # one at a time, so that the values of few blocks are in memory
                yield outcome(committing)
                committing = None
            if unit is not None:
                committing = committer.submit(unit.commit)
            elif failure is not None:
                yield failure
            ahead = ahead or read_next()  # what was just committed may have been waited for


def _read(unit: Unit) -> Unit:
    unit.read()
    return unit
