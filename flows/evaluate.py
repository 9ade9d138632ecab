"""The Prefect flow that scores an archive: one task run a pair of images, a table, the worst cases. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from collections import deque
from typing import Any, Literal

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.evaluation import EvaluationJob, HeldOut, Teller, open_job
from unet_core.evaluation import METRICS, Evidence, OpeningOptions, Pair, ScoreTable, check_metrics, gather
from unet_core.evaluation.table import needs_of, row_of, tabulate
from unet_core.report.evaluation import evaluation_markdown

CONCURRENT_PAIRS = 2
MetricName = Literal[*METRICS]


@flow(
    name="evaluate-archive",
    description="Score predictions against references: a row for each pair, the mean with its interval, the worst cases.",
    flow_run_name="{prediction} against {reference}",
    task_runner=ThreadPoolTaskRunner(max_workers=CONCURRENT_PAIRS),
)
def evaluate_archive(
    prediction: str,
    reference: str,
    metrics: tuple[MetricName, ...] = ("iou", "dice"),
    options: OpeningOptions = OpeningOptions(),  # noqa: B008 - frozen, and shown in the form
    held_out: HeldOut | None = None,
    report: str | None = None,
) -> dict:
    """Score a prediction, or a folder of them, against references of the same names; or a model on a data set.

    Args:
        prediction: Result, image (labels or probability map), folder of either; with held_out a model.
        reference: Label image, or folder of them with the same names; with held_out the data set that the model was trained with.
        metrics: Scores; the first one tells which cases are the worst.
        options: What the numbers of both mean, where it is in doubt.
        held_out: Score a model on a data set; None where images are compared.
        report: HTML file of a page with scores and pictures of the worst cases.
    """
    logger = get_run_logger()
    job = EvaluationJob(
        prediction,
        reference,
        check_metrics(metrics),
        options,
        held_out,
        report,
    )
    job.check()
    sentences, pairs = open_job(job)
    for text in sentences:
        logger.info(text)
    teller = Teller(job, sentences, keeps_cases=True)
    names: list[str] = []
    evidence: list[Evidence] = []
    pending: deque[tuple[Pair, PrefectFuture]] = deque()

    def take() -> None:
        pair, future = pending.popleft()
        names.append(pair.name)
        evidence.append(future.result())
        teller.look(pair, evidence[-1], row_of(evidence[-1], job.metrics))

    for pair in pairs:  # no more of them are held than are scored at once
        pending.append((pair, score_pair.submit(pair, pair.name, job.metrics, job.options.memory_bytes)))
        if len(pending) > CONCURRENT_PAIRS:
            take()
    while pending:
        take()
    table = tabulate(names, evidence, job.metrics)
    evaluated = teller.evaluated(table)
    create_table_artifact(_rows(table), key="evaluation-scores", description=f"{prediction} against {reference}")
    create_markdown_artifact(
        evaluation_markdown(evaluated), key="evaluation-summary", description=f"{prediction} against {reference}"
    )
    return table.as_json() | {"meaning": list(sentences)}


@task(name="score", task_run_name="score {name}", retries=0, cache_policy=NO_CACHE, persist_result=False)
def score_pair(pair: Pair, name: str, metrics: tuple[str, ...], memory_bytes: int) -> Evidence:
    """Count what the scores of one pair need."""
    evidence = gather(pair, needs_of(metrics), memory_bytes)
    row = row_of(evidence, metrics)
    get_run_logger().info("%s: %s", name, ", ".join(f"{score} {value:.4f}" for score, value in row.items()))
    return evidence


def _rows(table: ScoreTable) -> list[dict[str, Any]]:
    """One row an image, then their mean and its interval."""
    rows: list[dict[str, Any]] = [{"image": name} | row for name, row in zip(table.names, table.rows, strict=True)]
    rows.append({"image": "mean"} | {entry.name: entry.mean for entry in table.summary})
    for number, end in enumerate(("from", "to")):
        ends = {entry.name: entry.interval[number] if entry.interval else float("nan") for entry in table.summary}
        rows.append({"image": f"95 % interval, {end}"} | ends)
    return [{key: "-" if value != value else value for key, value in row.items()} for row in rows]
