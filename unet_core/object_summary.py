"""How many objects there are of each class in each region of each image, and how large they are: from tables alone. Draws nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.measure import measured_of
from unet_core.measuring.columns import Measured
from unet_core.resume import wanted_units
from unet_core.store import open_store
from unet_core.tables import has_regions_table, read_objects_table, read_regions_table
from unet_core.wording import no_formula

WHOLE = "all that was computed"  # a region too: the image without what masks and --roi left out
_UM_PER_MM = 1000


@dataclass(frozen=True)
class ClassInRegion:
    """The objects of one class whose centroid lies in one region.

    Args:
        image: URL of the image that was segmented.
        output: URL of the result.
        region: name.
        class_name: of the objects.
        objects: how many.
        dims: 2 or 3; decides whether sizes are areas or volumes.
        region_mm: size of the region, of what was segmented of it, in mm^2 or mm^3; None where voxel sizes are not known.
        mean_um: mean size of the objects in um^2 or um^3; None without any, likewise.
    """

    image: str
    output: str
    region: str
    class_name: str
    objects: int
    dims: int
    region_mm: float | None
    mean_um: float | None

    @property
    def density(self) -> float | None:
        """Objects for each mm^2 or mm^3 of the region."""
        return self.objects / self.region_mm if self.region_mm else None

    def as_row(self) -> dict[str, Any]:
        """Values by column; those of areas and of volumes have columns of their own."""
        size = "area" if self.dims == 2 else "volume"
        return {
            "image": self.image,
            "output": self.output,
            "region": self.region,
            "class": self.class_name,
            "objects": self.objects,
            f"region_{size}_mm{self.dims}": self.region_mm,
            f"objects_per_mm{self.dims}": self.density,
            f"mean_{size}_um{self.dims}": self.mean_um,
        }


def summarise(url: str) -> list[ClassInRegion]:
    """Every class in all that was computed, then in each region that objects were counted in (see ``region_table``).

    Raises:
        InputError: if the output has no table of objects, or its regions are those of other objects.
    """
    store = open_store(url)
    table = read_objects_table(url, ["label"])  # says what is wrong before anything else is read
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    measured = measured_of(plan)
    table = read_objects_table(url, ["class_value", "voxels"])
    values, voxels = (table.column(name).to_numpy() for name in ("class_value", "voxels"))
    finest = plan.stages[0]
    whole = sum(finest.grid.block(index).voxel_count for index in wanted_units(plan, request, finest))
    regions = [(WHOLE, whole, np.ones(len(values), dtype=bool))]
    if has_regions_table(url):
        found = read_regions_table(url)
        for name, size in found.voxels.items():
            regions.append((name, size, found.table.column(f"in_{name}").to_numpy()))
    names = [entry for entry in measured.classes if measured.own_class in (None, entry[0])]
    return [
        ClassInRegion(request.image, url, region, name, *_numbers(measured, size, voxels[inside & (values == value)]))
        for region, size, inside in regions
        for value, name in names
    ]


def _numbers(measured: Measured, region_voxels: int, voxels: NDArray[np.int64]) -> tuple[int, int, float | None, float | None]:
    dims, one = len(measured.axes), measured.voxel_size_um
    if one is None:
        return len(voxels), dims, None, None
    voxel = float(np.prod(one))
    return len(voxels), dims, region_voxels * voxel / _UM_PER_MM**dims, float(voxels.mean() * voxel) if len(voxels) else None


def summary_csv(rows: Sequence[ClassInRegion]) -> bytes:
    """Rows as text with commas; cells without a number are empty. No name is a formula to a spreadsheet."""
    cells = [{name: no_formula(value) for name, value in row.as_row().items()} for row in rows]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in cells for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue().encode()


def sentences(rows: Sequence[ClassInRegion]) -> Iterator[str]:
    """One for each class in each region."""
    for row in rows:
        unit = "mm^2" if row.dims == 2 else "mm^3"
        density = (
            ""
            if row.density is None or row.region_mm is None
            else f", {row.density:,.1f} per {unit} of {row.region_mm:,.4g} {unit}"
        )
        mean = "" if row.mean_um is None else f", mean {'area' if row.dims == 2 else 'volume'} {row.mean_um:,.1f} um^{row.dims}"
        yield f"{row.region}: {row.objects:,} {row.class_name}{density}{mean}"
