"""What a training is asked to do: heads, crops, losses, optimiser, length. Plain values, checked; knows no data and no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

IGNORE = 255  # number of the class that is never predicted, and left out of losses and scores

Positive = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]


class Options(BaseModel):
    """Immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassesHead(Options):
    """One class a voxel, soft-max."""

    kind: Literal["classes"] = "classes"
    name: str = "classes"


class RegionsHead(Options):
    """Regions that may overlap, sigmoid: each is the union of classes, e.g. ``{"tumour": ["core", "edge"], "core": ["core"]}``."""

    kind: Literal["regions"] = "regions"
    name: str = "regions"
    regions: dict[str, tuple[str, ...]] = Field(min_length=1)


class AffinitiesHead(Options):
    """Whether a voxel and the one at each offset, in voxels along (z,) y, x, belong to one instance; sigmoid."""

    kind: Literal["affinities"] = "affinities"
    name: str = "affinities"
    offsets: tuple[tuple[int, ...], ...] = Field(min_length=1, max_length=64)


class DistanceHead(Options):
    """Signed distance to the border of the instance, ``tanh(d / scale)``: above zero inside; no activation.

    Args:
        scale: in voxels of the last axis.
    """

    kind: Literal["distance"] = "distance"
    name: str = "distance"
    scale: Positive = 5.0


HeadOptions = Annotated[ClassesHead | RegionsHead | AffinitiesHead | DistanceHead, Field(discriminator="kind")]


class NetworkOptions(Options):
    """Which network of ``NETWORKS``; its channels and classes follow from the data."""

    name: str = "unet"
    arguments: dict[str, Any] = {}


class WeightMapOptions(Options):
    """``w_c(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2))``, Ronneberger et al. 2015, equation 2.

    Args:
        balance: weigh classes by the inverse of their frequency.
        w0: weight between two objects that touch; 0 for none.
        sigma: in voxels of the last axis.
        separate: turn voxels between touching instances into background, so that there is a border to learn.
    """

    balance: bool = True
    w0: Amount = 10.0
    sigma: Positive = 5.0
    separate: bool = False


class LossOptions(Options):
    """Weighted sum of losses.

    Args:
        cross_entropy: factor of the (binary) cross entropy, each voxel with its weight.
        dice: factor of the soft Dice loss (Milletari et al. 2016, section 3).
        distance: factor of the squared error of a distance head.
        reduction: "sum" over voxels as in the U-Net paper, or "mean", divided by the sum of the weights.
    """

    cross_entropy: Amount = 1.0
    dice: Amount = 0.0
    distance: Amount = 1.0
    reduction: Literal["sum", "mean"] = "mean"


class Augmentation(Options):
    """Ranges that each crop draws from; zero or one switches a part off.

    Args:
        deformation: std of the displacements of the elastic deformation's grid points, in voxels of the last axis; 10 in the paper.
        grid: grid points along each axis; 3 in the paper.
        rotation: largest angle, in degrees, in the plane of the last two axes; 180 for any.
        rotation_3d: by such an angle about an axis of any direction, for volumes as well resolved along z as in their sections.
        flip: mirror along each axis by chance.
        shift: largest shift along each axis, in voxels of the last one, beyond that of the drawn position.
        scale: smallest and largest magnification.
        histogram: chance that a crop gets the intensities of another training part, by matching histograms.
        gamma: largest exponent of the gray-value curve; its inverse is the smallest.
        gain: std of the factor of each channel, of its logarithm to be exact.
        offset: std of what is added to each channel, relative to its range of intensities.
        stain: std of the factors on haematoxylin and eosin, of their logarithms; RGB only.
        noise: largest std of additive Gaussian noise, relative to the range.
        blur: largest sigma of a Gaussian blur, in voxels of the last axis; three crops in ten are blurred.
        order: of the interpolation of intensities: 3 bicubic (2D only), 1 linear.
    """

    deformation: Amount = 10.0
    grid: Annotated[int, Field(ge=2, le=64)] = 3
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    rotation_3d: bool = False
    flip: bool = True
    shift: Amount = 0.0
    scale: tuple[Positive, Positive] = (0.8, 1.25)
    histogram: Fraction = 0.0
    gamma: Annotated[float, Field(ge=1, le=10)] = 1.4
    gain: Amount = 0.05
    offset: Amount = 0.05
    stain: Amount = 0.0
    noise: Amount = 0.03
    blur: Amount = 1.0
    order: Literal[1, 3] = 1


class CropOptions(Options):
    """Where crops are drawn, and how large.

    Args:
        target: voxels along each axis that the network predicts of a crop, at least; one number for all axes, or one an axis.
        positions: uniform over what is annotated, around a voxel of a class drawn uniformly, around a border, or by chance one of them (no
            borders where the labels have none).
        per_step: crops of one optimiser step, over all ranks.
    """

    target: Count | tuple[Count, ...] = 196
    positions: Literal["uniform", "class", "border", "mixed"] = "uniform"
    per_step: Count = 4


class OptimiserOptions(Options):
    """How weights are changed.

    Args:
        kind: optimiser.
        rate: learning rate, the largest of its schedule.
        momentum: of SGD and RMSprop.
        weight_decay: decoupled in AdamW, an L2 term else.
        schedule: constant; linear warm-up, then a half cosine to zero; a factor every ``decay_steps``.
        warmup_steps: of the cosine schedule.
        decay_factor: of the step schedule.
        decay_steps: likewise.
        bias_rate: factor on the rate for biases.
        clip: largest norm of the gradient; None for no limit.
        ema: decay of the moving average of the weights that is validated and saved; 0 for none.
    """

    kind: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    rate: Positive = 2e-3
    momentum: Fraction = 0.99
    weight_decay: Amount = 1e-4
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=1 << 31)] = 50
    decay_factor: Fraction = 0.1
    decay_steps: Count = 25_000
    bias_rate: Positive = 1.0
    clip: Positive | None = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingOptions(Options):
    """A whole training.

    Args:
        network: what is trained.
        heads: its outputs; their channels follow one another.
        weights: of voxels in the loss.
        loss: what is made small.
        augmentation: of crops.
        crops: where and how large.
        optimiser: how.
        normalisation: of intensities: mean and deviation of the training part, percentiles of each image, or none.
        steps: of the optimiser.
        seed: of initial weights, crops, augmentation and dropout.
        precision: of the network's arithmetic; weights and optimiser stay float32.
        validate_every: steps between validations, each with a picture and a checkpoint.
        checkpoint_every: steps between checkpoints.
        validation_crops: tiles that are scored, at most, spread over the validation part.
        best: score that chooses the best checkpoint, e.g. ``loss``, ``iou``, ``iou_nucleus``; larger is better but for ``loss``.
        patience: validations without a better score after which training stops; None for never.
    """

    network: NetworkOptions = NetworkOptions()
    heads: tuple[HeadOptions, ...] = Field(default=(ClassesHead(),), min_length=1, max_length=8)
    weights: WeightMapOptions = WeightMapOptions()
    loss: LossOptions = LossOptions()
    augmentation: Augmentation = Augmentation()
    crops: CropOptions = CropOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    normalisation: Literal["fixed", "image", "none"] = "fixed"
    steps: Count = 2000
    seed: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    validate_every: Count = 200
    checkpoint_every: Count = 100
    validation_crops: Count = 64
    best: str = "loss"
    patience: Count | None = None
