"""The result as OME-Zarr: its metadata, and which stored object holds which block. Knows the plan, not the network.

ROOT            probabilities if kept, else the class map shown as image
ROOT/labels/..  label images: classes, or one per region; instances (ids of objects) if they are asked for
ROOT/heads/..   values of the model's other heads, if probabilities are kept
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from unet_core import shards
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.model_heads import Head
from unet_core.ome_documents import Ngff, group_documents, level_transforms, multiscale
from unet_core.plan import INSTANCES_PATH, HeadPlan, ImagePlan, LabelName, Plan
from unet_core.store import Store


def images_of(
    kind: str,
    classes: tuple[LabelName, ...],
    probabilities: str,
    others: tuple[Head, ...] = (),
    by_section: bool = False,
    has_instances: bool = False,
) -> tuple[ImagePlan, ...]:
    """The images that an output holds.

    Args:
        kind: of the head that gives the labels: ``classes`` or ``regions``.
        classes: of the model.
        probabilities: "none", "uint8" or "float32".
        others: the model's other heads, kept where probabilities are; distances, which may be negative, always as float32.
        by_section: whether a 2D model makes a stack: its affinities then are with voxels of the same section.
        has_instances: whether ids of objects get a folder beside the labels, which no region may have then.
    """
    heads: tuple[ImagePlan, ...] = ()
    lead = (0,) * by_section
    if probabilities != "none":
        heads = tuple(
            ImagePlan(
                path=f"heads/{folder}",
                kind="head",
                channels=len(head.channels),
                dtype="float32" if head.kind == "distance" else probabilities,
                head=HeadPlan(
                    name=head.name,
                    kind=head.kind,
                    offsets=head.offsets and tuple(lead + offset for offset in head.offsets),
                    scale=head.scale,
                ),
            )
            for folder, head in zip(
                _folder_names([(head.name, number) for number, head in enumerate(others, 1)]), others, strict=True
            )
        )
        root = ImagePlan(path="", kind="probabilities", channels=len(classes), dtype=probabilities)
    else:
        root = ImagePlan(path="", kind="map", channels=None if kind == "classes" else len(classes), dtype="uint8")
    if kind == "classes":
        return root, ImagePlan(path="labels/classes", kind="labels", channels=None, dtype="uint8"), *heads
    taken = [INSTANCES_PATH.removeprefix("labels/")] if has_instances else []
    folders = _folder_names([(entry.name, entry.value) for entry in classes], taken)
    regions = (
        ImagePlan(path=f"labels/{folder}", kind="labels", channels=None, dtype="uint8", label_value=entry.value)
        for folder, entry in zip(folders, classes, strict=True)
    )
    return root, *regions, *heads


def _folder_names(named: list[tuple[str, int]], taken: list[str] | None = None) -> list[str]:
    """A folder for each class or head, named like it in letters that every system has; its number (the label value) tells equal ones apart.

    Args:
        named: name and number of each.
        taken: names that none may have.
    """
    names: list[str] = []
    for own, number in named:
        name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in own)
        while name.lower() in (earlier.lower() for earlier in [*names, *(taken or [])]):  # some disks do not tell A from a
            name = f"{name}-{number}"
        names.append(name)
    return names


def create_output(store: Store, plan: Plan) -> None:
    """Put the metadata of every group and array; doing it again changes nothing."""
    for key, data in documents(plan).items():
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
    layout = _layout(plan, image, level)
    lead = (0,) if image.channels else ()
    block = BlockGrid(layout.shape, layout.shard_shape)
    assert values.shape == block.block(block.index(lead + coordinates)).shape
    return f"{image.array_path(level)}/{shards.object_name(layout, lead + coordinates)}", shards.encode(layout, values)


def decode_shards(plan: Plan, image: ImagePlan, level: int, stored: Mapping[str, bytes], box: Box) -> NDArray[Any]:
    """Voxels of ``box`` of one image at one level, of shape ([C,] *box.shape), from stored objects by their key; absent ones are 0."""
    folder = f"{image.array_path(level)}/"
    own = {key.removeprefix(folder): data for key, data in stored.items() if key.startswith(folder)}
    lead = (image.channels,) if image.channels else ()
    return shards.decode(_layout(plan, image, level), own, Box((0,) * len(lead) + box.start, lead + box.stop))


def _layout(plan: Plan, image: ImagePlan, level: int) -> shards.ShardLayout:
    lead = (image.channels,) if image.channels else ()
    return shards.ShardLayout(
        shape=lead + plan.levels[level].shape,
        shard_shape=lead + plan.block_shape,
        chunk_shape=None if plan.ngff == "0.4" else (1,) * len(lead) + plan.chunk_shape,
        dtype=image.dtype,
        axes="c" * len(lead) + plan.spatial_axes,
    )


def documents(plan: Plan) -> dict[str, bytes]:
    """Metadata of every group and array, by key."""
    made: dict[str, bytes] = {}
    label_names = [image.path.removeprefix("labels/") for image in plan.all_images if image.kind in ("labels", "instances")]
    made |= _group(plan, "labels", {"labels": label_names})
    if any(image.head for image in plan.images):
        made |= _group(plan, "heads", {})
    for image in plan.all_images:
        for level in range(len(plan.levels)):
            for key, data in shards.metadata(_layout(plan, image, level)).items():
                made[f"{image.array_path(level)}/{key}"] = data
        attributes: dict[str, Any] = {"multiscales": [_multiscale(plan, image)]}
        if image.kind in ("labels", "instances"):
            attributes["image-label"] = image_label(plan, image, plan.ngff)
        else:
            attributes["omero"] = {
                "channels": _head_channels(image, image.head) if image.head else _display_channels(plan, image)
            }
        made |= _group(plan, image.path, attributes)
    return made


def _group(plan: Plan, path: str, attributes: dict[str, Any]) -> dict[str, bytes]:
    return group_documents(plan.ngff, path, attributes)


def _multiscale(plan: Plan, image: ImagePlan) -> dict[str, Any]:
    method = {"labels": "mode", "instances": "nearest"}.get(image.kind, "mean")
    name = image.path.rpartition("/")[2] or plan.model.name
    transforms = level_transforms(plan.scale, plan.translation, [level.factor for level in plan.levels])
    return multiscale(plan.ngff, name, plan.spatial_axes, bool(image.channels), plan.unit, transforms, method)


def image_label(plan: Plan, image: ImagePlan, ngff: Ngff) -> dict[str, Any]:
    """What a label image says of itself: colours and names of its values, and the image that it lies in."""
    source = {"source": {"image": "../../"}}
    version = {"version": ngff} if ngff == "0.4" else {}
    if image.kind == "instances":  # their colours are the viewer's
        return version | source
    shown = [entry for entry in plan.model.classes if image.label_value in (None, entry.value)]
    return {
        **version,
        "colors": [
            {"label-value": entry.value, "rgba": [*bytes.fromhex(entry.color[1:]), 0 if entry.value == 0 else 255]}
            for entry in shown
        ],
        "properties": [{"label-value": entry.value, "name": entry.name} for entry in shown],
        **source,
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


def _head_channels(image: ImagePlan, head: HeadPlan) -> list[dict[str, Any]]:
    low = -1.0 if head.kind == "distance" else 0.0
    end = 255.0 if image.dtype == "uint8" else 1.0
    window = {"min": low, "max": end, "start": low, "end": end}
    labels = [f"{head.name} {','.join(map(str, offset))}" for offset in head.offsets or ()]
    labels = labels or [f"{head.name} {number}" for number in range(image.channels or 0)]
    return [{"label": label, "color": "FFFFFF", "window": window, "active": number == 0} for number, label in enumerate(labels)]
