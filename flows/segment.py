"""The Prefect flow that segments one image: plan, batches of blocks with their pyramid, audit, artifacts. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from queue import Empty, SimpleQueue
from threading import Event
from uuid import UUID

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.claims import flow_claim
from flows.clusters import Workers
from flows.dispatch import run_units
from flows.live_artifacts import LiveArtifacts
from flows.metrics_file import MetricsFile, open_meter
from flows.options import prices_of
from flows.printing import visible
from flows.run import Prepared, open_purse, prepared_run, run_stages
from flows.watching import RunWatch
from flows.worker_events import run_key
from unet_core.agenda import Agenda, Batch
from unet_core.budget import Capped, Purse
from unet_core.errors import UnetCoreError
from unet_core.job import SegmentationJob
from unet_core.ledger import Record
from unet_core.report.facts import Told
from unet_core.report.making import report_run
from unet_core.segment import RunSummary
from unet_core.stages import title_of
from unet_core.tally import Tally
from unet_core.wording import counted

BATCH_COUNT = 20  # Prefect task runs of a stage, at most
SMALLEST_BATCH = 4  # units; two batches then keep the threads of two workers busy
CONCURRENT_BATCHES = 2  # so that workers have blocks waiting while one batch ends

ASK_SECONDS = 1.0  # between looks whether the run is cancelled, while no batch ends
STOPPED = "The run was stopped; what is committed stays."


class PartialRunError(UnetCoreError):
    """Some blocks failed, or a budget ended; the others are committed."""

    def __init__(self, summary: RunSummary) -> None:
        failed = f"{counted(summary.failed, 'block')} failed, the others are kept: {next(iter(summary.failures), '')}"
        super().__init__(failed if summary.failures else summary.stopped)
        self.summary = summary


class StoppedError(UnetCoreError):
    """Somebody cancelled the run; what is committed stays."""


def _flow_run_name() -> str:
    job = runtime.flow_run.parameters["job"]
    asked = job if isinstance(job, SegmentationJob) else SegmentationJob(**job)
    image, *models = (place.rstrip("/").rpartition("/")[2] for place in (asked.image, *asked.models))
    return f"{image} with {', '.join(models)}"


@flow(
    name="segment-volume",
    description="Segment one image with a U-Net into an OME-Zarr; resumes where an earlier run of the same job stopped.",
    flow_run_name=_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=CONCURRENT_BATCHES),
)
def segment_volume(
    job: SegmentationJob,
    cluster: str = "local",
    workers: Workers = 2,
    budget: str | None = None,
    price: str | None = None,
    metrics: str | None = None,
) -> dict | State:
    """Segment one image.

    Args:
        job: Image, model, output and options.
        cluster: local (workers on the machine that runs this), serial (none), or the address of a dask scheduler (tls://HOST:PORT).
        workers: Worker processes, each with memory of its own, that a local cluster starts.
        budget: What the output may take, earlier runs included: worker hours (2h, 90min) or money (5 EUR); no block is begun beyond it.
        price: What a worker costs for an hour, such as 2.50 EUR; that of UNET_PRICE unless told.
        metrics: File for the numbers of the run, .prom as Prometheus reads it or .json; replaced every few seconds.
    """
    logger = get_run_logger()
    limit = prices_of(budget or None, price or None)[0]
    with prepared_run(job, cluster, workers, flow_claim(runtime.flow_run.id, logger.info)) as prepared:
        watched = (open_purse(prepared, limit), open_meter(metrics or None, prepared))
        return _segment_prepared(prepared, job, cluster, workers, *watched)


def _segment_prepared(
    prepared: Prepared,
    job: SegmentationJob,
    cluster: str,
    workers: Workers,
    purse: Purse | None,
    meter: MetricsFile | None,
) -> dict | State:
    logger = get_run_logger()
    plan = prepared.planned.plan
    logger.info(
        "plan %s: %s blocks of %s voxels, %s units left to do",
        plan.id[:12],
        plan.stages[0].grid.block_count,
        plan.block_shape,
        prepared.total,
    )
    cost = None if purse is None else lambda: f"{purse.spent_seconds / 3600:.2f} worker hours"
    watch, stopping = RunWatch(prepared, logger, cost), Event()

    def run_batches(scheduler: str | None, agenda: Agenda, computed: Tally) -> None:
        running: set[PrefectFuture] = set()
        ended: SimpleQueue[PrefectFuture] = SimpleQueue()

        def start() -> None:
            while len(running) < CONCURRENT_BATCHES and not (purse and purse.is_stopped) and (batch := agenda.batch(batch_size)):
                names = (title_of(batch.stage), batch.first, batch.last)
                future = segment_batch.submit(
                    scheduler, prepared.output, prepared.request.key, batch, *names, watch, stopping, purse, meter
                )
                running.add(future)
                future.add_done_callback(ended.put)

        with watch.workers.connected(scheduler, run_key(prepared.output, prepared.request.key)):
            try:
                start()
                while running:
                    future = _next(ended, watch.cancelled)
                    computed.merge(future.result())
                    running.remove(future)
                    start()
            except BaseException:  # Ctrl-C or SIGTERM: the workers go next, batches still under way are to end without a word
                stopping.set()
                raise

    def batch_size(stage: str) -> int:
        return max(SMALLEST_BATCH, -(-len(prepared.remaining[stage]) // BATCH_COUNT))

    with LiveArtifacts(UUID(str(runtime.flow_run.id)), watch.lives(), logger, watch.cancelled.set):
        try:
            summary = run_stages(prepared, cluster, workers, run_batches, purse, meter)
        except StoppedError:
            return Cancelled(message=STOPPED)
        watch.tell(_tell(summary), f"Result of {job.image}")
    if summary.status != "complete":
        raise PartialRunError(summary)
    return summary.as_json()


def _next(ended: "SimpleQueue[PrefectFuture]", cancelled: Event) -> PrefectFuture:
    """The next batch that ends.

    Raises:
        StoppedError: if the run is cancelled first.
    """
    while not cancelled.is_set():
        try:
            return ended.get(timeout=ASK_SECONDS)
        except Empty:
            continue
    raise StoppedError(STOPPED)


@task(name="batch", task_run_name="{step} {first} to {last}", retries=0, cache_policy=NO_CACHE, persist_result=False)
def segment_batch(
    scheduler: str | None,
    output: str,
    request_key: str,
    batch: Batch,
    step: str,
    first: int,
    last: int,
    watch: RunWatch,
    stopping: Event,
    purse: Purse | None = None,
    meter: MetricsFile | None = None,
) -> Tally | State:
    """Compute consecutive units of one stage, and what becomes ready meanwhile: one Prefect task run, one dask future for each unit."""
    logger = get_run_logger()
    if stopping.is_set():
        return Cancelled(message=STOPPED)
    done = Tally()
    watch.begin(batch)

    def note(record: Record) -> None:
        done.add(record)
        watch.add(batch, record)
        if purse:
            purse.add(output, record)
        if meter:
            meter.add(record)
        if stopping.is_set():  # what waits for a worker is let go
            raise StoppedError(STOPPED)

    def fail(text: str) -> None:
        done.fail(text)
        watch.fail(batch, text)
        if not stopping.is_set():
            logger.error(visible(text))

    try:
        run_units(scheduler, output, request_key, Capped(batch, purse, output), note, fail)
    except Exception:
        if not stopping.is_set():
            raise
    if stopping.is_set():  # what failed now failed because its worker was stopped
        watch.end(batch, "stopped")
        return Cancelled(message=STOPPED)
    logger.info(watch.end(batch, "done"))
    return done


def _tell(summary: RunSummary) -> str:
    """The result as Markdown, with a picture; its page is left in the output."""
    attached = [f"attached: {url}" for url in summary.attached]
    told = Told(
        summary.seconds,
        summary.failures,
        [*summary.skipped, *attached, *summary.warnings, *([summary.stopped] if summary.stopped else [])],
        summary.seams or None,
    )
    rate = f"{summary.voxels_per_second / 1e6:.2f} Mvoxel/s"
    line = f"{summary.computed:,} of {summary.blocks:,} blocks computed in this run, {rate}."
    text, problem = report_run(summary.output, told, [line])
    if problem:
        get_run_logger().warning(problem)
    return text
