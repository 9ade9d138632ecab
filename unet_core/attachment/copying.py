"""The labels of a complete run copied into its image, block by block; the list of label images is written last."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from unet_core import output, shards
from unet_core.attachment.documents import (
    attached_levels,
    consolidate,
    group_keys,
    label_documents,
    layout_of,
    list_labels,
)
from unet_core.attachment.place import Attachment, mark_of
from unet_core.committed import read_objects
from unet_core.errors import LedgerError
from unet_core.ledger import Request
from unet_core.plan import ImagePlan, Plan
from unet_core.resume import wanted_units
from unet_core.stages import Stage
from unet_core.store import Store, open_store

_COPIERS = 4  # blocks at a time


def attach(attachment: Attachment, output_url: str, plan: Plan, request: Request) -> list[str]:
    """Copy classes and ids into the image that they were made of; the URLs of the label images there.

    Killed anywhere and called again it ends in the same bytes. What is there already and right is not written again.

    Args:
        attachment: where, as planned.
        output_url: of the complete result.
        plan: of the result.
        request: likewise.

    Raises:
        LedgerError: if what was read or written is not what it should be.
        ResumeError: if a label image of another origin has taken the name meanwhile.
    """
    attachment.check_free(plan)
    image, result, names = open_store(attachment.image_url), open_store(output_url), attachment.names(plan)
    outdated = [name for name in names if mark_of(image, name).get("request", request.id) != request.id]
    if outdated:  # more was segmented since: until all of it is there, there is nothing
        list_labels(attachment, added=[], removed=outdated)
        consolidate(attachment, group_keys(attachment))
    changed = group_keys(attachment)
    for name, source in names.items():
        documents = label_documents(attachment, plan, request, name, source)
        for key, data in documents.items():
            _put(image, key, data)
        changed += documents
        copy = _Copy(attachment, plan, request, result, image, name, source)
        with ThreadPoolExecutor(_COPIERS) as copiers:
            for _ in copiers.map(copy.unit, copy.units()):
                pass
        image.delete_leftovers(f"labels/{name}", below=True)
    list_labels(attachment, added=list(names), removed=[])
    consolidate(attachment, changed)
    for folder in ("labels", ""):
        image.delete_leftovers(folder)
    return attachment.urls(plan)


@dataclass(frozen=True)
class _Copy:
    """Of one label image of a result, under a name of the image."""

    attachment: Attachment
    plan: Plan
    request: Request
    result: Store
    image: Store
    name: str
    source: ImagePlan

    def units(self) -> Iterator[tuple[Stage, int]]:
        for stage in self.plan.stages:
            if self.source in self.plan.images_of(stage) and stage.level < attached_levels(self.attachment, self.plan):
                for index in wanted_units(self.plan, self.request, stage):
                    yield stage, index

    def unit(self, unit: tuple[Stage, int]) -> None:
        """Copy the voxels of one block, checked against the ledger; absent where they are all background."""
        stage, index = unit
        folder = f"{self.source.array_path(stage.level)}/"
        stored = read_objects(self.result, self.plan, self.request, stage, index, (folder,))
        box = stage.grid.block(index)
        values = output.decode_shards(self.plan, self.source, stage.level, stored, box)
        layout = layout_of(self.attachment, self.plan, self.source, stage.level)
        lead = len(layout.shape) - box.ndim
        data = shards.encode(layout, values.reshape((1,) * lead + box.shape))
        place = shards.object_name(layout, (0,) * lead + stage.grid.coordinates(index))
        key = f"labels/{self.name}/{stage.level}/{place}"
        if data is None:
            self.image.delete(key)
        else:
            _put(self.image, key, data)


def _put(store: Store, key: str, data: bytes) -> None:
    """Put an object unless it is there, and read it back.

    Raises:
        LedgerError: if it reads back otherwise.
    """
    if _stored(store, key) == data:
        return
    store.put(key, data)
    if _stored(store, key) != data:
        raise LedgerError(f"Object {key} reads back otherwise than it was written; the storage of {store.url} is at fault.")


def _stored(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except FileNotFoundError:
        return None
