"""What would stop a training at its first step, or make it do less than was asked; refused while planning. Reads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from unet_core.errors import JobError
from unet_core.training.census import Census
from unet_core.training.dataset_description import Dataset
from unet_core.training.fine_tuning import ENCODER
from unet_core.training.losses import check_factors
from unet_core.training.options import TrainingOptions
from unet_core.training.plan import Parent
from unet_core.training.targets import halo
from unet_core.wording import counted

MOST_PROCESSES = 1024


def check_ranks(options: TrainingOptions, ranks: int | None, threads: int | None) -> None:
    """Numbers of processes and threads.

    Raises:
        JobError: with the number.
    """
    for name, number in (("--ranks", ranks), ("--threads", threads)):
        if number is not None and not 1 <= number <= MOST_PROCESSES:
            raise JobError(f"{name} is {number}; 1 to {MOST_PROCESSES} are possible.")
    if ranks is not None and options.crops.per_step < ranks:
        raise JobError(
            f"{counted(ranks, 'rank')} share {counted(options.crops.per_step, 'crop')} a step; set crops.per_step to {ranks} or more."
        )


def check_network(options: TrainingOptions) -> None:
    """Arguments that are not free.

    Raises:
        JobError: naming the argument.
    """
    for name in ("in_channels", "classes"):
        if name in options.network.arguments:
            raise JobError(f"network.arguments.{name} follows from the data and the heads; leave it away.")


def check_heads(
    options: TrainingOptions, dataset: Dataset, dims: int, voxel_size: tuple[float, ...] | None, has_instances: bool
) -> None:
    """Heads against the data and the losses.

    Raises:
        InputError: naming the head.
    """
    for head in options.heads:
        check_factors(options.loss, head.kind)
        halo(head, dims, voxel_size)
        if head.kind in ("affinities", "distance") and not has_instances:
            raise JobError(f"Head '{head.name}' of {head.kind} is made from instances; the data set has labels of classes only.")
        for region, names in head.regions.items() if head.kind == "regions" else ():
            unknown = [name for name in names if name not in dataset.class_names]
            if unknown or not names:
                raise JobError(
                    f"Region '{region}' of head '{head.name}' is made of {', '.join(unknown) or 'nothing'}; the data set has the classes "
                    f"{', '.join(dataset.class_names)}."
                )


def check_scores(options: TrainingOptions, names: Sequence[str], has_validation: bool) -> None:
    """What the best checkpoint, and the end, are chosen by.

    Raises:
        JobError: if there is no such score, or no validation to wait for.
    """
    if options.best not in names:
        raise JobError(f"Option best is '{options.best[:60]}', which is no score of this training; it has {', '.join(names)}.")
    if options.patience is not None and not has_validation:
        raise JobError(
            f"Option patience is {options.patience}, but nothing is for validation; set it to null, or split the data."
        )


def check_positions(options: TrainingOptions, census: Census) -> None:
    """Whether there is a border to draw crops around.

    Raises:
        JobError: if there is none.
    """
    if options.crops.positions == "border" and not census.border_count:
        raise JobError(
            "crops.positions is 'border', and no two annotated voxels of different classes or instances touch; set it to 'class'."
        )


def check_frozen(parent: Parent | None, part: Literal["encoder"] | None) -> None:
    """Whether what is to stay was trained.

    Raises:
        JobError: naming the tensors that were not.
    """
    fresh = [name for name in parent.new if name.partition(".")[0] in ENCODER] if parent is not None and part else []
    if fresh:
        raise JobError(
            f"--freeze {part} would keep initial values: the model of --init has no {', '.join(fresh[:3])} of this shape (other channels?); "
            "leave --freeze away."
        )
