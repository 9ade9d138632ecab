"""A training as it is asked, planned and run: in this process or on a cluster. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.clusters import check_cluster
from flows.train_ranks import RESTARTS, Report, Supervision, train_on_cluster, train_serially
from unet_core.errors import JobError
from unet_core.training.recipes import RECIPES
from unet_core.training.watching import StepReport
from unet_core.validation import first_problem

if TYPE_CHECKING:
    from unet_core.training.plan import TrainingPlan


class TrainingJob(BaseModel):
    """What to train, on what, where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(title="Data set", description="dataset.yaml, or a folder of images and labels.")
    model_out: str = Field(title="Model", description="Folder of the model; the training keeps its checkpoints in it.")
    recipe: str = Field(
        "default",
        title="Recipe",
        description="A modern U-Net (default), the U-Net of 2015 as printed (paper), or another network.",
        json_schema_extra={"enum": list(RECIPES)},
    )
    settings: tuple[str, ...] = Field((), title="Settings", description="Of the recipe, e.g. steps=500 or optimiser.rate=1e-3.")
    root: str | None = Field(None, title="Root", description="Where relative paths of the data set start from.")
    fold: int | None = Field(None, title="Fold", description="Which one is held out, of a data set with folds.")
    init: str | None = Field(None, title="Initial model", description="Model to begin with (fine-tuning).")
    freeze: Literal["encoder"] | None = Field(None, title="Frozen part", description="Keeps the weights of the initial model.")
    ranks: int | None = Field(None, title="Ranks", description="Processes that share each step; 1 unless told.")
    cluster: str | None = Field(
        None, title="Cluster", description="serial, local, or a dask scheduler's address (tls://HOST:PORT)."
    )
    threads: int | None = Field(None, title="Threads", description="CPU threads of each rank.")
    loaders: int | None = Field(None, ge=0, le=1024, title="Loaders", description="Processes of each rank that read crops ahead.")
    restarts: int = Field(RESTARTS, ge=0, title="Restarts", description="How often a group is formed anew after a rank died.")
    device: str = Field("auto", title="Device", description="auto (a GPU if there is one), cpu, cuda, or cuda:N.")


def make_training_job(**fields: Any) -> TrainingJob:
    """A job from plain values, checked.

    Raises:
        JobError: naming the field that has no meaning.
    """
    try:
        return TrainingJob(**fields)
    except ValidationError as error:
        raise JobError(f"Training: {first_problem(error)}.") from None


def plan_job(job: TrainingJob, note: Callable[[str], None] = lambda line: None) -> TrainingPlan:
    """Plan a training, or find it planned; nothing is trained.

    Raises:
        InputError: naming what is wrong.
    """
    from unet_core.corrections.records import untouched
    from unet_core.training.planning import plan_training
    from unet_core.training.recipes import make_options

    network = next((setting for setting in job.settings if setting.startswith("network.")), None)
    if job.init and network:
        raise JobError(f"--init trains the network of {job.init}; leave --set {network} away.")
    options = make_options(job.recipe, job.settings)
    said = untouched(job.dataset)
    if said:
        note(said)
    asked = {"root": job.root, "fold": job.fold, "init": job.init, "freeze": job.freeze}
    return plan_training(job.dataset, job.model_out, options, **asked, ranks=job.ranks, threads=job.threads, note=note)


def train_plainly(
    job: TrainingJob,
    show: Callable[[StepReport], None] = lambda report: None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train without Prefect; run again, it goes on from the last checkpoint.

    Args:
        job: what to train.
        show: called with a report of a step at most twice a second on a cluster, else after every step; every validation.
        note: called with a line for what is worth one.

    Returns:
        The summary of the training.

    Raises:
        InputError: before any step, naming what is wrong, or that another process trains there.
        UnetCoreError: as the training met it; its checkpoints are kept.
    """
    from unet_core.predict import resolve_device
    from unet_core.store import absolute
    from unet_core.training.lock import only_one

    if job.cluster is not None:
        check_cluster(job.cluster, job.ranks or 1)
    device = str(resolve_device(job.device))  # a GPU that is not there is told first
    plan = plan_job(job, note)
    how = Supervision(ranks=plan.ranks, threads=plan.threads, device=device, restarts=job.restarts, loaders=job.loaders)
    cluster = job.cluster or ("serial" if plan.ranks == 1 else "local")

    def on_progress(report: Report) -> None:
        show(StepReport(**report))

    def on_restart(reason: str) -> None:
        note(f"the group of ranks starts anew: {reason}")

    with only_one(job.model_out):
        if cluster == "serial":
            return dict(train_serially(job.model_out, how, on_progress))
        return dict(train_on_cluster(absolute(job.model_out), cluster, how, on_progress, on_restart))
