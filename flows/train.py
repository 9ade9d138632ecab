"""The Prefect flow that trains one model: plan, steps, validations as a table. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

import time

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from flows.training import TrainingJob, train_plainly
from unet_core.training.watching import StepReport

_EVERY_SECONDS = 1.0  # between updates of the progress artifact


def _flow_run_name() -> str:
    job = runtime.flow_run.parameters["job"]
    places = (job.dataset, job.model_out) if isinstance(job, TrainingJob) else (job["dataset"], job["model_out"])
    dataset, model = (place.rstrip("/").rpartition("/")[2] for place in places)
    return f"{model} on {dataset}"


@flow(
    name="train-model",
    description="Train a U-Net on one data set; resumes where an earlier run of the same job stopped.",
    flow_run_name=_flow_run_name,
)
def train_model(job: TrainingJob) -> dict:
    """Train one model.

    Args:
        job: Data set, model, options, and where.
    """
    logger = get_run_logger()
    artifact = create_progress_artifact(0.0, key="training-progress", description=f"{job.dataset} -> {job.model_out}")
    validations: dict[int, dict] = {}  # by step: a group that starts anew repeats some
    shown = 0.0

    def show(report: StepReport) -> None:
        nonlocal shown
        for line in report.notes:
            logger.warning(line)
        for line in report.scored():
            validations[report.step] = {"step": report.step, "loss of crops": report.loss} | report.scores
            logger.info(line)
        if report.scores or report.step == report.steps or time.monotonic() - shown >= _EVERY_SECONDS:
            shown = time.monotonic()
            update_progress_artifact(artifact, 100 * report.step / report.steps, description=report.sentence())

    try:
        summary = train_plainly(job, show, logger.info)
    finally:  # what was validated before a training failed is worth seeing
        if validations:
            create_table_artifact(
                list(validations.values()), key="training-validations", description=f"Validations of {job.model_out}"
            )
    update_progress_artifact(artifact, 100.0, description=f"{job.model_out} is complete")
    return summary
