"""The heads of a model and the classes that it labels, and what makes them fit each other. Knows no networks and no tensors."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import ModelPackageError
from unet_core.validation import shorten
from unet_core.wording import counted


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelClass(_Record):
    """One class of the model: its value in the label image, its name, and its colour as ``#rrggbb``."""

    value: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=100)
    color: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")


class Head(_Record):
    """One output of the network, on ``channels`` of its logits.

    ``classes``: one class a voxel, soft-max. ``regions``: classes that may overlap, sigmoid. ``affinities``: whether a voxel and
    the one at an offset belong to one instance, sigmoid. ``distance``: to the border of the instance, no activation.

    Args:
        offsets: of affinities, in voxels along (z,) y, x, one for each channel; None if that is not stated.
        scale: of a distance d in voxels, of which the network gives ``tanh(d / scale)``; None if that is not stated.

    Both came later and are written only where they are set, so that the identity of older packages stays.
    """

    name: str = Field(default="classes", min_length=1, max_length=100)
    kind: Literal["classes", "regions", "affinities", "distance"] = "classes"
    channels: tuple[int, ...] = Field(min_length=1)
    offsets: tuple[tuple[int, ...], ...] | None = None
    scale: float | None = Field(default=None, gt=0, le=1e6)

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in ("offsets", "scale") or value is not None}

    @property
    def activation(self) -> str:
        return {"classes": "softmax", "regions": "sigmoid", "affinities": "sigmoid", "distance": "none"}[self.kind]


def label_head(heads: tuple[Head, ...]) -> Head | None:
    """The head that the labels are read from, the first of kind classes or regions; None if no head gives labels."""
    return next((head for head in heads if head.kind in ("classes", "regions")), None)


def check_heads(heads: tuple[Head, ...], classes: tuple[LabelClass, ...], count: int, url: str) -> None:
    """Refuse heads and classes that do not fit each other, or the channels of the network.

    Args:
        heads: of a model.
        classes: that belong to its label head.
        count: of the network's channels.
        url: of the model, for the messages.

    Raises:
        ModelPackageError: naming both.
    """
    used = [channel for head in heads for channel in head.channels]
    if len(used) != count or sorted(used) != list(range(count)):
        raise ModelPackageError(f"{url}: heads use channels {shorten(str(sorted(used)))}, the network gives {count}.")
    for other in heads:
        _check_head(heads, other, url)
    head = label_head(heads)
    if head is None:
        if classes:
            raise ModelPackageError(
                f"{url}: {counted(len(classes), 'class', 'classes')}, but the heads ({', '.join(other.kind for other in heads)}) give no "
                "labels; add a head of kind classes or regions, or leave classes empty."
            )
        return
    values = [label.value for label in classes]
    if len(values) != len(head.channels) or len(set(values)) != len(values) or (head.kind == "regions" and 0 in values):
        raise ModelPackageError(
            f"{url}: label values {shorten(str(values))} for {counted(len(head.channels), 'channel')} of head '{head.name}'; give each its own "
            f"value{', above 0' if head.kind == 'regions' else ''}."
        )
    if max(values) > 255:
        raise ModelPackageError(
            f"{url}: label value {shorten(str(max(values)))} needs uint16 output; this release writes uint8, use values to 255."
        )
    names = [label.name for label in classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelPackageError(
            f"{url}: two classes have the name '{twice}', so their results could not be told apart; rename one."
        )


def _check_head(heads: tuple[Head, ...], head: Head, url: str) -> None:
    if [other.name for other in heads].count(head.name) > 1:
        raise ModelPackageError(f"{url}: two heads have the name '{head.name}'; rename one.")
    for field, kind in (("offsets", "affinities"), ("scale", "distance")):
        if getattr(head, field) is not None and head.kind != kind:
            raise ModelPackageError(
                f"{url}: head '{head.name}' of kind {head.kind} has {field}, which belong to {kind}; leave them out."
            )
    if head.offsets is not None and (
        len(head.offsets) != len(head.channels)
        or {len(offset) for offset in head.offsets} not in ({2}, {3})
        or not all(any(offset) for offset in head.offsets)
    ):
        raise ModelPackageError(
            f"{url}: head '{head.name}' has {counted(len(head.channels), 'channel')} and the offsets "
            f"{shorten(str(head.offsets))}; give each channel one, of 2 or 3 voxels along (z,) y, x that are not all 0."
        )
