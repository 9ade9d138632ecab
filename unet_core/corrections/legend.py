"""What the numbers of exported labels mean, for the person who edits them and for the training that learns from them. Opens nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unet_core.errors import InputError
from unet_core.model_description import ModelDescription
from unet_core.model_heads import Head
from unet_core.plan import Plan
from unet_core.training.dataset_description import MAX_CLASSES

LabelKind = Literal["classes", "instances"]

_MADE_OF_IDS = ("affinities", "distance")  # heads that are learnt from objects, not from classes
_QUPATH_IGNORED = "Ignore*"  # QuPath's own class for what nothing is known of


@dataclass(frozen=True)
class LegendEntry:
    """A class: its value in label images, its name, and its colour (empty for any)."""

    value: int
    name: str
    color: str


@dataclass(frozen=True)
class Legend:
    """Meaning of labels.

    Args:
        kind: class values, or ids of objects.
        classes: the background first, in the order of the model's channels.
        ignore: value of what is not known.
        settings: of a training that goes on with the model, as ``--set`` takes them.
        notes: what the user should know of such a training.
    """

    kind: LabelKind
    classes: tuple[LegendEntry, ...]
    ignore: int
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def fields(self, drawn: bool) -> dict[str, Any]:
        """Keys of ``dataset.yaml`` that say it.

        Args:
            drawn: whether labels are outlines.
        """
        classes = [
            {"name": entry.name}
            | ({"values": entry.value} if self.kind == "classes" else {})
            | ({"color": entry.color} if entry.color else {})
            for entry in self.classes
        ]
        ignore: list[int | str] = [self.ignore]
        if drawn and all(entry.name != _QUPATH_IGNORED for entry in self.classes):
            ignore.append(_QUPATH_IGNORED)
        fields = {"labels": self.kind, "classes": classes, "ignore": ignore}
        if drawn:
            return fields | {"unlabelled": "background"}
        lacks_zero = self.kind == "classes" and all(entry.value for entry in self.classes)
        return fields | ({"unlabelled": "ignore"} if lacks_zero else {})


def make_legend(plan: Plan, model: ModelDescription | None, kind: LabelKind | None, output: str) -> Legend:
    """The meaning of labels that are exported of a result.

    Args:
        plan: of the result.
        model: that made it; None if it is not there any more.
        kind: of the labels; ids where the model has heads that are learnt from them, else classes, unless told.
        output: of the result, for messages.

    Raises:
        InputError: if ids are asked for and there are none.
    """
    heads = model.heads if model else ()
    needing = next((head for head in heads if head.kind in _MADE_OF_IDS), None)
    chosen = kind or ("instances" if needing else "classes")
    if chosen == "instances":
        _check_ids(plan, needing, kind, output)
    classes = _classes(plan)
    names = [entry.name for entry in classes]
    taken = {entry.value for entry in classes}
    ignore = next(value for value in range(255, 0, -1) if value not in taken) if chosen == "classes" else 65535
    settings, notes = _settings(heads, plan, classes, chosen) if model else ((), ())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"{output} has regions of which two combinations would both be the class '{twice}'; rename a region of its model, and segment "
            "into a new output."
        )
    return Legend(chosen, classes, ignore, settings, notes)


def _check_ids(plan: Plan, needing: Head | None, kind: LabelKind | None, output: str) -> None:
    classes = _classes(plan)
    if plan.instances is None:
        why = (
            ""
            if kind or needing is None
            else f" Head '{needing.name}' of model '{plan.model.name}' is learnt from ids of objects."
        )
        remedy = "" if kind or needing is None else ", or export classes (--labels classes), from which that head learns nothing"
        raise InputError(f"{output} has no ids of objects.{why} Segment into a new output with --instances components{remedy}.")
    if len(classes) != 2:
        raise InputError(
            f"{output} has the classes {', '.join(entry.name for entry in classes)}; ids tell background and one class of objects. Use "
            "--labels classes."
        )


def _classes(plan: Plan) -> tuple[LegendEntry, ...]:
    """Of classes, themselves; of regions that may overlap, each combination: bit i of its value is region i."""
    if plan.model.kind == "classes":
        return tuple(LegendEntry(entry.value, entry.name, entry.color) for entry in plan.model.classes)
    regions = plan.model.classes
    background = "background" if all(entry.name != "background" for entry in regions) else "no region"
    found = [LegendEntry(0, background, "#000000")]
    for value in range(1, 1 << len(regions)):
        inside = [entry for bit, entry in enumerate(regions) if value >> bit & 1]
        found.append(LegendEntry(value, "+".join(entry.name for entry in inside), inside[0].color if len(inside) == 1 else ""))
    return tuple(found)


def _settings(
    heads: Sequence[Head], plan: Plan, classes: tuple[LegendEntry, ...], kind: LabelKind
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings that give a training the heads of the model, and notes where it cannot have them."""
    lost = [head.name for head in heads if head.kind in _MADE_OF_IDS and kind == "classes"]
    if lost:
        text = f"heads {', '.join(lost)} of the model are not learnt from classes: its last layer begins afresh (see --labels instances)"
        return (), (text,)
    if len(heads) == 1 and heads[0].kind == "classes":
        return (), ()
    ordered = sorted(heads, key=lambda head: head.channels[0])
    if [channel for head in ordered for channel in head.channels] != list(range(sum(len(head.channels) for head in heads))):
        return (), ("the heads of the model have their channels in an order of their own: its last layer begins afresh",)
    wanted = [_head_setting(head, plan, classes) for head in ordered]
    return (f"heads={json.dumps(wanted)}",), ()


def _head_setting(head: Head, plan: Plan, classes: tuple[LegendEntry, ...]) -> dict[str, Any]:
    setting: dict[str, Any] = {"kind": head.kind, "name": head.name}
    if head.kind == "regions":
        regions = enumerate(plan.model.classes)
        setting["regions"] = {entry.name: [other.name for other in classes if other.value >> bit & 1] for bit, entry in regions}
    elif head.kind == "distance":
        setting["scale"] = head.scale or 5.0
    elif head.kind == "affinities":
        setting["offsets"] = head.offsets
    return setting


def too_many(legend: Legend) -> bool:
    """Whether a data set cannot have so many classes."""
    return len(legend.classes) > MAX_CLASSES
