"""What the numbers of a prediction and of a reference mean: which are foreground, classes, ids or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from unet_core.errors import InputError
from unet_core.metrics.maps import THRESHOLDS, Average, as_map
from unet_core.postprocess import (
    BOUNDARY_DEPTH,
    connected_components,
    remove_small,
    watershed_on_boundaries,
    watershed_on_distance,
)

PredictionIs = Literal["mask", "classes", "ids", "map"]
ReferenceIs = Literal["mask", "classes", "ids"]
Instances = Literal["components", "watershed", "boundary-watershed", "learnt-distance", "affinities", "given"]


@dataclass(frozen=True, kw_only=True)
class MeaningOptions:
    """How to read two images, and how to make instances of them.

    Raises:
        InputError: if a number has no meaning.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    label: Annotated[
        int | None,
        Field(title="Number", description="Of the class that is foreground, where numbers are classes; any but 0 unless told."),
    ] = None
    threshold: Annotated[float, Field(title="Threshold", description="Foreground of a map is above it (0 to 1).")] = 0.5
    thresholds: Annotated[
        tuple[float, ...], Field(title="Thresholds", description="Tried by the scores that look for the best one.")
    ] = THRESHOLDS
    instances: Annotated[
        Instances | None,
        Field(
            title="Instances",
            description="How objects are made of the prediction; components unless told, or as given if it holds ids of objects.",
        ),
    ] = None
    depth: Annotated[
        float | None,
        Field(title="Depth", description="Of a watershed: domes (um) or valleys (in probability) deeper than this part objects."),
    ] = None
    connectivity: Annotated[
        int, Field(title="Connectivity", description="Of components: how many axes a step to a neighbour may change.")
    ] = 1
    min_voxels: Annotated[int, Field(title="Smallest instance (voxels)", description="Smaller ones are background.")] = 0
    invert_prediction: Annotated[
        bool,
        Field(title="Invert prediction", description="What is low is foreground: for maps of membranes when cells are scored."),
    ] = False
    invert_reference: Annotated[bool, Field(title="Invert reference", description="What is 0 is foreground.")] = False
    ignore: Annotated[int | None, Field(title="Ignore", description="Value of the reference whose voxels are left out.")] = None
    average: Annotated[
        Average | None,
        Field(
            title="Average", description="Of Rand scores over sections: pairs added up (micro), or the mean of scores (macro)."
        ),
    ] = None

    def __post_init__(self) -> None:
        levels = (self.threshold, *self.thresholds)
        if not self.thresholds or not all(0 <= level < 1 for level in levels):
            raise InputError(f"Thresholds are {', '.join(f'{level:g}' for level in levels)}; they lie in 0 to below 1.")
        if any(second <= first for first, second in pairwise(self.thresholds)):
            raise InputError(
                f"Thresholds are {', '.join(f'{level:g}' for level in self.thresholds)}; give them in ascending order."
            )
        if self.depth is not None and not self.depth > 0:
            raise InputError(f"Depth is {self.depth:g}; domes and valleys have more than 0.")
        if not 1 <= self.connectivity <= 3 or self.min_voxels < 0:
            raise InputError(
                f"Connectivity is {self.connectivity} and the smallest size {self.min_voxels}; give 1 to 3, and 0 or more voxels."
            )


@dataclass(frozen=True)
class Meaning:
    """What the numbers of two images mean.

    Args:
        prediction_is: ``mask`` (0 and anything else), ``classes``, ``ids`` of instances, or a probability ``map``.
        reference_is: likewise, no map.
        options: see there.
        ignored: what is left out, in words, where its value is nothing that a person chose.

    Raises:
        InputError: if they contradict each other.
    """

    prediction_is: PredictionIs
    reference_is: ReferenceIs
    options: MeaningOptions = MeaningOptions()
    ignored: str = ""

    def __post_init__(self) -> None:
        options = self.options
        inverted = [(options.invert_prediction, self.prediction_is), (options.invert_reference, self.reference_is)]
        if (True, "ids") in inverted:
            raise InputError("Ids of instances cannot be inverted: 0 is their background.")
        if options.instances == "given" and self.prediction_is != "ids":
            raise InputError(f"Instances of a prediction that holds {self.prediction_is} are not given; say how to make them.")
        if options.instances == "boundary-watershed" and self.prediction_is != "map":
            raise InputError(
                f"A watershed on boundaries needs a probability map, the prediction holds {self.prediction_is}; use 'watershed'."
            )
        if options.instances in ("learnt-distance", "affinities"):
            what = "A distance that a model predicts is" if options.instances == "learnt-distance" else "Affinities are"
            raise InputError(f"{what} not in an image; score the model against a dataset.yaml.")
        if options.instances not in (None, "given") and self.prediction_is == "ids":
            raise InputError(f"The prediction holds ids, so that its instances are given; leave '{options.instances}' away.")

    @property
    def has_classes(self) -> bool:
        """Whether class numbers of both are compared, rather than foreground: not where the user says what that is."""
        options = self.options
        told = options.label is not None or options.invert_prediction or options.invert_reference
        return self.prediction_is == self.reference_is == "classes" and not told

    @property
    def ids_are_given(self) -> bool:
        """Whether both hold ids, so that instances need no whole image in memory."""
        return self.prediction_is == self.reference_is == "ids" and not self.options.min_voxels

    def predicted_map(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Probability of foreground; 0 or 1 where the prediction is no map."""
        if self.prediction_is != "map":
            return self.predicted_foreground(values).astype(np.float32)
        found = as_map(values)
        return 1 - found if self.options.invert_prediction else found

    def predicted_foreground(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        if self.prediction_is == "map":
            return self.predicted_map(values) > np.float32(self.options.threshold)
        label = self.options.label if self.prediction_is == "classes" else None
        return _foreground(values, label, self.options.invert_prediction)

    def is_ignored(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Voxels of the reference that are left out."""
        ignore = self.options.ignore
        return np.zeros(values.shape, dtype=bool) if ignore is None else np.asarray(values == ignore)

    def reference_foreground(self, values: NDArray[Any]) -> NDArray[np.int8]:
        """1 on foreground, 0 on background, -1 where the reference is ignored."""
        label = self.options.label if self.reference_is == "classes" else None
        inside = _foreground(values, label, self.options.invert_reference).astype(np.int8)
        return np.where(self.is_ignored(values), np.int8(-1), inside)

    def predicted_instances(self, values: NDArray[Any], voxel_size: tuple[float, ...] | None) -> NDArray[Any]:
        """Ids of a whole image."""
        options = self.options
        if self.prediction_is == "ids":
            found = values
        elif options.instances == "watershed":
            mask = self.predicted_foreground(values)
            found = watershed_on_distance(mask, h=options.depth, voxel_size=voxel_size, connectivity=options.connectivity)
        elif options.instances == "boundary-watershed":
            depth = BOUNDARY_DEPTH if options.depth is None else options.depth
            boundaries, mask = 1 - self.predicted_map(values), self.predicted_foreground(values)
            found = watershed_on_boundaries(boundaries, mask, h=depth, connectivity=options.connectivity)
        else:
            found = connected_components(self.predicted_foreground(values), options.connectivity)
        return _without_small(found, options.min_voxels)

    def reference_instances(self, values: NDArray[Any]) -> NDArray[Any]:
        """Ids of a whole image; those of a mask or class are its components. Ignored voxels keep ``options.ignore``, or become -1."""
        if self.reference_is == "ids":
            return values
        inside = self.reference_foreground(values)
        return np.where(inside < 0, -1, connected_components(inside > 0, self.options.connectivity))

    def sentences(self) -> tuple[str, ...]:
        """What is foreground, for people."""
        return (
            f"prediction: {self.prediction_is}, {self._foreground_of(self.prediction_is, self.options.invert_prediction)}",
            f"reference: {self.reference_is}, {self._foreground_of(self.reference_is, self.options.invert_reference)}"
            + ("" if self.options.ignore is None else f"; {self.ignored or self.options.ignore} is ignored"),
        )

    def _foreground_of(self, holds: str, inverted: bool) -> str:
        if holds == "map":
            return f"foreground is {'1 - probability' if inverted else 'probability'} > {self.options.threshold:g}"
        if holds == "classes" and self.options.label is not None:
            return f"foreground is {'all but' if inverted else ''} class {self.options.label}".replace("  ", " ")
        return f"foreground is {'0' if inverted else 'all but 0'}"


def _foreground(values: NDArray[Any], label: int | None, inverted: bool) -> NDArray[np.bool_]:
    inside = values != 0 if label is None else values == label
    return ~inside if inverted else inside


def _without_small(ids: NDArray[Any], min_voxels: int) -> NDArray[Any]:
    if not min_voxels:
        return ids
    _, ranks = np.unique(ids, return_inverse=True)  # ids may be far apart
    return remove_small(np.where(ids == 0, 0, ranks.reshape(ids.shape) + 1), min_voxels)
