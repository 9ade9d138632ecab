"""What is known of the labels that an output is exported with: class, colour, place, measurements. Reads no voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.errors import JobError
from unet_core.exports.tiles import Extents
from unet_core.instances import read_joined
from unet_core.plan import ImagePlan, LabelName
from unet_core.result import Result
from unet_core.store import open_store

_NO_MEASUREMENTS = ("label", "class", "class_value")
_DIGITS = 6  # that measurements are written with; counts are whole


@dataclass(frozen=True)
class Objects:
    """The instances of an output, by ascending label.

    Args:
        label: (n,) uint64.
        class_value: (n,) label value of the class of each.
        extents: where they lie in y and x; None where no table says so.
        measurements: name to (n,), NaN where there is none; whole numbers stay integers. Empty without a table.
    """

    label: NDArray[np.uint64]
    class_value: NDArray[np.uint8]
    extents: Extents | None
    measurements: dict[str, NDArray[Any]]


def chosen_image(result: Result, name: str | None) -> ImagePlan:
    """The label image to export: the instances if there are some, else the first; or the one that is named.

    Raises:
        JobError: if there is none of this name.
    """
    images = {image.path.removeprefix("labels/"): image for image in result.plan.all_images if image.path.startswith("labels/")}
    if name is None:
        return images.get("instances") or next(iter(images.values()))
    if name.removeprefix("labels/") not in images:
        hint = "; run into a new output with --instances components to have ids of objects" if name == "instances" else ""
        raise JobError(f"{result.url} has no label image '{name}', it has {', '.join(images)}{hint}.")
    return images[name.removeprefix("labels/")]


def refuse_unfinished(result: Result) -> None:
    """Refuse an output whose run has not ended: what is exported would lack what is still to come.

    Raises:
        JobError: saying how far the run is.
    """
    if result.status.state != "complete":
        done, wanted = (sum(counts) for counts in zip(*result.status.stages.values(), strict=True))
        raise JobError(
            f"{result.url} is unfinished ({done} of {wanted} units are done); run the same command again, then export. "
            "'unet view' and 'unet report' show what is there."
        )


def classes_of(result: Result, image: ImagePlan) -> dict[int, LabelName]:
    """Classes by the label value that they have in a label image, or in the one that instances are made of."""
    plan = result.plan
    if image.kind == "instances":
        assert plan.instances is not None
        image = next(other for other in plan.images if other.path == plan.instances.labels)
    return {entry.value: entry for entry in plan.model.classes if entry.value and image.label_value in (None, entry.value)}


def objects_of(result: Result, measurements: bool = True) -> Objects:
    """The instances of an output, from its table if it has one.

    Args:
        result: with instances.
        measurements: whether they are wanted.
    """
    if result.plan.measure is None:
        store = open_store(result.url)
        values = read_joined(store, result.plan, ledger.read_request(store)).values
        return Objects(np.arange(1, len(values) + 1, dtype=np.uint64), values, None, {})
    from unet_core.tables import read_objects_table

    table = read_objects_table(result.url)
    columns = {name: table.column(name) for name in table.column_names}
    label, class_value = (columns[name].to_numpy() for name in ("label", "class_value"))
    start, stop = (
        np.stack([columns[f"bbox_{end}_{axis}"].to_numpy() for axis in "yx"], axis=1).reshape(-1, 2) for end in ("min", "max")
    )
    measured = {
        name: _short(column.to_numpy())
        for name, column in columns.items()
        if measurements
        and name not in _NO_MEASUREMENTS
        and not name.startswith("bbox_")
        and column.null_count < max(1, len(column))
    }
    return Objects(label, class_value, Extents(label, start, stop), measured)


def _short(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers with few digits, so that they take few letters."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = _DIGITS - 1 - np.floor(np.log10(np.abs(values)))
    factor = 10.0 ** np.where(np.isfinite(digits), np.clip(digits, 0, 300), 0)
    return np.where(np.isfinite(values), np.round(values * factor) / factor, values)
