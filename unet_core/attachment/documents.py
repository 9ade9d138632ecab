"""Metadata of attached label images, and of the groups around them, merged into what is there. Nothing that is there is dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from unet_core import shards
from unet_core.attachment.place import MARK, Attachment, labels_listed
from unet_core.errors import LedgerError
from unet_core.ledger import Request
from unet_core.ome_documents import level_transforms
from unet_core.output import image_label
from unet_core.plan import ImagePlan, Plan
from unet_core.shards import ShardLayout
from unet_core.store import Store, is_remote, open_store
from unet_core.volumes.zarr_nodes import DOCUMENTS

_ABOVE = 3  # groups around an image: well, row of wells, plate
_TRIES = 5


def layout_of(attachment: Attachment, plan: Plan, image: ImagePlan, level: int) -> ShardLayout:
    """How an attached array is stored: as in the result, with the image's axes, in its version."""
    lead = (1,) * (len(attachment.axes) - len(plan.spatial_axes))
    return ShardLayout(
        shape=lead + plan.levels[level].shape,
        shard_shape=lead + plan.block_shape,
        chunk_shape=None if attachment.ngff == "0.4" else lead + plan.chunk_shape,
        dtype=image.dtype,
        axes=attachment.axes,
    )


def attached_levels(attachment: Attachment, plan: Plan) -> int:
    """How many levels of the result are copied: label images have no more than the image has from there on."""
    return min(len(plan.levels), attachment.level_count)


def group_keys(attachment: Attachment) -> list[str]:
    """Keys of the documents of the group of label images."""
    return ["labels/zarr.json"] if attachment.ngff == "0.5" else ["labels/.zgroup", "labels/.zattrs"]


def label_documents(attachment: Attachment, plan: Plan, request: Request, name: str, image: ImagePlan) -> dict[str, bytes]:
    """Metadata of a label image by key; what says where it came from first, so that it can be told if it is cut off there."""
    lead = (1,) * (len(attachment.axes) - len(plan.spatial_axes))
    levels = plan.levels[: attached_levels(attachment, plan)]
    transforms = level_transforms(attachment.scale, attachment.translation, [lead + level.factor for level in levels])
    multiscale = {
        "name": name,
        **({"version": "0.4"} if attachment.ngff == "0.4" else {}),
        "axes": list(attachment.axis_documents),
        "datasets": [
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(scale)},
                    {"type": "translation", "translation": list(translation)},
                ],
            }
            for number, (scale, translation) in enumerate(transforms)
        ],
        "type": "nearest" if image.kind == "instances" else "mode",
    }
    attributes = {"multiscales": [multiscale], "image-label": image_label(plan, image, attachment.ngff)}
    mark = {"plan": plan.id, "request": request.id, "labels": image.path}
    folder = f"labels/{name}"
    if attachment.ngff == "0.5":
        node = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **attributes}, MARK: mark}}
        documents = {f"{folder}/zarr.json": _bytes(node)}
    else:
        documents = {f"{folder}/.zattrs": _bytes({**attributes, MARK: mark}), f"{folder}/.zgroup": b'{"zarr_format": 2}'}
    for level in range(len(levels)):
        for key, data in shards.metadata(layout_of(attachment, plan, image, level)).items():
            documents[f"{folder}/{level}/{key}"] = data
    return documents


def list_labels(attachment: Attachment, added: list[str], removed: list[str]) -> None:
    """Change the list of label images of an image, and keep everything else that its group says.

    Raises:
        LedgerError: if another program writes the list all the time.
    """
    store = open_store(attachment.image_url)
    for _ in range(_TRIES):
        names = [name for name in labels_listed(store, attachment.ngff) if name not in removed]
        wanted = [*names, *(name for name in added if name not in names)]
        if wanted == labels_listed(store, attachment.ngff) and all(store.exists(key) for key in group_keys(attachment)):
            return
        for key, data in _labels_group(store, attachment, wanted).items():
            if not store.exists(key) or store.get(key) != data:
                store.put(key, data)
    if labels_listed(store, attachment.ngff) != wanted:
        raise LedgerError(
            f"The list of labels of {attachment.image_url} is written by another program too; run the same command again."
        )


def _labels_group(store: Store, attachment: Attachment, names: list[str]) -> dict[str, bytes]:
    """Documents of the group of labels, with these names; the list comes last."""
    if attachment.ngff == "0.4":
        group = {} if store.exists("labels/.zgroup") else {"labels/.zgroup": b'{"zarr_format": 2}'}
        return group | {"labels/.zattrs": _bytes((_read(store, "labels/.zattrs") or {}) | {"labels": names})}
    node = _read(store, "labels/zarr.json") or {"zarr_format": 3, "node_type": "group", "attributes": {}}
    ome = node["attributes"].get("ome", {"version": "0.5"})
    node["attributes"]["ome"] = ome | {"labels": names}
    return {"labels/zarr.json": _bytes(node)}


def consolidate(attachment: Attachment, keys: list[str]) -> None:
    """Take changed documents over into the consolidated metadata of the image and of the groups around it, where there are any.

    Readers that use these look at no other document.

    Args:
        attachment: of the image.
        keys: of documents of the image's group; those that are gone are left out.
    """
    image = open_store(attachment.image_url)
    for url, inside in _groups(attachment.image_url):
        store = open_store(url)
        key = "zarr.json" if attachment.ngff == "0.5" else ".zmetadata"
        document = _read(store, key)
        held = document and (document.get("consolidated_metadata") if attachment.ngff == "0.5" else document)
        metadata = held.get("metadata") if isinstance(held, dict) else None
        if document is None or not isinstance(metadata, dict):
            continue
        for changed in keys:
            name = inside + (changed.removesuffix("/zarr.json") if attachment.ngff == "0.5" else changed)
            found = _read(image, changed)
            if found is not None:
                metadata[name] = found
            else:
                metadata.pop(name, None)
        if store.get(key) != (data := _bytes(document)):
            store.put(key, data)


def _groups(url: str) -> Iterator[tuple[str, str]]:
    """The group of an image and those around it, without gaps, and the path of the image in each, with a slash at its end."""
    inside = ""
    for _ in range(1 + _ABOVE):
        if (is_remote(url) and url.count("/") < 3) or not any(open_store(url).exists(name) for name in DOCUMENTS):
            return
        yield url, inside
        url, _, own = url.rpartition("/")
        inside = f"{own}/{inside}"


def _read(store: Store, key: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(store.get(key)))
    except FileNotFoundError:
        return None


def _bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()
