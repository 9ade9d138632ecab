"""The plan: a job resolved against image and model, as immutable JSON with an id. Knows no torch and reads no voxel."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from unet_core.geometry import Box, Shape
from unet_core.instances_plan import InstancesPlan
from unet_core.normalisation import Normalisation
from unet_core.stages import Stage, stages_of
from unet_core.symmetries import SYMMETRIES, SymmetrySet

SCHEMA = 1
Precision = Literal["float32", "tf32", "bfloat16"]
NUMERICS = 1  # raised when a release changes the bytes of a result
MAX_LEVELS = 12
INSTANCES_PATH = "labels/instances"
MEASURE = 1  # raised when a release changes the columns of the table of objects
ITEM_BYTES = {"uint8": 1, "float32": 4, "uint64": 8}
MAX_STRIDE = 1 << 16  # as of a footprint that is stated
SMALLEST_LEVEL = 256  # the pyramid ends when its longest axis is no longer than this


# A plan is read from outputs of others too, so that what code relies on is checked: sizes here, what they are to each other below.
Sizes = tuple[Annotated[int, Field(ge=1)], ...]
Counts = tuple[Annotated[int, Field(ge=0)], ...]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelName(_Record):
    """A class of the result: label value, name and colour."""

    value: int
    name: str
    color: str = Field(pattern="^#[0-9a-fA-F]{6}$")


class InputPlan(_Record):
    """The image as it was when the plan was made; the fingerprint tells whether it still is."""

    level: int
    series: int
    time: int
    channels: tuple[int, ...] | None
    axes: str
    shape: Shape
    dtype: str
    missing: Literal["error", "fill"]
    fingerprint: dict[str, str]


class ModelPlan(_Record):
    """The model, by content."""

    name: str
    sha256: str
    head: str
    kind: Literal["classes", "regions"]
    classes: tuple[LabelName, ...]
    normalisation: Normalisation


class FootprintPlan(_Record):
    """Margin and alignment of the network, in voxels; the largest and the common ones of several networks and symmetries."""

    before: Counts
    after: Counts
    stride: tuple[Annotated[int, Field(ge=1, le=MAX_STRIDE)], ...]
    skip: Counts = Field(description="of the network's output, before the write box; 0 for unpadded networks")
    read_shape: Sizes = Field(description="what a whole block reads; a tile, where there are tiles")


class LevelPlan(_Record):
    """One resolution of the output: its shape, and how much coarser it is than the level before."""

    shape: Sizes
    factor: Sizes


class HeadPlan(_Record):
    """A head of the model, beside that of the labels, whose values the output keeps."""

    name: str
    kind: Literal["classes", "regions", "affinities", "distance"]
    offsets: tuple[tuple[int, ...], ...] | None
    scale: float | None


class ImagePlan(_Record):
    """One multiscale image of the output.

    Args:
        path: of its group in the output; "" is the root.
        kind: ``probabilities`` (channels are classes), ``map`` (label values spread over 0..255, shown as image), ``labels``, or ``head``
            (values of another head; distances as the network gives them, all others as probabilities), or ``instances`` (ids).
        channels: number of channels, or None without a channel axis.
        dtype: of the stored voxels.
        label_value: for a labels image of a single region, its value; else None.
        head: of an image of that kind; None for all others, whose JSON leaves it out.
    """

    path: str
    kind: Literal["probabilities", "map", "labels", "head", "instances"]
    channels: int | None = Field(ge=1)
    dtype: str = Field(pattern="^(uint8|float32|uint64)$")
    label_value: int | None = None
    head: HeadPlan | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "head" or value is not None}

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path and any(part in ("", ".", "..") for part in path.split("/")):
            raise PydanticCustomError("path", "Image path should stay inside the output")
        return path

    def array_path(self, level: int) -> str:
        return f"{self.path}/{level}".lstrip("/")


class Plan(_Record):
    """Everything that decides the bytes of the result, and nothing else.

    ``id`` is the hash of all fields. Where image and model lie, which blocks are wanted, on what machine: not here.

    Args:
        resample: of the image's voxels, how many one voxel of the input is along each of its spatial axes, as numerator and denominator; None if
            the image is taken as it is, and left out of the JSON then.
        exact: False if the result depends on ``tile_shape``, because layers of the network look at a whole tile at once.
        tile_shape: of the boxes that such a network runs in, a grid from the image's origin; blocks are whole numbers of
            them. None for exact plans, whose JSON leaves it out.
        strip: rows of the network's first axis that it is fed at a time; None for whole boxes, and left out of the JSON then.
        further_models: whose probabilities are averaged with those of ``model``; left out of the JSON if there are none.
        symmetries: that probabilities are averaged over; left out of the JSON if it is "none".
        by_section: whether a 2D network sees the stack (z, y, x) one section after the other; left out of the JSON if not.
        images: that the segmentation gives; those of the instances are not among them.
        instances: how they are made; None for none, and left out of the JSON then.
        measure: version of the columns of the table of instances; None for no table, and left out of the JSON then.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    numerics: int = NUMERICS
    input: InputPlan
    model: ModelPlan
    further_models: tuple[ModelPlan, ...] = ()
    symmetries: SymmetrySet = "none"
    by_section: bool = False
    footprint: FootprintPlan
    precision: Precision
    threads: int
    resample: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] | None = None
    exact: bool | Literal["unproven"] = True
    ngff: Literal["0.5", "0.4"]
    block_shape: Sizes
    tile_shape: Sizes | None = None
    strip: int | None = Field(default=None, ge=1)
    chunk_shape: Sizes
    levels: tuple[LevelPlan, ...] = Field(min_length=1)
    images: tuple[ImagePlan, ...]
    instances: InstancesPlan | None = None
    measure: int | None = Field(default=None, ge=1)
    spatial_axes: str = Field(pattern="^z?y?x?$")
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None

    @model_validator(mode="after")
    def _fits(self) -> Plan:
        """Every shape has the plan's axes, blocks hold whole tiles and these whole strides, and there are labels."""
        near, dims = self.footprint, len(self.spatial_axes)
        shapes = {f"footprint.{name}": getattr(near, name) for name in ("before", "after", "stride", "skip", "read_shape")}
        shapes |= {name: getattr(self, name) for name in ("block_shape", "pass_shape", "chunk_shape", "scale", "translation")}
        shapes |= {f"levels.{number}": level.shape for number, level in enumerate(self.levels)}
        shapes |= {f"levels.{number}.factor": level.factor for number, level in enumerate(self.levels)}
        for name, shape in shapes.items():
            if len(shape) != dims:
                raise _unfit(f"{name} {shape} should have one number for each of the axes '{self.spatial_axes}'")
        for what, larger, smaller in (("tiles", self.block_shape, self.pass_shape), ("strides", self.pass_shape, near.stride)):
            if any(size % step for size, step in zip(larger, smaller, strict=True)):
                raise _unfit(f"a shape of {larger} should be a whole number of {what} of {smaller}")
        if self.by_section:
            alone = (near.before[0], near.after[0], near.stride[0], near.skip[0], (self.tile_shape or (1,))[0])
            if self.spatial_axes != "zyx" or alone != (0, 0, 1, 0, 1):
                raise _unfit("a plan by section should have the axes zyx, and nothing around a section along z")
        if not any(image.kind == "labels" for image in self.images):
            raise _unfit("images should hold labels")
        if len({image.path for image in self.all_images}) < len(self.all_images):
            raise _unfit("images should have a path of their own each")
        if any((image.kind == "head") != (image.head is not None) for image in self.images):
            raise _unfit("images of kind head, and no others, should name one")
        if self.instances and not any(image.kind == "labels" and image.path == self.instances.labels for image in self.images):
            raise _unfit(f"instances should be made of a label image of the plan, there is no {self.instances.labels}")
        if self.instances and self.instances.connectivity > dims:
            raise _unfit(
                f"connectivity {self.instances.connectivity} should be at most the number of axes of '{self.spatial_axes}'"
            )
        if self.instances and self.instances.halo and len(self.instances.halo) != dims:
            raise _unfit(f"a halo of {self.instances.halo} should have one number for each of the axes '{self.spatial_axes}'")
        if self.instances and self.instances.heights is not None and self.height_image is None:
            raise _unfit(
                f"{self.instances.method} should have its heights in an image of the plan, there is no {self.instances.heights}"
            )
        if self.instances and self.instances.tile is not None:
            self._check_tile(self.instances.tile)
        if self.measure and not self.instances:
            raise _unfit("a plan that measures should have instances")
        for other in self.further_models:
            if (other.head, other.kind, other.classes) != (self.model.head, self.model.kind, self.model.classes):
                raise _unfit(f"models {self.model.name} and {other.name} should have the same head and classes")
        return self

    def _check_tile(self, tile: Shape) -> None:
        """Tiles and the offsets of affinities have the plan's axes."""
        image = self.height_image
        offsets = (image.head.offsets if image and image.head else None) or ()
        if len(tile) != len(self.spatial_axes) or not offsets or {len(offset) for offset in offsets} != {len(tile)}:
            raise _unfit(
                f"tiles of {tile} and offsets {offsets} should have one number for each of the axes '{self.spatial_axes}'"
            )
        if image and image.channels != len(offsets):
            raise _unfit(f"affinities of {image.channels} channels should have as many offsets, not {len(offsets)}")

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The plan as stored."""
        without = {name for name in ("tile_shape", "strip", "instances", "measure", "resample") if getattr(self, name) is None}
        without |= {name for name in ("further_models", "symmetries") if getattr(self, name) in ((), "none")}
        without |= {"by_section"} if not self.by_section else set()
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude=without))

    @property
    def network_axes(self) -> str:
        """The axes that the network sees."""
        return self.spatial_axes[1:] if self.by_section else self.spatial_axes

    @property
    def models(self) -> tuple[ModelPlan, ...]:
        return (self.model, *self.further_models)

    @property
    def pass_count(self) -> int:
        """How often a network sees each voxel: once for each model and symmetry."""
        return len(self.models) * len(SYMMETRIES[self.symmetries])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Segmentation first, then one stage for each coarser level, then those of the instances and their table."""
        levels = [(level.shape, level.factor) for level in self.levels]
        halo = self.instances.halo if self.instances else None
        return stages_of(levels, self.block_shape, self.instances is not None, self.measure is not None, halo)

    @property
    def height_image(self) -> ImagePlan | None:
        """The image whose values are the heights of a watershed, or the affinities."""
        kind = {"boundary-watershed": "probabilities", "learnt-distance": "head", "affinities": "head"}.get(
            self.instances.method if self.instances else ""
        )
        found = (image for image in self.images if self.instances and image.path == self.instances.heights)
        return next((image for image in found if image.kind == kind), None)

    @property
    def instance_image(self) -> ImagePlan | None:
        """The ids of instances, a label image of its own."""
        return ImagePlan(path=INSTANCES_PATH, kind="instances", channels=None, dtype="uint64") if self.instances else None

    @property
    def all_images(self) -> tuple[ImagePlan, ...]:
        """Every image of the output."""
        return (*self.images, self.instance_image) if self.instance_image else self.images

    def images_of(self, stage: Stage) -> tuple[ImagePlan, ...]:
        """The images whose voxels the units of a stage write."""
        if stage.writes_instances:
            return self.all_images[len(self.images) :]
        return self.images if stage.kind in ("segment", "level") else ()

    @property
    def pass_shape(self) -> Shape:
        """What one forward pass gives: a tile where there are tiles, else a block."""
        return self.tile_shape or self.block_shape

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def raw_bytes(self) -> int:
        """Size of the output before compression."""
        return sum(
            ITEM_BYTES[image.dtype] * (image.channels or 1) * Box.from_shape(level.shape).voxel_count
            for image in self.all_images
            for level in self.levels
        )


def _unfit(text: str) -> PydanticCustomError:
    return PydanticCustomError("plan", "{text}", {"text": text})


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, the same bytes for the same content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def pyramid(shape: Shape, voxel_size: tuple[float, ...] | None) -> tuple[LevelPlan, ...]:
    """The levels of the output, the finest first.

    Each level halves the axes that are sampled finest, so that voxels of anisotropic volumes become isotropic, until the
    longest axis has at most 256 voxels.
    """
    levels = [LevelPlan(shape=shape, factor=(1,) * len(shape))]
    spacing = list(voxel_size or (1.0,) * len(shape))
    while max(levels[-1].shape) > SMALLEST_LEVEL and len(levels) < MAX_LEVELS:
        current = levels[-1].shape
        finest = min(step for step, size in zip(spacing, current, strict=True) if size > 1)
        factor = tuple(2 if size > 1 and step < 2 * finest else 1 for step, size in zip(spacing, current, strict=True))
        spacing = [step * more for step, more in zip(spacing, factor, strict=True)]
        levels.append(LevelPlan(shape=tuple(-(-size // more) for size, more in zip(current, factor, strict=True)), factor=factor))
    return tuple(levels)
