"""Regions that objects are counted in: outlines drawn in QuPath, or the labels of another result of the same image. Computes no object.

Every region has a name, and some voxels of the image of the objects; regions may overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.exports.placing import Placing, place
from unet_core.geometry import Box, Shape
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.result import Result, open_result
from unet_core.store import is_remote, local_path
from unet_core.training.geojson import Outlines, paint, read_outlines
from unet_core.volumes import Volume

UNNAMED = "unnamed"  # outlines that have neither a name nor a classification
_TOLERANCE = 1.5  # coarser voxels that two results of one image may differ in length: what a pyramid rounds up


class Regions(Protocol):
    """Named parts of an image."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def url(self) -> str: ...

    def masks(self, box: Box) -> dict[int, NDArray[np.bool_]]:
        """Voxels of each region, by its number among the names, that has any in a box of the objects' image."""


@dataclass(frozen=True)
class DrawnRegions:
    """Outlines; those of one name are one region. A voxel belongs to it when its centre does.

    Args:
        names: of regions, in the order of their first outline.
        url: of the file.
        outlines: in voxels of the objects' image.
        numbers: of the region of each outline.
    """

    names: tuple[str, ...]
    url: str
    outlines: Outlines
    numbers: NDArray[np.int64]

    def masks(self, box: Box) -> dict[int, NDArray[np.bool_]]:
        ones = np.ones(len(self.numbers), dtype=np.int64)
        found = {}
        for number in np.unique(self.numbers[self._near(box)]).tolist():
            mask = paint(self.outlines, ones, box, 0, self.numbers == number) > 0
            if mask.any():
                found[number] = mask
        return found

    def _near(self, box: Box) -> NDArray[np.bool_]:
        """Outlines that may have voxels in a box."""
        bounds, (top, left), (bottom, right) = self.outlines.bounds, box.start[-2:], box.stop[-2:]
        return np.asarray((bounds[:, 0] < bottom) & (bounds[:, 2] > top) & (bounds[:, 1] < right) & (bounds[:, 3] > left))


@dataclass(frozen=True)
class LabelledRegions:
    """Classes of a result: a voxel of the objects' image belongs to the class of the nearest voxel there.

    Args:
        names: of classes, without the background.
        url: of the result.
        labels: label image and value of each.
        scale: voxels of the result for one of the objects' image, along each axis.
        offset: position in the result, in its voxels, of the centre of the first voxel of the objects' image.
    """

    names: tuple[str, ...]
    url: str
    labels: tuple[tuple[Volume, int], ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def masks(self, box: Box) -> dict[int, NDArray[np.bool_]]:
        nearest = [
            np.clip(np.floor(np.arange(first, last) * step + start + 0.5).astype(np.int64), 0, size - 1)
            for first, last, step, start, size in zip(
                box.start, box.stop, self.scale, self.offset, self.labels[0][0].spatial_shape, strict=True
            )
        ]
        read = Box(tuple(int(places[0]) for places in nearest), tuple(int(places[-1]) + 1 for places in nearest))
        local = np.ix_(*(places - places[0] for places in nearest))
        values: dict[str, NDArray[np.uint8]] = {}
        found = {}
        for number, (volume, value) in enumerate(self.labels):
            if volume.url not in values:
                values[volume.url] = volume.read(read)[0]
            if (values[volume.url] == value).any():
                mask = (values[volume.url] == value)[local]
                if mask.any():
                    found[number] = mask
        return found


def open_regions(url: str, plan: Plan, request: Request) -> Regions:
    """Regions of the image that a result was made of.

    Args:
        url: of a GeoJSON file, or of a complete result of the same image, at any resolution.
        plan: of the result that has the objects.
        request: likewise.

    Raises:
        InputError: if it is neither, or not of the same image.
    """
    is_file = url.lower().endswith((".geojson", ".json")) if is_remote(url) else not local_path(url).is_dir()
    return _drawn(url, plan, request) if is_file else _labelled(url, plan)


def _drawn(url: str, plan: Plan, request: Request) -> DrawnRegions:
    if plan.spatial_axes not in ("yx", "zyx"):
        raise InputError(f"Outlines lie in y and x, the image has the axes {plan.spatial_axes}.")
    placing = place(plan, request)
    outlines = read_outlines(url, (1 / placing.factor[-2], 1 / placing.factor[-1]), placing.offset[-2:])
    own = [name or classification or UNNAMED for name, classification in zip(outlines.own_names, outlines.names, strict=True)]
    if not own:
        raise InputError(f"{url} has no outlines; export annotations from QuPath as GeoJSON.")
    names = tuple(dict.fromkeys(own))
    numbers = np.array([names.index(name) for name in own], dtype=np.int64)
    if plan.spatial_axes == "zyx":
        outlines, numbers = _in_sections(outlines, numbers, placing, plan.levels[0].shape[0])
    return DrawnRegions(names, url, outlines, numbers)


def _in_sections(
    outlines: Outlines, numbers: NDArray[np.int64], placing: Placing, depth: int
) -> tuple[Outlines, NDArray[np.int64]]:
    """Outlines drawn in sections of level 0, in those of the output: in the one that theirs lies in, and in all that lie in theirs."""
    shown_in: dict[int, set[int]] = {}
    for own in range(depth):
        shown_in.setdefault(placing.section(own), set()).add(own)
    for drawn in set(outlines.sections.tolist()):
        nearest = floor((drawn + 0.5 - placing.offset[0]) / placing.factor[0])
        shown_in.setdefault(drawn, set()).add(nearest)
    pairs = [(number, own) for number, drawn in enumerate(outlines.sections.tolist()) for own in sorted(shown_in[drawn])]
    which = [number for number, _ in pairs]
    repeated = replace(
        outlines,
        edges=tuple(outlines.edges[number] for number in which),
        names=tuple(outlines.names[number] for number in which),
        own_names=tuple(outlines.own_names[number] for number in which),
        sections=np.array([own for _, own in pairs], dtype=np.int64),
        bounds=outlines.bounds[which],
    )
    return repeated, numbers[which]


def _labelled(url: str, plan: Plan) -> LabelledRegions:
    result = open_result(url)
    if result.status.state != "complete":
        raise InputError(f"{url} is not complete; run unet segment again to finish it, then count objects in its regions.")
    scale, offset = _between(result, plan)
    images = [image for image in result.plan.images if image.kind == "labels"]
    volumes = {image.label_value: result.volume(image.path) for image in images}
    classes = [entry for entry in result.plan.model.classes if entry.value]
    labels = tuple((volumes[entry.value if entry.value in volumes else None], entry.value) for entry in classes)
    own = [entry.name for entry in classes]
    names = tuple(entry.name if own.count(entry.name) == 1 else f"{entry.name}_{entry.value}" for entry in classes)
    return LabelledRegions(names, url, labels, scale, offset)


def _between(regions: Result, plan: Plan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset from voxels of the objects' image to those of the regions, by the lengths that both state.

    Raises:
        InputError: if they are not of one image.
    """
    other = regions.plan
    shapes: tuple[Shape, Shape] = plan.levels[0].shape, other.levels[0].shape
    if plan.spatial_axes != other.spatial_axes:
        raise InputError(
            f"Objects have the axes {plan.spatial_axes} and the regions of {regions.url} {other.spatial_axes}; they must be equal."
        )
    if plan.unit != "micrometer" or other.unit != "micrometer":
        if shapes[0] != shapes[1]:
            raise InputError(
                f"Objects lie in {shapes[0]} voxels and the regions of {regions.url} in {shapes[1]}, and not both state their voxel size; "
                "segment with --voxel-size, or at the same level."
            )
        return (1.0,) * len(shapes[0]), (0.0,) * len(shapes[0])
    scale = tuple(own / coarse for own, coarse in zip(plan.scale, other.scale, strict=True))
    offset = tuple(
        (here - there) / coarse for here, there, coarse in zip(plan.translation, other.translation, other.scale, strict=True)
    )
    for axis, size, coarse, step in zip(plan.spatial_axes, *shapes, scale, strict=True):
        if abs(size * step - coarse) > _TOLERANCE * max(1.0, step):
            raise InputError(
                f"Along {axis} the objects' image is as long as {size * step:.1f} voxels of the regions of {regions.url}, which have {coarse}; "
                "give a result of the same image."
            )
    return scale, offset
