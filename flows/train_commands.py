"""The command ``unet train``. Imports nothing heavy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows import settings
from flows.options import ClusterOrNone, Flag, Whole, WholeOrNone
from flows.printing import print_json
from unet_core.wording import counted

if TYPE_CHECKING:
    from flows.training import TrainingJob


def train(
    dataset: str,
    model_out: str,
    *,
    recipe: str = "default",
    set: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    root: str | None = None,
    fold: WholeOrNone = None,
    init: str | None = None,
    freeze: Literal["encoder"] | None = None,
    ranks: WholeOrNone = None,
    cluster: ClusterOrNone = None,
    threads: WholeOrNone = None,
    loaders: WholeOrNone = None,
    restarts: Whole = 3,
    device: str = "auto",
    plan_only: Flag = False,
    flow: Flag = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Train a network; run it again to resume.

    Args:
        dataset: dataset.yaml, or a folder of images and labels.
        model_out: Folder of the model; the training keeps its checkpoints, log and pictures in it.
        recipe: default, paper (U-Net 2015), fcn, fc_densenet or vnet.
        set: One setting of the recipe, e.g. steps=500 or optimiser.rate=1e-3; may be repeated.
        root: Where relative paths of DATASET start from; its own folder unless told.
        fold: Which fold is held out, of a data set with folds.
        init: Model to begin with (fine-tuning).
        freeze: encoder: the contracting path keeps its weights.
        ranks: Processes that share each step; 1 unless told.
        cluster: serial, local, or the address of a dask scheduler (as in `unet segment`); serial for one rank and local for more unless told.
        threads: CPU threads of each rank.
        loaders: Processes of each rank that read crops ahead.
        restarts: How often a group of ranks is formed anew after one died.
        device: auto, cpu, cuda or cuda:N.
        plan_only: Check and plan, and stop before the first step, e.g. for torchrun.
        flow: Run as a Prefect flow even when no Prefect API is configured.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.training import make_training_job, plan_job, train_plainly

    job = make_training_job(
        dataset=dataset,
        model_out=model_out,
        recipe=recipe,
        settings=set,
        root=root,
        fold=fold,
        init=init,
        freeze=freeze,
        ranks=ranks,
        cluster=cluster,
        threads=threads,
        loaders=loaders,
        restarts=restarts,
        device=device,
    )
    if plan_only:
        plan = plan_job(job, _note)
        print(
            f"planned in {model_out}: {counted(plan.options.steps, 'step')} of {counted(plan.options.crops.per_step, 'crop')} on "
            f"{counted(plan.ranks, 'rank')}"
        )
        return 0
    if flow or settings.prefect_api_url() is not None:
        summary = _train_flow(job)
    else:
        from flows.progress import training_progress

        show, close = training_progress()
        try:
            summary = train_plainly(job, show, _note)
        finally:
            close()
    _print_summary(summary)
    if json:
        print_json(summary)
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _train_flow(job: TrainingJob) -> dict[str, Any]:
    from flows.prefect_server import check_prefect, start_ephemeral
    from unet_core.training.dataset import load_dataset
    from unet_core.training.recipes import make_options

    api_url = settings.prefect_api_url()
    if api_url is not None:
        check_prefect(api_url)
    make_options(job.recipe, job.settings)  # what is mistyped is told in one line, before a server starts
    load_dataset(job.dataset, job.root)
    settings.apply_defaults()
    if api_url is None:
        start_ephemeral()
    from flows.train import train_model

    summary: dict[str, Any] = train_model(job)
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"complete: {summary['model']} after {summary['steps']} steps, the best after {summary['best_step']}")
    for name, value in summary["validation"].items():
        print(f"  validation {name}: " + ("nothing to score" if value is None else f"{value:.4f}"))
    print(
        f"  log, pictures and curves: {summary['model']}/training (tensorboard --logdir {summary['model']}/training/tensorboard)"
    )
