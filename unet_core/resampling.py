"""From the voxel size of an image to that of a model, where no level of the image has it. Reads no voxel."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from unet_core.errors import VolumeError
from unet_core.volumes import Volume
from unet_core.volumes.resampled import ResampledVolume, ratio_of

if TYPE_CHECKING:
    from unet_core.job import SegmentationJob
    from unet_core.plan import Plan

MOST_COARSER, MOST_FINER = 32, 8  # beyond these, one of the two voxel sizes is most likely wrong
Sizes = tuple[float, ...]


def finest_that_suffices(sizes: Sequence[Sizes | None], wanted: Sizes, tolerance: float) -> int:
    """The coarsest level whose voxels are no larger than the model's, so that little is read and nothing is lost; else the finest.

    Args:
        sizes: of the voxels of each level in micrometre, the finest first; the model's axes are the last.
        wanted: of the model's voxels.
        tolerance: by which they may be larger.
    """
    fine = [
        number
        for number, size in enumerate(sizes)
        if size is not None
        and all(have <= want * (1 + tolerance) for have, want in zip(size[-len(wanted) :], wanted, strict=True))
    ]
    return max(fine, default=0)


def resample(volume: Volume, size: Sizes, wanted: Sizes) -> Volume:
    """The volume at the model's voxel size; itself where it has it already.

    Args:
        volume: of the image, at one level.
        size: of its voxels in micrometre along its last axes, at least those of the model.
        wanted: of the model's.

    Raises:
        VolumeError: if the two are so different that one is most likely wrong.
    """
    have = size[-len(wanted) :]
    ratios = [ratio_of(want, own) for want, own in zip(wanted, have, strict=True)]
    if not all(Fraction(1, MOST_FINER) <= ratio <= MOST_COARSER for ratio in ratios):
        raise VolumeError(
            f"The model was trained at {in_um(wanted)}, level {volume.level} of {volume.url} has {in_um(have)}: more than {MOST_COARSER} times "
            f"finer or {MOST_FINER} times coarser is not resampled; correct the voxel size with --voxel-size."
        )
    if all(ratio == 1 for ratio in ratios):
        return volume
    lead = len(volume.spatial_axes) - len(ratios)  # sections that a 2D network sees one by one
    return ResampledVolume(volume, (Fraction(1),) * lead + tuple(ratios))


def resampling_of(volume: Volume) -> tuple[tuple[int, int], ...] | None:
    """What a plan keeps of it: numerator and denominator along each axis; None for a volume as it is."""
    if not isinstance(volume, ResampledVolume):
        return None
    return tuple((ratio.numerator, ratio.denominator) for ratio in volume.ratios)


def resampled_words(plan: Plan) -> str:
    """How the image of a plan is resampled."""
    ratios = [above / below for above, below in plan.resample or ()]
    own = [step / ratio for step, ratio in zip(plan.scale, ratios[-len(plan.scale) :], strict=True)]
    steps = " x ".join(f"{ratio:.4g}" for ratio in ratios)
    size = " x ".join(f"{step:.4g}" for step in own)
    return (
        f"{steps} voxels of {size} {plan.unit or '(no unit)'} make one: {plan.input.shape[-len(ratios) :]} become {plan.levels[0].shape}, means "
        "weighted by a triangle"
    )


def resampling_warnings(job: SegmentationJob, plan: Plan) -> list[str]:
    """What the user should know of it."""
    if job.resample and plan.resample is None:
        return ["The image has the model's voxel size, so that --resample changes nothing."]
    if any(above < below for above, below in plan.resample or ()):
        return [
            "Voxels of the image are larger than the model's: they are interpolated, and detail that the model may look for is not there."
        ]
    return []


def in_um(size: Sizes) -> str:
    """A voxel size in words."""
    return " x ".join(f"{step:.4g}" for step in size) + " um"
