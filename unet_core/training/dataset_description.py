"""What ``dataset.yaml`` says: pairs of image and labels, the class map, the split. Checked values; opens nothing.

schema: 1
labels: classes                     # or: instances
classes:
  - {name: background, values: 0}
  - {name: nucleus, values: [1, 2], color: "#ff8c00"}
pairs:
  - {image: "images/*.png", labels: "labels/{name}.tif"}
split: {validation: 0.1, test: 0.2, seed: 0}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from unet_core.errors import InputError
from unet_core.job import Length
from unet_core.model_description import StatedNormalisation
from unet_core.normalisation import Normalisation
from unet_core.training.dataset_checks import check_dataset
from unet_core.validation import first_problem

Purpose = Literal["train", "validation", "test"]
PURPOSES: tuple[Purpose, ...] = ("train", "validation", "test")
MAX_CLASSES = 254  # class numbers are bytes; 255 is ignored, 254 marks values outside the class map
GEOJSON_SUFFIXES = (".geojson", ".json")
VALIDATION_FRACTION = 0.2
PALETTE = ("#000000", "#ff8c00", "#12b312", "#1e90ff", "#e6194b", "#9400d3", "#ffd700", "#00ced1", "#a0522d", "#ff69b4")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (int, str)) else value


Numbers = Annotated[tuple[Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)], ...], BeforeValidator(_listed)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
VoxelSize = Annotated[tuple[Length, ...], Field(min_length=2, max_length=3)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    @pydantic.model_serializer(mode="wrap")
    def _without_unset(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``normalisation`` came later and is written only where it is stated, so that the ids of earlier trainings stay."""
        return {name: value for name, value in dump(self).items() if name != "normalisation" or value is not None}


class Boxes(_Record):
    """Regions of one image for each purpose, as ``"first:last"`` of each axis; axes left away at the end are whole.

    ``train: "0:18"`` is the first 18 sections of a stack.
    """

    train: Texts = ()
    validation: Texts = ()
    test: Texts = ()


class Pair(_Record):
    """One image with its labels, or many: ``*`` and ``?`` in ``image`` stand for any letters of a name.

    Args:
        image: path or URL; relative to the data set's root.
        labels: label image, or GeoJSON as QuPath writes it; ``{name}`` is the image's name without its last suffix.
        level: resolution of the image, 0 the finest.
        series: which image of a file that holds several.
        time: which time point of the image.
        channels: of the image that the network sees, in this order; all unless told.
        labels_level: resolution of the label image.
        labels_series: which image of a label file that holds several.
        voxel_size_um: of the opened level along (z,) y, x, where the image does not say it or says it wrongly.
        boxes: regions for each purpose; what lies in none is not used.
        group: near-duplicates have the same one, and stay on one side of the split.
        part: purpose fixed by hand.
        normalisation: offset and scale of each channel, where the image is a crop and its own intensities say little: those of the
            whole image. For models that normalise by the image.
    """

    image: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    level: int = Field(default=0, ge=0)
    series: int | None = Field(default=None, ge=0)
    time: int | None = Field(default=None, ge=0)
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    labels_level: int = Field(default=0, ge=0)
    labels_series: int | None = Field(default=None, ge=0)
    voxel_size_um: VoxelSize | None = None
    boxes: Boxes | None = None
    group: str | None = Field(default=None, min_length=1)
    part: Purpose | None = None
    normalisation: Normalisation | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether the labels are outlines."""
        return self.labels.lower().endswith(GEOJSON_SUFFIXES)


class DatasetClass(_Record):
    """One class; its number is its place in the list, and number 0 is the background.

    Args:
        name: of the class, and of its annotations unless told otherwise.
        values: in label images.
        annotations: names of its classification in GeoJSON.
        color: ``"#rrggbb"``, in quotes.
    """

    name: str = Field(min_length=1, max_length=100)
    values: Numbers = ()
    annotations: Texts = ()
    color: str = Field(default="", pattern=r"^(#[0-9a-fA-F]{6})?$")


class Split(_Record):
    """How pairs that have neither ``part`` nor ``boxes`` are divided; groups stay together.

    Args:
        validation: fraction of those pairs; a fifth unless told.
        test: likewise; taken first.
        folds: instead of ``validation``: each pair is for validation in one of so many folds.
        seed: of the draw.
    """

    validation: float | None = Field(default=None, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    folds: int | None = Field(default=None, ge=2, le=1000)
    seed: int = Field(default=0, ge=0, le=1 << 62)

    @property
    def validation_fraction(self) -> float:
        return VALIDATION_FRACTION if self.validation is None else self.validation


class Dataset(_Record):
    """What to learn from.

    Args:
        name: short, for humans.
        source: where the data come from, and their licence; written into the model's provenance.
        root: folder or URL that pairs are relative to; itself relative to the folder of the yaml.
        labels: label images hold class values, or instance ids (above 0, each one object).
        classes: the class map; for instances background and one class of objects (several with GeoJSON).
        ignore: label values (numbers) and annotation classes (texts) that are neither learnt nor scored.
        unlabelled: what is a voxel that no annotation covers, or of value 0 if no class has it.
        regions: annotation classes that outline what was annotated; outside of them all is ignored.
        voxel_size_um: of the opened levels along (z,) y, x, where images do not say it.
        pairs: images with their labels.
        groups: find near-duplicates among the images that have no group.
        split: of the pairs whose purpose is not fixed.
        normalisation: that the model states, as in ``model.json``; by the recipe and the images unless told. Corrections of a model keep its
            own, which its weights are made for.
    """

    schema_number: Literal[1] = Field(alias="schema")
    name: str = Field(default="", max_length=100)
    source: str = ""
    root: str = "."
    labels: Literal["classes", "instances"]
    classes: tuple[DatasetClass, ...] = Field(default=(), max_length=MAX_CLASSES)
    ignore: Annotated[tuple[int | str, ...], BeforeValidator(_listed)] = ()
    unlabelled: Literal["ignore", "background"] | None = None
    regions: Texts = ()
    voxel_size_um: VoxelSize | None = None
    pairs: tuple[Pair, ...] = Field(min_length=1)
    groups: Literal["near-duplicates"] | None = None
    split: Split = Split()
    normalisation: StatedNormalisation | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)


_MODELS: dict[str, type[_Record]] = {"pairs": Pair, "boxes": Boxes, "classes": DatasetClass, "split": Split}


def make_dataset(fields: Mapping[str, Any], where: str = "data set") -> Dataset:
    """A data set from plain values, checked; classes without a colour get one.

    Args:
        fields: as in ``dataset.yaml``.
        where: they come from, for messages.

    Raises:
        InputError: naming the key, its value and what it may be.
    """
    try:
        dataset = Dataset(**fields)
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from None
    if dataset.labels == "instances" and not dataset.classes:
        dataset = dataset.model_copy(update={"classes": (DatasetClass(name="background"), DatasetClass(name="object"))})
    check_dataset(dataset, where)
    coloured = tuple(
        entry if entry.color else entry.model_copy(update={"color": PALETTE[number % len(PALETTE)]})
        for number, entry in enumerate(dataset.classes)
    )
    return dataset.model_copy(update={"classes": coloured})


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = first["loc"]
    if first["type"] == "extra_forbidden":
        above = [part for part in place[:-1] if isinstance(part, str)]
        fields = _MODELS[above[-1]].model_fields if above else Dataset.model_fields
        known = [field.alias or name for name, field in fields.items()]
        match = difflib.get_close_matches(str(place[-1]), known, n=1)
        at = f" in {'.'.join(str(part) for part in place[:-1])}" if above else ""
        hint = f", did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}."
        return f"unknown key '{place[-1]}'{at}{hint}"
    if place[-1:] == ("color",):
        return f'{first_problem(error)}; write it in quotes, as in "#ff8c00" (after a bare # the rest is a comment).'
    if first["type"] == "missing":
        return f"the key '{place[-1]}' is missing" + (f" in {'.'.join(map(str, place[:-1]))}." if place[:-1] else ".")
    return f"{first_problem(error)}."
