"""The Prefect flow that segments an archive: one flow run, a task run an image (or few), one table. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from uuid import UUID

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.archive_run import (
    MOST_AT_ONCE,
    ArchiveSnapshot,
    Board,
    StoppedError,
    check_archive,
    images_at_once,
    on_cluster,
    open_meter,
    open_purse,
    segment_image,
)
from flows.claims import flow_claim
from flows.clusters import Workers
from flows.live_artifacts import Content, Live, LiveArtifacts, Shown
from flows.options import prices_of
from flows.printing import visible
from unet_core.archives.job import ArchiveJob
from unet_core.archives.summary import ArchiveSummary, ImageRow
from unet_core.errors import UnetCoreError

MOST_TASKS = 400  # task runs of an archive; of more images a task run takes several, one after the other
PROGRESS_SECONDS = 2.0  # between updates in the UI
_ROWS = 5000  # of the table in the UI; all are in archive.csv

STOPPED = "The archive was stopped; what is committed stays."


class PartialArchiveError(UnetCoreError):
    """Some images failed; the others are complete."""

    def __init__(self, summary: ArchiveSummary) -> None:
        first = next(row for row in summary.images if row.state != "complete")
        super().__init__(f"{summary.sentence()}; {first.result}: {first.reason or '; '.join(summary.notes)}")
        self.summary = summary


def _flow_run_name() -> str:
    job = runtime.flow_run.parameters["job"]
    asked = job if isinstance(job, ArchiveJob) else ArchiveJob(**job)
    images, *models = (place.rstrip("/").rpartition("/")[2] for place in (asked.image, *asked.models))
    return f"{images} with {', '.join(models)}"


@flow(
    name="segment-archive",
    description="Segment many images with a U-Net, each into an OME-Zarr of its own; finished ones are known by their ledgers.",
    flow_run_name=_flow_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_AT_ONCE),
)
def segment_archive(
    job: ArchiveJob,
    cluster: str = "local",
    workers: Workers = 2,
    at_once: int | None = None,
    budget: str | None = None,
    price: str | None = None,
    metrics: str | None = None,
) -> dict:
    """Segment the images of an archive.

    Args:
        job: Images, model, output and options.
        cluster: As of segment-volume.
        workers: Worker processes, once for all images: a number, or bounds such as 2..16.
        at_once: Images under way together.
        budget: What all results may take, earlier runs included: worker hours (2h, 90min) or money (5 EUR); no block is begun beyond it.
        price: What a worker costs for an hour, such as 2.50 EUR; that of UNET_PRICE unless told.
        metrics: File for the numbers of all images together, .prom as Prometheus reads it or .json; replaced every few seconds.
    """
    logger = get_run_logger()
    limit = prices_of(budget or None, price or None)[0]
    archive = check_archive(job, cluster, workers, at_once)
    count = images_at_once(cluster, at_once)
    done = sum(row.state == "complete" for row in archive.rows)
    logger.info("%s images, %s complete before, %s to do", len(archive.rows), done, len(archive.jobs))
    for row in archive.rows:
        if row.state == "failed":
            logger.error("%s: %s", visible(row.result), visible(row.reason))
    for note in archive.notes:
        logger.info(visible(note))
    progress, table = Shown(Content(0.0, f"{job.image} -> {job.output}")), Shown()

    def show(snapshot: ArchiveSnapshot) -> None:
        progress.content = Content(100 * snapshot.fraction, snapshot.sentence())

    board = Board(archive, show, open_purse(archive, limit), open_meter(archive, metrics or None))
    numbers = list(archive.jobs)
    size = max(1, -(-len(numbers) // MOST_TASKS))
    groups = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    lives = [
        Live("archive-progress", "progress", PROGRESS_SECONDS, progress),
        Live("archive-images", "table", PROGRESS_SECONDS, table),
    ]
    with LiveArtifacts(UUID(str(runtime.flow_run.id)), lives, logger):
        if groups and not board.is_spent:
            _run(groups, count, board, cluster, workers)
        summary = board.write()
        progress.content = Content(100.0, summary.sentence())
        table.content = Content([_shown(row) for row in summary.images[:_ROWS]], summary.sentence())
    if summary.status != "complete":
        raise PartialArchiveError(summary)
    return summary.as_json()


def _run(groups: list[list[int]], count: int, board: Board, cluster: str, workers: Workers) -> None:
    """Task runs, as many at a time as images are to be under way."""
    archive = board.archive
    waiting = iter(groups)
    running: set[PrefectFuture] = set()
    with on_cluster(archive, board, cluster, workers) as scheduler:
        while True:
            while len(running) < count and (group := next(waiting, None)) is not None:
                names = [archive.rows[number].result for number in (group[0], group[-1])]
                name = names[0] if len(group) == 1 else f"{names[0]} to {names[1]}"
                running.add(segment_images.submit(name, group, board, scheduler, cluster, workers))
            if not running:
                return
            ended = next(as_completed(list(running)))
            running.remove(ended)
            if board.broken is not None:
                raise board.broken


@task(name="images", task_run_name="{name}", retries=0, cache_policy=NO_CACHE, persist_result=False)
def segment_images(name: str, numbers: list[int], board: Board, scheduler: str | None, cluster: str, workers: Workers) -> State:
    """Segment images one after the other: plan, blocks on the workers that all share, audit.

    Prefect walks through all parameters of each task run, dataclasses and their fields included, but not through a board.
    """
    logger = get_run_logger()
    claim = flow_claim(runtime.flow_run.id, logger.info)
    wrong: list[str] = []
    complete = 0
    for number in numbers:
        try:
            row = segment_image(board.archive.jobs[number], board.row(number), scheduler, cluster, workers, board, claim)
            board.put(number, row)
        except StoppedError:
            return Cancelled(message=STOPPED)
        except Exception as error:
            board.broken = error
            raise
        if row.state == "complete":
            complete += 1
            logger.info("%s complete in %.1f s: %s", visible(row.result), row.seconds or 0.0, _found(row) or "nothing found")
        elif row.state == "waiting":
            logger.warning("%s waits: %s", visible(row.result), row.reason or "the budget is spent")
        else:
            logger.error("%s %s: %s", visible(row.result), row.state, visible(row.reason))
            wrong.append(visible(f"{row.result} {row.state}: {row.reason}"))
    return Failed(message="; ".join(wrong)[:2000]) if wrong else Completed(message=f"{complete} complete")


def _found(row: ImageRow) -> str:
    counts = [f"{count:,} voxels of {name}" for name, count in (row.classes or {}).items()]
    return ", ".join([*counts, *(f"{count:,} objects of {name}" for name, count in (row.objects or {}).items())])


def _shown(row: ImageRow) -> dict:
    """A row of the table in the UI."""
    return {
        "image": row.image,
        "result": row.result,
        "state": row.state,
        "classes": ", ".join(f"{name} {count:,}" for name, count in (row.classes or {}).items()),
        "objects": ", ".join(f"{name} {count:,}" for name, count in (row.objects or {}).items()),
        "seconds": "" if row.seconds is None else row.seconds,
        "reason": row.reason,
        "owner": row.owner,
        "project": row.project,
    }
