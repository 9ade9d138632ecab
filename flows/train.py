"""The Prefect flow that trains one model: plan, steps, validations as a table. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from uuid import UUID

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime

from flows.live_artifacts import Content, Live, LiveArtifacts, Shown
from flows.training import TrainingJob, train_plainly
from unet_core.training.watching import StepReport

_EVERY_SECONDS = 2.0  # between updates of an artifact


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
    progress, table = Shown(Content(0.0, f"{job.dataset} -> {job.model_out}")), Shown()
    validations: dict[int, dict] = {}  # by step: a group that starts anew repeats some

    def show(report: StepReport) -> None:
        for line in report.notes:
            logger.warning(line)
        for line in report.scored():
            validations[report.step] = {"step": report.step, "loss of crops": report.loss} | report.scores
            logger.info(line)
        progress.content = Content(100 * report.step / report.steps, report.sentence())
        if report.scores:  # also before a training fails
            table.content = Content(list(validations.values()), f"Validations of {job.model_out}")

    lives = [
        Live("training-progress", "progress", _EVERY_SECONDS, progress),
        Live("training-validations", "table", _EVERY_SECONDS, table),
    ]
    with LiveArtifacts(UUID(str(runtime.flow_run.id)), lives, logger):
        summary = train_plainly(job, show, logger.info)
        progress.content = Content(100.0, f"{job.model_out} is complete")
    return summary
