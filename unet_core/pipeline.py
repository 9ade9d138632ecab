"""Units of work one after the other in this process: the next is read and the last committed while one computes. Knows no cluster.

reading     0   1     2     3
computing       0     1     2     3         in the calling thread, so that Ctrl-C stops the network at once
committing            0     1     2     3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from unet_core.errors import BlockError
from unet_core.ledger import Record
from unet_core.worker import Unit, open_worker


def run_units(output_url: str, request_key: str, stage_name: str, indices: Iterable[int]) -> Iterator[Record | BlockError]:
    """Compute units of one stage; yields the record of each, or why it failed, in their order.

    Args:
        output_url: of the prepared output.
        request_key: of its request.
        stage_name: of the plan.
        indices: numbers of the units.

    Raises:
        ResumeError: if image or model are no longer those of the plan.
    """
    numbers = iter(indices)
    with ThreadPoolExecutor(1, "unet-read") as reader, ThreadPoolExecutor(1, "unet-commit") as committer:

        def read_next() -> Future[Unit] | None:
            index = next(numbers, None)
            return None if index is None else reader.submit(_read, Unit(open_worker(output_url, request_key), stage_name, index))

        ahead, committing = read_next(), None
        while ahead is not None:
            reading, failure = ahead, None
            try:
                unit = reading.result()
            except BlockError as error:
                failure = error
            ahead = read_next()
            if failure is None:
                try:
                    unit.compute()
                except BlockError as error:
                    failure = error
            if committing is not None:  # one at a time, so that the values of few blocks are in memory
                yield _outcome(committing)
                committing = None
            if failure is None:
                committing = committer.submit(unit.commit)
            else:
                yield failure
        if committing is not None:
            yield _outcome(committing)


def _read(unit: Unit) -> Unit:
    unit.read()
    return unit


def _outcome(committing: Future[Record]) -> Record | BlockError:
    try:
        return committing.result()
    except BlockError as error:
        return error
