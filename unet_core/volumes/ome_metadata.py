"""What ``multiscales`` of OME-Zarr (0.4, 0.5) say of an image: axes, levels, lengths. Knows nothing of storage or arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_core.errors import VolumeError
from unet_core.volumes.units import UNIT_UM, unit_name
from unet_core.volumes.zarr_codecs import REWRITE
from unet_core.volumes.zarr_nodes import Node, group_path

VERSIONS = ("0.4", "0.5")
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Transform:
    """Where the voxels of one level lie: steps along each axis (None when not stated) and the centre of the first."""

    scale: Numbers | None
    translation: Numbers


@dataclass(frozen=True)
class Multiscale:
    """One image of several levels.

    Args:
        axes: a subset of ``tczyx`` in that order.
        units: of each axis, as written.
        paths: of the levels in their group, the finest first.
        document: as written.
    """

    axes: str
    units: tuple[str | None, ...]
    paths: tuple[str, ...]
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Lengths:
    """Units of the spatial axes of an image.

    Args:
        unit: in which to state lengths, one for all axes; None when not known or not common to all.
        factors: from what is written to ``unit``, of each axis.
        to_um: from what is written to micrometre; None when the image does not say it.
    """

    unit: str | None
    factors: Numbers
    to_um: Numbers | None


def multiscale_of(node: Node, series: int | None, url: str) -> Multiscale:
    """Check the chosen one of the ``multiscales`` of a group.

    Raises:
        VolumeError: naming what is wrong, and the others if there are several and none is chosen.
    """
    entries = node.attributes.get("multiscales")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise VolumeError(f"multiscales of {url} must be a list of objects; {REWRITE}.")
    if len(entries) > 1 and series is None:
        names = "; ".join(f"--series {number}: {str(entry.get('name'))[:40]}" for number, entry in enumerate(entries[:12]))
        raise VolumeError(f"{url} holds {len(entries)} images: {names}; choose one.")
    if not 0 <= (series or 0) < len(entries):
        raise VolumeError(f"series {series} of {url} does not exist; it has 0 to {len(entries) - 1}.")
    entry = entries[series or 0]
    if _version(node, entry) not in VERSIONS:
        raise VolumeError(
            f'version "{str(_version(node, entry))[:20]}" of OME-Zarr in {url} is not read; {" and ".join(VERSIONS)} are, convert it.'
        )
    axes, units = _axes(entry.get("axes"), url)
    datasets = entry.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise VolumeError(f"datasets of {url} lists no level; {REWRITE}.")
    stated = [dataset.get("path") if isinstance(dataset, dict) else None for dataset in datasets]
    paths = tuple(group_path(path, f"level {number}", url) for number, path in enumerate(stated))
    return Multiscale(axes, units, paths, entry)


def channel_names(node: Node) -> tuple[list[str | None], list[str | None]]:
    """Names and colours of all channels, by the ``omero`` of a group; empty where it says nothing of use."""
    omero = node.attributes.get("omero")
    entries = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], []
    texts = [[entry.get(key) if isinstance(entry.get(key), str) else None for entry in entries] for key in ("label", "color")]
    return texts[0], texts[1]


def find_level(node: Node, path: str) -> tuple[int, int] | None:
    """Series and level of the array at ``path`` in a group, if its ``multiscales`` list it in a version that we read."""
    entries = node.attributes.get("multiscales")
    for series, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict) or _version(node, entry) not in VERSIONS:
            continue
        datasets = entry.get("datasets")
        for level, dataset in enumerate(datasets if isinstance(datasets, list) else []):
            stated = dataset.get("path") if isinstance(dataset, dict) else None
            if isinstance(stated, str) and [part for part in stated.split("/") if part not in ("", ".")] == path.split("/"):
                return series, level
    return None


def transform_of(multiscale: Multiscale, level: int, url: str) -> Transform:
    """Where the voxels of a level lie, by its own transformations and then those of the whole image.

    Raises:
        VolumeError: if they are no numbers for each axis, or voxels of no size.
    """
    count = len(multiscale.axes)
    scale: Numbers | None = None
    translation: Numbers = (0.0,) * count
    for source in (multiscale.document["datasets"][level], multiscale.document):
        steps = source.get("coordinateTransformations")
        if steps is not None and not isinstance(steps, list):
            raise VolumeError(f"coordinateTransformations of {url} must be a list, it is {str(steps)[:40]}; {REWRITE}.")
        for step in steps or []:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "identity":
                continue
            written = step.get(kind) if kind in ("scale", "translation") else None
            if not isinstance(written, list) or len(written) != count or any(type(v) not in (int, float) for v in written):
                raise VolumeError(
                    f"coordinateTransformations of {url} has {str(kind)[:30]!r} of {str(written)[:40]} for {count} axes; "
                    "write a number for each."
                )
            values = tuple(_finite(value) for value in written)
            if kind == "scale":
                # On the whole image it stretches the translations of its levels too.
                translation = _each(lambda a, b: a * b, translation, values) if source is multiscale.document else translation
                scale = values if scale is None else _each(lambda a, b: a * b, scale, values)
                if not all(math.isfinite(value) and value > 0 for value in scale):
                    raise VolumeError(f"voxel size must be > 0: scale {str(written)[:80]} in {url}; correct it in the metadata.")
            else:
                translation = _each(lambda a, b: a + b, translation, values)
            if not all(math.isfinite(value) for value in translation):
                raise VolumeError(f"translation must be finite: {str(written)[:80]} in {url}; correct it in the metadata.")
    return Transform(scale, translation)


def lengths(axes: str, units: Sequence[str | None], shape: Sequence[int]) -> Lengths:
    """The unit to state lengths in, from those of the spatial ``axes``.

    Kept as written when it is the same for all, micrometre when they differ. A z axis of one section may leave its unit out:
    its thickness is then taken to be in the unit of the others, and plays no part in 2D.
    """
    names = [(unit_name(unit) or unit) if unit else None for unit in units]
    if axes.startswith("z") and names[0] is None and shape[0] == 1:
        names[0] = names[-1]
    ones = (1.0,) * len(axes)
    common = names[0] if len(set(names)) == 1 else None
    if any(name not in UNIT_UM for name in names):
        return Lengths(common, ones, None)
    to_um = tuple(UNIT_UM[name] for name in names if name)
    return Lengths(common, ones, to_um) if common else Lengths("micrometer", to_um, to_um)


def _version(node: Node, entry: Mapping[str, Any]) -> Any:
    return node.attributes.get("version") if node.zarr_format == 3 else entry.get("version", "0.4")


def _axes(value: Any, url: str) -> tuple[str, tuple[str | None, ...]]:
    if not isinstance(value, list) or not all(isinstance(axis, dict) and isinstance(axis.get("name"), str) for axis in value):
        raise VolumeError(f"axes: missing or unnamed in {url}; {REWRITE}.")
    names = [axis["name"] for axis in value]
    joined = "".join(names)
    shown = ", ".join(names)[:80]
    if len(set(names)) != len(names):
        raise VolumeError(f"axes: {shown} in {url} names one twice; correct it in the metadata.")
    ordered = "".join(axis for axis in "tczyx" if axis in joined)
    if any(len(name) != 1 for name in names) or joined != ordered or not joined.endswith("yx"):
        raise VolumeError(
            f"axes: {shown} in {url}; a subset of t c z y x in that order, ending in y x, is read: {REWRITE}, in this order."
        )
    for axis in value:
        if axis.get("unit") is not None and not isinstance(axis["unit"], str):
            raise VolumeError(f"unit of axis {axis['name']} of {url} must be a word, it is {str(axis['unit'])[:40]}; correct it.")
    return joined, tuple(axis.get("unit") for axis in value)


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any size
        return math.inf


def _each(operation: Any, first: Numbers, second: Numbers) -> Numbers:
    return tuple(operation(a, b) for a, b in zip(first, second, strict=True))
