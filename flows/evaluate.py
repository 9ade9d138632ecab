"""The Prefect flow that scores an archive: one task run a pair of images, a table artifact. The work is in unet_core.evaluation."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from typing import Any

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from unet_core.evaluation import Evidence, OpeningOptions, Pair, ScoreTable, check_metrics, gather, open_pairs
from unet_core.evaluation.table import needs_of, tabulate

CONCURRENT_PAIRS = 2


@flow(
    name="evaluate-archive",
    description="Score predictions against references: a row for each pair, the mean with its interval.",
    flow_run_name="{prediction} against {reference}",
    task_runner=ThreadPoolTaskRunner(max_workers=CONCURRENT_PAIRS),
)
def evaluate_archive(
    prediction: str, reference: str, metrics: tuple[str, ...] = ("iou", "dice"), options: dict[str, Any] | None = None
) -> dict:
    """Score a prediction, or a folder of them, against references of the same names.

    Args:
        prediction: see ``open_pairs``.
        reference: likewise.
        metrics: names of ``METRICS``.
        options: fields of ``OpeningOptions``; those of ``MeaningOptions`` under ``meaning``.
    """
    logger = get_run_logger()
    chosen = check_metrics(metrics)
    opening = OpeningOptions.of(options or {})
    pairs = open_pairs(prediction, reference, chosen, opening)
    for text in pairs[0].meaning.sentences():
        logger.info(text)
    futures = [score_pair.submit(pair, pair.name, chosen, opening.memory_bytes) for pair in pairs]
    wait(futures)
    table = tabulate([pair.name for pair in pairs], [future.result() for future in futures], chosen)
    create_table_artifact(_rows(table), key="evaluation-scores", description=f"{prediction} against {reference}")
    return table.as_json()


@task(name="score", task_run_name="score {name}", retries=0, cache_policy=NO_CACHE, persist_result=False)
def score_pair(pair: Pair, name: str, metrics: tuple[str, ...], memory_bytes: int) -> Evidence:
    """Count what the scores of one pair need."""
    evidence = gather(pair, needs_of(metrics), memory_bytes)
    row = tabulate([name], [evidence], metrics).rows[0]
    get_run_logger().info("%s: %s", name, ", ".join(f"{score} {value:.4f}" for score, value in row.items()))
    return evidence


def _rows(table: ScoreTable) -> list[dict[str, Any]]:
    """One row an image, then their mean."""
    rows = [{"image": name} | row for name, row in zip(table.names, table.rows, strict=True)]
    rows.append({"image": "mean"} | {entry.name: entry.mean for entry in table.summary})
    return [{key: "-" if value != value else value for key, value in row.items()} for row in rows]
