"""What a job may ask of its models: refused here before anything is chosen. Opens no image."""

from __future__ import annotations

from typing import Literal

from unet_core.ensemble import Ensemble
from unet_core.errors import FootprintError, JobError, ModelPackageError
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.inputs import LEVEL_TOLERANCE
from unet_core.instances_plan import InstancesPlan
from unet_core.job import SegmentationJob
from unet_core.model_description import Head, ModelDescription
from unet_core.plan import ImagePlan, LabelName
from unet_core.planning_affinities import plan_affinities
from unet_core.planning_hills import plan_hills
from unet_core.rules import refusal


def labels_of(ensemble: Ensemble) -> tuple[Head, Literal["classes", "regions"]]:
    """The head that the labels are read from, and its kind.

    Raises:
        ModelPackageError: if the models have none.
    """
    head = ensemble.description.label_head
    if head is None:
        kinds = ", ".join(other.kind for other in ensemble.description.heads)
        raise ModelPackageError(
            f"Model '{ensemble.description.name}' has only heads of kind {kinds}, which give no labels; train it with a head of kind classes "
            "or regions beside them."
        )
    return head, "regions" if head.kind == "regions" else "classes"


def check_approximate(job: SegmentationJob, ensemble: Ensemble) -> None:
    """Refuse a model that is not exact unless the job allows it, and tiles where there are none."""
    for package in ensemble.packages:
        if package.whole_box and not job.approximate:
            raise FootprintError(f"Model '{package.description.name}': {refusal(package.whole_box)}")
    if job.tile_shape is not None and not job.approximate:
        raise JobError(f"--tile-shape is {job.tile_shape}, but only --approximate runs in tiles; use --block-shape, or both.")
    if ensemble.whole_box and job.strip:
        raise JobError(f"--strip is {job.strip}, but layers of the model look at whole tiles; leave it out, or use --strip 0.")
    for package in ensemble.packages:
        if job.approximate and isinstance(package.network, OpaqueNetwork):
            raise JobError(
                f"Model '{package.description.name}' is TorchScript, whose layers are not read: whether any looks at the whole box is not "
                "known, so it cannot run in tiles; leave out --approximate."
            )


def plan_instances(
    job: SegmentationJob,
    model: ModelDescription,
    images: tuple[ImagePlan, ...],
    classes: tuple[LabelName, ...],
    spacing: tuple[float, ...],
    shape: Shape,
) -> InstancesPlan | None:
    """How instances are made, None for none.

    Args:
        model: whose labels and other heads they are made of.
        images: of the output.
        classes: of the labels.
        spacing: of the output's voxels.
        shape: of the output.

    Raises:
        JobError: if the job asks for what the labels do not give.
    """
    if job.instances == "none":
        given: dict[str, object] = {
            "instances-of": job.instances_of,
            "connectivity": job.connectivity > 1,
            "min-voxels": job.min_voxels > 1,
        }
        given |= {"no-measure": not job.measure, "depth": job.depth, "reach": job.reach}
        for name in (name for name, value in given.items() if value):
            raise JobError(f"--{name} is for instances, and none are asked for; add --instances components, or leave it out.")
        return None
    dims = len(spacing)
    if job.connectivity > dims:
        raise JobError(f"--connectivity is {job.connectivity}, the image has {dims} axes; use 1 to {dims}.")
    of_method = (
        plan_affinities(job, model, images, shape) if job.instances == "affinities" else plan_hills(job, model, images, spacing)
    )
    return InstancesPlan(
        method=job.instances,
        labels=_labels_to_part(job, images, classes),
        connectivity=job.connectivity,
        min_voxels=job.min_voxels,
        **of_method,
    )


def _labels_to_part(job: SegmentationJob, images: tuple[ImagePlan, ...], classes: tuple[LabelName, ...]) -> str:
    """Path of the label image whose objects get ids."""
    wanted = None if job.instances_of is None else job.instances_of[:60]
    labels = {image.label_value: image.path for image in images if image.kind == "labels"}
    if None in labels:
        if wanted is not None:
            raise JobError(
                f"--instances-of is '{wanted}', but the classes of the model do not overlap; leave it out, all get ids."
            )
        return labels[None]
    names = {entry.name: labels[entry.value] for entry in classes}
    if wanted is None and len(names) > 1:
        raise JobError(
            f"The model has the regions {', '.join(names)}, which may overlap; say whose objects get ids with --instances-of."
        )
    if wanted not in (None, *names):
        raise JobError(f"--instances-of is '{wanted}', the model has {', '.join(names)}.")
    return names[wanted or next(iter(names))]


def check_symmetries(job: SegmentationJob, model: ModelDescription, voxel_size: tuple[float, ...] | None) -> None:
    """Refuse symmetries that change what the model sees, or that its values do not follow.

    Raises:
        JobError: with both values and what to do.
    """
    if job.symmetries == "all" and voxel_size is not None:
        y, x = voxel_size[-2:]
        if abs(y / x - 1) > LEVEL_TOLERANCE:
            raise JobError(
                f"--symmetries all swaps y and x, whose voxels are {y:.4g} and {x:.4g} um: the model would see a stretched image; use "
                "--symmetries flips."
            )
    if job.symmetries != "none" and job.probabilities != "none":
        affinities = next((head for head in model.heads if head.kind == "affinities"), None)
        if affinities is not None:
            # A flipped pass gives the affinity of a voxel with its other neighbour, which is stored with that one.
            raise JobError(
                f"Head '{affinities.name}' of model '{model.name}' has affinities, whose offsets turn with the image, so that --symmetries "
                f"{job.symmetries} cannot average them; leave out --symmetries, or --probabilities {job.probabilities}."
            )
