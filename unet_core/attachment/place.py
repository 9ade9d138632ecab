"""Where labels can be attached: the group of an OME-Zarr image, and whether it takes them under a name. Reads metadata only.

IMAGE/labels           lists the names of all label images; read, merged, written, and written last
IMAGE/labels/NAME      classes; of several regions, and of instances, NAME-CLASS and NAME-instances
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

from unet_core.errors import JobError, ResumeError, VolumeError
from unet_core.job import SegmentationJob
from unet_core.ome_documents import Ngff
from unet_core.plan import ImagePlan, Plan
from unet_core.store import Store, is_remote, local_path, open_store, redacted
from unet_core.volumes import Volume
from unet_core.volumes.ome_metadata import Multiscale, find_level, multiscale_of, transform_of
from unet_core.volumes.resampled import ResampledVolume
from unet_core.volumes.zarr_metadata import read_document
from unet_core.volumes.zarr_nodes import Node, groups_around, locate, read_node, series_of

MARK = "unet-flows"  # attribute of an attached label image that says which plan it came from
_CLASSES = "labels/classes"


@dataclass(frozen=True)
class Attachment:
    """A place for the labels of one plan.

    Args:
        image_url: of the image's group.
        ngff: its version.
        name: that the user gave.
        axes: of the image, those of channels left out.
        axis_documents: of these, as the image writes them.
        scale: of the segmented level, along ``axes``, as the image writes it.
        translation: likewise.
        level_count: levels of the image from the segmented one on; label images have no more.
    """

    image_url: str
    ngff: Ngff
    name: str
    axes: str
    axis_documents: tuple[dict[str, Any], ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    level_count: int

    def names(self, plan: Plan) -> dict[str, ImagePlan]:
        """The label images of a plan by the names that they get in the image."""
        images = [image for image in plan.all_images if image.kind in ("labels", "instances")]
        return {
            self.name if image.path == _CLASSES else f"{self.name}-{image.path.removeprefix('labels/')}": image
            for image in images
        }

    def urls(self, plan: Plan) -> list[str]:
        return [f"{self.image_url}/labels/{name}" for name in self.names(plan)]

    def check_free(self, plan: Plan) -> None:
        """Refuse names that label images of another origin have.

        Raises:
            ResumeError: naming the first.
            VolumeError: if the list of label images is damaged.
        """
        store = open_store(self.image_url)
        listed = labels_listed(store, self.ngff)
        for name, image in self.names(plan).items():
            is_taken = name in listed or any(True for _ in store.list(f"labels/{name}"))
            if is_taken and not is_ours(mark_of(store, name), plan, image):
                raise ResumeError(
                    f"{self.image_url} has label image '{name}' already, which is not of this plan; give another name to --attach."
                )

    def check_writable(self, probe: bool) -> None:
        """Refuse an image that takes no files.

        Args:
            probe: whether an object store is tried, too, by an object that is removed at once.

        Raises:
            JobError: with the reason.
            InputError: likewise, of an object store.
        """
        if is_remote(self.image_url):
            if probe:
                store, key = open_store(self.image_url), f"labels/.{uuid.uuid4().hex}"
                store.put(key, b"")
                store.delete(key)
            return
        path = local_path(self.image_url)
        folder = path / "labels" if (path / "labels").is_dir() else path
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise JobError(
                f"--attach cannot write into {folder} ({error.strerror}); make the image writable, or leave it out."
            ) from None


def plan_attachment(job: SegmentationJob, volume: Volume) -> Attachment | None:
    """Where the labels of a job go in its image; None if it does not ask for that.

    Raises:
        VolumeError: if the image is none that can take them.
        JobError: if it cannot be written.
    """
    if job.attach is None:
        return None
    if isinstance(volume, ResampledVolume):
        raise JobError(
            "--attach puts labels on the voxels of the image, and with --resample they have others; leave one of the two out."
        )
    group = _image_group(job, volume)
    node, url = group.node, group.url
    if len(node.attributes.get("multiscales", ())) != 1:
        raise VolumeError(
            f"--attach: {url} holds several images in one group, whose labels could not be told apart; leave it out."
        )
    multiscale = multiscale_of(node, group.series, url)
    _check_one_time(group, multiscale)
    kept = [number for number, axis in enumerate(multiscale.axes) if axis != "c"]
    transform = transform_of(multiscale, group.level, url)
    scale = transform.scale or (1.0,) * len(multiscale.axes)
    attachment = Attachment(
        image_url=url.rstrip("/"),
        ngff="0.5" if node.zarr_format == 3 else "0.4",
        name=job.attach,
        axes="".join(multiscale.axes[number] for number in kept),
        axis_documents=tuple(multiscale.document["axes"][number] for number in kept),
        scale=tuple(scale[number] for number in kept),
        translation=tuple(transform.translation[number] for number in kept),
        level_count=len(multiscale.paths) - group.level,
    )
    attachment.check_writable(probe=False)
    return attachment


@dataclass(frozen=True)
class _Group:
    """The group of an image in its archive; series and level of the segmented array in it."""

    store: Store
    path: str
    node: Node
    url: str
    series: int | None
    level: int


def _image_group(job: SegmentationJob, volume: Volume) -> _Group:
    """The group that the image of a job belongs to.

    Raises:
        VolumeError: if there is none.
    """
    refused = VolumeError(f"--attach writes into OME-Zarr images only, {redacted(job.image)} is none; leave it out.")
    if not is_remote(job.image) and not local_path(job.image).is_dir():
        raise refused
    url = job.image.rstrip("/")
    store, path = locate(url)
    node = read_node(store, path)
    if node is None:
        raise refused
    if node.is_array:
        for around, above, group, group_url, inside in groups_around(store, path, url):
            found = find_level(group, inside)
            if found is not None:
                return _Group(around, above, group, group_url, *found)
        raise refused
    if node.attributes.get("multiscales") is not None:
        return _Group(store, path, node, url, job.series, volume.level)
    inside = series_of(store, path, node, url)[job.series or 0]
    group_node = read_node(store, inside)
    assert group_node is not None  # it was opened
    return _Group(store, inside, group_node, f"{url}/{inside.removeprefix(f'{path}/')}", None, volume.level)


def _check_one_time(group: _Group, multiscale: Multiscale) -> None:
    """Refuse an image of several time points: labels of one would seem to be those of all."""
    array = read_node(group.store, f"{group.path}/{multiscale.paths[group.level]}".lstrip("/"))
    shape = array.document["shape"] if array else []
    count = shape[multiscale.axes.index("t")] if "t" in multiscale.axes else 1
    if count > 1:
        raise VolumeError(f"--attach: {group.url} has {count} time points, and labels are made of one of them; leave it out.")


def labels_listed(store: Store, ngff: Ngff) -> list[str]:
    """Names of the label images that a group lists.

    Raises:
        VolumeError: if the list is none.
    """
    listed = _attributes(store, "labels", ngff).get("labels", [])
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise VolumeError(f"labels of {store.url}/labels is no list of names; correct it in the metadata.")
    return list(listed)


def mark_of(store: Store, name: str) -> dict[str, Any]:
    """What an attached label image says of its origin; empty if nothing."""
    for key in ("zarr.json", ".zattrs"):
        document = read_document(store, f"labels/{name}/{key}") or {}
        attributes = document.get("attributes", {}) if key == "zarr.json" else document
        mark = attributes.get(MARK) if isinstance(attributes, dict) else None
        if isinstance(mark, dict):
            return mark
    return {}


def is_ours(mark: dict[str, Any], plan: Plan, image: ImagePlan) -> bool:
    """Whether a label image came from this image of this plan."""
    return (mark.get("plan"), mark.get("labels")) == (plan.id, image.path)


def _attributes(store: Store, path: str, ngff: Ngff) -> dict[str, Any]:
    """Attributes of a group; those below ``ome`` in version 0.5."""
    if ngff == "0.4":
        return read_document(store, f"{path}/.zattrs") or {}
    attributes = (read_document(store, f"{path}/zarr.json") or {}).get("attributes", {})
    ome = attributes.get("ome", {}) if isinstance(attributes, dict) else {}
    return ome if isinstance(ome, dict) else {}
