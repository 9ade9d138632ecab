"""An archive on one cluster, without Prefect: a few images at once, all on the same workers, each by the path of a single one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from flows.clusters import Workers, check_cluster, check_reachable, device_elsewhere, open_cluster
from flows.dispatch import ClusterLostError, run_units
from flows.metrics_file import Metered, MetricsFile, check_metrics
from flows.progress import Progress, Snapshot
from flows.run import Prepared, gpu_count, plan_job, run_stages, taken_up
from unet_core.agenda import Agenda, UnitId
from unet_core.archives.job import ArchiveJob
from unet_core.archives.listing import Item
from unet_core.archives.preparing import PreparedArchive, prepare_archive
from unet_core.archives.summary import (
    ArchiveSummary,
    ImageRow,
    computed_row,
    failed_row,
    finished_row,
    status_of,
    write_summary,
)
from unet_core.budget import Capped, Purse
from unet_core.errors import InputError, JobError, UnetCoreError
from unet_core.job import SegmentationJob
from unet_core.lease import Claim, check_free
from unet_core.ledger import Record, find_plan
from unet_core.memory import GIB
from unet_core.outcome import take_over
from unet_core.places import check_writable
from unet_core.predict import resolve_device
from unet_core.prices import Budget
from unet_core.run_metrics import Labels
from unet_core.segment import RunSummary
from unet_core.spending import every_record
from unet_core.store import absolute, open_store
from unet_core.tally import Tally

AT_ONCE, MOST_AT_ONCE = 4, 64  # images; while one is planned or audited, the workers have blocks of the others
_READERS = 8  # ledgers of results that are read together
_SUMMARY_SECONDS = 5.0  # between summaries that are written, at least;
_SUMMARY_SHARE = 20  # times as long as writing one takes: of 100,000 images seconds, in which nobody else may fill in a row
_PLANNING = threading.Lock()  # while torch traces a network, it has replaced how modules are called, in all threads


class StoppedError(UnetCoreError):
    """The archive is to end; what is committed stays."""


@dataclass(frozen=True)
class ArchiveSnapshot(Snapshot):
    """Progress at one moment: images, and units of those that were begun."""

    ended: int = 0
    images: int = 0

    @property
    def fraction(self) -> float:
        return self.ended / self.images if self.images else 1.0

    def sentence(self) -> str:
        rate = self.voxels / self.seconds if self.seconds > 0 else 0.0
        return f"{self.ended} of {self.images} images, {self.done} units, {rate / 1e6:.2f} Mvoxel/s"


class Board:
    """How far an archive is: rows that any thread fills in, written to its output now and then, and at the end.

    Args:
        archive: as prepared.
        show: told the progress, at most once a second.
        purse: that pays for all images; None for no limit.
        meter: of all images together; None for no metrics.
    """

    def __init__(
        self,
        archive: PreparedArchive,
        show: Callable[[ArchiveSnapshot], None] = lambda snapshot: None,
        purse: Purse | None = None,
        meter: MetricsFile | None = None,
    ) -> None:
        self.stopping = threading.Event()
        self.broken: Exception | None = None  # what is wrong with all, such as a cluster that is lost
        self.purse, self._meter, self._failed = purse, meter, 0
        self.archive, self._show = archive, show
        self._rows = list(archive.rows)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._due = self._began + _SUMMARY_SECONDS
        self._units = 0
        self._progress = Metered(Progress(0, self._tell), meter)

    def expect(self, units: Mapping[str, int]) -> None:
        """Say how many units of each stage an image that begins has to do."""
        with self._lock:
            self._units += sum(units.values())
            self._progress.expect(self._units)
        if self._meter:
            self._meter.expect(units)

    def fail(self, units: int) -> None:
        with self._lock:
            self._failed += units

    def add(self, output: str, record: Record) -> None:
        self._progress.add(record)
        if self.purse:
            self.purse.add(output, record)

    @property
    def is_spent(self) -> bool:
        """Whether a budget leaves nothing for images that were not begun."""
        return self.purse is not None and self.purse.is_stopped

    def put(self, number: int, row: ImageRow) -> None:
        """Fill in the row of an image that has ended."""
        with self._lock:
            self._rows[number] = row
            began = time.monotonic()
            if began >= self._due:
                write_summary(self._summary())
                ended = time.monotonic()
                self._due = ended + max(_SUMMARY_SECONDS, _SUMMARY_SHARE * (ended - began))

    def write(self) -> ArchiveSummary:
        """Leave the summary in the output."""
        with self._lock:
            summary = self._summary()
            write_summary(summary)
        if self._meter:
            self._meter.end(summary.status, self._failed)
        return summary

    def row(self, number: int) -> ImageRow:
        return self._rows[number]

    def _summary(self) -> ArchiveSummary:
        job = self.archive.job
        return ArchiveSummary(
            source=job.image,
            output=job.output,
            status=status_of(self._rows),
            models=job.models,
            seconds=round(time.monotonic() - self._began, 3),
            notes=(*self.archive.notes, *([self.purse.sentence()] if self.purse and self.is_spent else [])),
            images=tuple(self._rows),
        )

    def _tell(self, snapshot: Snapshot) -> None:
        ended = sum(row.state != "waiting" for row in self._rows)
        self._show(ArchiveSnapshot(**vars(snapshot), ended=ended, images=len(self._rows)))


class _Stoppable:
    """Units that are no longer handed out once the archive is to end: those in flight come back, and the image is left as it is."""

    def __init__(self, agenda: Agenda, stopping: threading.Event) -> None:
        self._agenda, self._stopping = agenda, stopping

    def take(self) -> UnitId | None:
        return None if self._stopping.is_set() else self._agenda.take()

    def committed(self, stage: str, index: int) -> None:
        self._agenda.committed(stage, index)


def check_archive(
    job: ArchiveJob,
    cluster: str,
    workers: Workers,
    at_once: int | None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedArchive:
    """List and look at the images, and refuse what cannot work; nothing is written.

    Raises:
        InputError: in one of its kinds.
    """
    check_cluster(cluster, workers)
    images_at_once(cluster, at_once)
    archive = prepare_archive(job, show)
    if archive.jobs:
        check_reachable(cluster, device_elsewhere(cluster, job.device) or resolve_device(job.device))
    return archive


def open_purse(archive: PreparedArchive, budget: Budget | None) -> Purse | None:
    """A budget with what all results of an archive took so far; None for none."""
    if budget is None:
        return None
    purse = Purse(budget)

    def know(item: Item) -> None:
        store = open_store(f"{archive.job.output.rstrip('/')}/{item.name}")
        with suppress(InputError):  # what is wrong with one result is told of that image alone, when it is planned
            plan = find_plan(store)
            if plan:
                purse.know(every_record(store, plan))

    with ThreadPoolExecutor(_READERS, "unet-spent") as readers:
        for _ in readers.map(know, archive.items):
            pass
    return purse


def open_meter(archive: PreparedArchive, url: str | None) -> MetricsFile | None:
    """The metrics of all images of an archive together; None if no file is asked for.

    Raises:
        JobError: if the file cannot be.
    """
    if url is None:
        return None
    check_metrics(url)
    job = archive.job
    names = ", ".join(model.rstrip("/").rpartition("/")[2] for model in job.models)
    return MetricsFile(url, Labels(absolute(job.output), job.project or "", job.owner or "", names))


def images_at_once(cluster: str, at_once: int | None) -> int:
    """How many images are under way together, by default.

    Raises:
        JobError: if so many cannot be.
    """
    if at_once is None:
        return 1 if cluster == "serial" else AT_ONCE
    if not 1 <= at_once <= MOST_AT_ONCE:
        raise JobError(f"--at-once is {at_once}; give 1 to {MOST_AT_ONCE}.")
    if at_once > 1 and cluster == "serial":
        raise JobError(f"--at-once is {at_once}, but --cluster serial works on one image after the other; use --cluster local.")
    return at_once


def segment_image(
    job: SegmentationJob,
    row: ImageRow,
    scheduler: str | None,
    cluster: str,
    workers: Workers,
    board: Board,
    claim: Claim | None = None,
) -> ImageRow:
    """Plan, compute and audit one image on workers that are there; its row, whatever went wrong.

    Args:
        job: of the image.
        row: of the image so far.
        scheduler: address; None for this process.
        cluster: that the scheduler belongs to.
        workers: likewise.
        board: of the archive.
        claim: how to ask for the output, which no other run may write meanwhile.

    Raises:
        StoppedError: if the archive is to end.
        ClusterLostError: if the scheduler went away.
    """
    began, claim = time.perf_counter(), claim or Claim()
    try:
        check_writable(job.output)
        check_free(job.output, claim)
        with _PLANNING:
            if board.stopping.is_set():
                raise StoppedError("stopped")
            if board.is_spent:
                return row
            planned = plan_job(job, cluster, workers)
        found = take_over(planned, job.output, claim)
        if found is not None:
            return finished_row(row, found)
        with taken_up(planned, job.output, claim) as prepared:
            summary = _segment_prepared(prepared, scheduler, workers, board)
        board.fail(summary.failed)
    except Exception as error:  # whatever is wrong with one image, the others go on
        if board.stopping.is_set():
            raise StoppedError("stopped") from error
        if isinstance(error, ClusterLostError | BrokenPipeError):  # nobody listens any more: that is not the image's fault
            raise
        return failed_row(row, error)
    return computed_row(row, summary, time.perf_counter() - began)


def _segment_prepared(prepared: Prepared, scheduler: str | None, workers: Workers, board: Board) -> RunSummary:
    board.expect({stage: len(units) for stage, units in prepared.remaining.items()})

    def run_all(address: str | None, agenda: Agenda, computed: Tally) -> None:
        def note(record: Record) -> None:
            computed.add(record)
            board.add(prepared.output, record)

        units = Capped(_Stoppable(agenda, board.stopping), board.purse, prepared.output)
        run_units(address, prepared.output, prepared.request.key, units, note, computed.fail)
        if board.stopping.is_set():
            raise StoppedError("stopped")

    return run_stages(prepared, scheduler or "serial", workers, run_all, board.purse)


@contextmanager
def on_cluster(archive: PreparedArchive, board: Board, cluster: str, workers: Workers) -> Iterator[str | None]:
    """The scheduler that all images share, while the context lasts; whatever ends it, the summary is left in the output.

    An interrupt stops the workers first, then what waits for them.
    """
    board.write()
    job = archive.job
    device = device_elsewhere(cluster, job.device) or resolve_device(job.device)
    try:
        with open_cluster(cluster, workers, gpu_count(device), int(job.memory_gib * GIB)) as scheduler:
            try:
                yield scheduler
            except BaseException:
                board.stopping.set()
                raise
    finally:
        board.write()


def segment_archive_on_cluster(
    archive: PreparedArchive,
    cluster: str = "local",
    workers: Workers = 2,
    at_once: int | None = None,
    show: Callable[[ArchiveSnapshot], None] = lambda snapshot: None,
    told: Callable[[ImageRow], None] = lambda row: None,
    budget: Budget | None = None,
    claim: Claim | None = None,
    metrics: str | None = None,
) -> ArchiveSummary:
    """Segment what an archive still lacks; Prefect is not imported.

    Args:
        archive: see ``check_archive``.
        cluster: see ``open_cluster``.
        workers: processes that are started, once for all images: a number, or "FEWEST..MOST".
        at_once: images under way together.
        show: called with the progress, at most once a second.
        told: called with the row of each image that ended.
        budget: that all results together may take, earlier runs included.
        claim: how to ask for the output of each image.
        metrics: file for the numbers of all images together, in ``.prom`` or ``.json``.
    """
    board = Board(archive, show, open_purse(archive, budget), open_meter(archive, metrics))
    count = images_at_once(cluster, at_once)

    def run(number: int, scheduler: str | None) -> None:
        row = segment_image(archive.jobs[number], board.row(number), scheduler, cluster, workers, board, claim)
        board.put(number, row)
        told(row)

    if not archive.jobs or board.is_spent:
        return board.write()
    if count == 1:  # in this thread, so that Ctrl-C stops the network at once
        with on_cluster(archive, board, cluster, workers) as scheduler:
            for number in archive.jobs:
                run(number, scheduler)
    else:
        with ThreadPoolExecutor(count, "unet-image") as pool, on_cluster(archive, board, cluster, workers) as scheduler:
            waiting = iter(archive.jobs)
            running: set[Future[None]] = set()
            while True:
                while len(running) < count and (number := next(waiting, None)) is not None:
                    running.add(pool.submit(run, number, scheduler))
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
    return board.write()
