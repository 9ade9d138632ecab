"""The result as OME-Zarr: its metadata, and blocks encoded as whole shards. Knows the plan, not the network.

ROOT            probabilities if kept, else the class map shown as image
ROOT/labels/..  label images: classes, or one per region
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from unet_core.geometry import Box, Shape
from unet_core.plan import ImagePlan, LabelName, Plan
from unet_core.store import Store

_ZSTD_LEVEL = 3


def images_of(kind: str, classes: tuple[LabelName, ...], probabilities: str) -> tuple[ImagePlan, ...]:
    """The images that an output holds.

    Args:
        kind: of the head: ``classes`` or ``regions``.
        classes: of the model.
        probabilities: "none", "uint8" or "float32".
    """
    if probabilities != "none":
        root = ImagePlan(path="", kind="probabilities", channels=len(classes), dtype=probabilities)
    else:
        root = ImagePlan(path="", kind="map", channels=None if kind == "classes" else len(classes), dtype="uint8")
    if kind == "classes":
        return root, ImagePlan(path="labels/classes", kind="labels", channels=None, dtype="uint8")
    regions = (
        ImagePlan(path=f"labels/{folder}", kind="labels", channels=None, dtype="uint8", label_value=entry.value)
        for folder, entry in zip(_folder_names(classes), classes, strict=True)
    )
    return root, *regions


def _folder_names(classes: tuple[LabelName, ...]) -> list[str]:
    """A folder for each class, named like it in letters that every system has; the label value tells equal ones apart."""
    names: list[str] = []
    for entry in classes:
        name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in entry.name)
        while name.lower() in (earlier.lower() for earlier in names):  # some disks do not tell A from a
            name = f"{name}-{entry.value}"
        names.append(name)
    return names


def create_output(store: Store, plan: Plan) -> None:
    """Put the metadata of every group and array; doing it again changes nothing."""
    for key, data in _metadata(plan).items():
        store.put(key, data)


def encode_shard(plan: Plan, image: ImagePlan, level: int, coordinates: Shape, values: NDArray[Any]) -> tuple[str, bytes | None]:
    """One unit's voxels of one image as the stored object that holds them.

    Args:
        image: of the plan.
        level: resolution.
        coordinates: of the unit in the grid of its stage, in blocks.
        values: of shape ([C,] *spatial); at the end of the array smaller than a block.

    Returns:
        Key in the output, and the bytes; None if the shard would hold only fill values, in which case no object may exist.
    """
    memory: dict[str, Any] = {}
    array = zarr.open_array(MemoryStore(memory | _array_metadata(plan, image, level)), mode="r+")
    start = tuple(position * size for position, size in zip(coordinates, plan.block_shape, strict=True))
    channel = (slice(None),) if image.channels else ()
    array[(*channel, *Box.from_shape(values.shape[len(channel) :], start).slices())] = values
    key = _shard_key(plan, image, coordinates)
    stored = array.store._store_dict.get(key)  # type: ignore[attr-defined]
    return f"{image.array_path(level)}/{key}", None if stored is None else stored.to_bytes()


def _shard_key(plan: Plan, image: ImagePlan, coordinates: Shape) -> str:
    parts = ((0,) if image.channels else ()) + coordinates
    return "/".join(([] if plan.ngff == "0.4" else ["c"]) + [str(part) for part in parts])


def decode_shards(plan: Plan, image: ImagePlan, level: int, shards: Mapping[str, bytes], box: Box) -> NDArray[Any]:
    """Voxels of ``box`` of one image at one level, of shape ([C,] *box.shape), from stored objects by their key; absent ones are 0."""
    folder = f"{image.array_path(level)}/"
    own = {key.removeprefix(folder): data for key, data in shards.items() if key.startswith(folder)}
    array = zarr.open_array(MemoryStore(_array_metadata(plan, image, level) | _buffers(own)), mode="r")
    return np.asarray(array[(*((slice(None),) if image.channels else ()), *box.slices())])


def _array_metadata(plan: Plan, image: ImagePlan, level: int) -> dict[str, Any]:
    return _buffers(_array_documents(plan.canonical(), image, level))


def _buffers(objects: Mapping[str, bytes]) -> dict[str, Any]:
    from zarr.core.buffer import default_buffer_prototype

    make = default_buffer_prototype().buffer.from_bytes
    return {key: make(data) for key, data in objects.items()}


@lru_cache(maxsize=256)
def _array_documents(canonical_plan: bytes, image: ImagePlan, level: int) -> dict[str, bytes]:
    plan = Plan.model_validate_json(canonical_plan)
    channels = (image.channels,) if image.channels else ()
    shape = (*channels, *plan.levels[level].shape)
    shard = (*channels, *plan.block_shape)
    chunk = (*((1,) * len(channels)), *plan.chunk_shape)
    names = (["c"] if channels else []) + list(plan.spatial_axes)
    store = MemoryStore()
    if plan.ngff == "0.5":
        zarr.create_array(
            store,
            shape=shape,
            chunks=chunk,
            shards=shard,
            dtype=image.dtype,
            compressors=ZstdCodec(level=_ZSTD_LEVEL, checksum=True),
            fill_value=0,
            dimension_names=names,
            zarr_format=3,
        )
    else:
        from numcodecs import Zstd

        zarr.create_array(
            store,
            shape=shape,
            chunks=shard,
            dtype=image.dtype,
            compressors=Zstd(level=_ZSTD_LEVEL, checksum=True),
            fill_value=0,
            zarr_format=2,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def _metadata(plan: Plan) -> dict[str, bytes]:
    documents: dict[str, bytes] = {}
    label_names = [image.path.removeprefix("labels/") for image in plan.images if image.kind == "labels"]
    documents |= _group(plan, "labels", {"labels": label_names})
    for image in plan.images:
        for level in range(len(plan.levels)):
            for key, data in _array_documents(plan.canonical(), image, level).items():
                documents[f"{image.array_path(level)}/{key}"] = data
        attributes: dict[str, Any] = {"multiscales": [_multiscale(plan, image)]}
        if image.kind == "labels":
            attributes["image-label"] = _image_label(plan, image)
        else:
            attributes["omero"] = {"channels": _display_channels(plan, image)}
        documents |= _group(plan, image.path, attributes)
    return documents


def _group(plan: Plan, path: str, attributes: dict[str, Any]) -> dict[str, bytes]:
    folder = f"{path}/" if path else ""
    if plan.ngff == "0.5":
        node = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **attributes}}}
        return {f"{folder}zarr.json": json.dumps(node, indent=1).encode()}
    return {f"{folder}.zgroup": b'{"zarr_format": 2}', f"{folder}.zattrs": json.dumps(attributes, indent=1).encode()}


def _multiscale(plan: Plan, image: ImagePlan) -> dict[str, Any]:
    channel = [{"name": "c", "type": "channel"}] if image.channels else []
    space = [{"name": name, "type": "space"} | ({"unit": plan.unit} if plan.unit else {}) for name in plan.spatial_axes]
    lead = [1.0] * len(channel)
    datasets = []
    for level, (scale, translation) in enumerate(_transforms(plan)):
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*lead, *scale]},
                    {"type": "translation", "translation": [*(0.0 for _ in lead), *translation]},
                ],
            }
        )
    version = {"version": plan.ngff} if plan.ngff == "0.4" else {}
    method = "mode" if image.kind == "labels" else "mean"
    name = image.path.rpartition("/")[2] or plan.model.name
    return {"name": name, **version, "axes": [*channel, *space], "datasets": datasets, "type": method}


def _transforms(plan: Plan) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Scale and translation of each level; the centre of a coarse voxel lies in the middle of those it stands for."""
    scale, translation = plan.scale, plan.translation
    result = []
    for level in plan.levels:
        translation = tuple(
            origin + (more - 1) / 2 * step for origin, more, step in zip(translation, level.factor, scale, strict=True)
        )
        scale = tuple(step * more for step, more in zip(scale, level.factor, strict=True))
        result.append((scale, translation))
    return result


def _image_label(plan: Plan, image: ImagePlan) -> dict[str, Any]:
    shown = [entry for entry in plan.model.classes if image.label_value in (None, entry.value)]
    return {
        **({"version": plan.ngff} if plan.ngff == "0.4" else {}),
        "colors": [
            {"label-value": entry.value, "rgba": [*bytes.fromhex(entry.color[1:]), 0 if entry.value == 0 else 255]}
            for entry in shown
        ],
        "properties": [{"label-value": entry.value, "name": entry.name} for entry in shown],
        "source": {"image": "../../"},
    }


def _display_channels(plan: Plan, image: ImagePlan) -> list[dict[str, Any]]:
    end = 1.0 if image.dtype == "float32" else 255.0
    window = {"min": 0.0, "max": end, "start": 0.0, "end": end}
    if not image.channels:
        return [{"label": "class map", "color": "FFFFFF", "window": window, "active": True}]
    return [
        {"label": entry.name, "color": entry.color[1:].upper(), "window": window, "active": entry.value != 0}
        for entry in plan.model.classes
    ]
