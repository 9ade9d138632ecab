"""Counts objects in regions: one pass over the ids of a finished output, block by block. Knows no network.

ids of a block, regions there ---> voxels of each object in each region ---> tables/regions.parquet
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.measuring.columns import Column
from unet_core.measuring.sums import counts_of_box
from unet_core.plan import INSTANCES_PATH, Plan
from unet_core.regions import Regions, open_regions
from unet_core.result import open_result
from unet_core.resume import wanted_units
from unet_core.store import open_store
from unet_core.tables import read_objects_table, write_regions_table

_MOST_CELLS = 10**8  # objects times regions: a gigabyte


@dataclass
class _Counts:
    """What is known so far.

    Args:
        labels: of all objects, ascending.
        voxels: (objects, regions).
        holds: (objects, regions): whether a region holds the voxel that an object's centroid lies in.
        sizes: voxels of each region.
    """

    labels: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    holds: NDArray[np.bool_]
    sizes: NDArray[np.int64]


def measure_regions(url: str, regions_url: str, on_block: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write ``tables/regions.parquet`` of an output: for each object and region, whether its centroid lies in it, and how much of it does.

    Args:
        url: of the output.
        regions_url: of a GeoJSON file of outlines, or of a result of the same image.
        on_block: told how many blocks of how many are done.

    Raises:
        InputError: if the output has no table of objects, or the regions are not of its image.
    """
    result = open_result(url)
    plan, request = result.plan, ledger.read_request(open_store(url))
    centroid_names = [f"centroid_{axis}" for axis in plan.spatial_axes]
    objects = read_objects_table(url, ["label", "voxels", *centroid_names])
    regions = open_regions(regions_url, plan, request)
    if len(objects) * len(regions.names) > _MOST_CELLS:
        raise InputError(
            f"{len(objects)} objects in {len(regions.names)} regions would be more than {_MOST_CELLS} cells of a table; give regions the same "
            "name that belong together."
        )
    labels = objects.column("label").to_numpy()
    centroids = np.stack([objects.column(name).to_numpy() for name in centroid_names], axis=1)
    shape = (len(labels), len(regions.names))
    counts = _Counts(labels, np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape[1], np.int64))
    ids = result.volume(INSTANCES_PATH)
    blocks = list(_blocks(plan, set(wanted_units(plan, request, plan.stages[0])), centroids))
    for done, (box, is_wanted, centred) in enumerate(blocks, 1):
        masks = regions.masks(box)
        if masks and is_wanted:
            counts.sizes[list(masks)] += [np.count_nonzero(mask) for mask in masks.values()]
            found = counts_of_box(ids.read(box)[0], list(masks.values()))
            rows = np.searchsorted(labels, found["label"])
            counts.voxels[np.ix_(rows, np.array([*masks]))] += found["counts"]
        places = tuple((_nearest(centroids[centred], plan) - box.start).T)
        for number, mask in masks.items():
            counts.holds[centred, number] = mask[places]
        on_block(done, len(blocks))
    sizes = dict(zip(regions.names, counts.sizes.tolist(), strict=True))
    write_regions_table(url, _columns(regions, counts, objects.column("voxels").to_numpy()), sizes, regions.url)


def _nearest(centroids: NDArray[np.float64], plan: Plan) -> NDArray[np.int64]:
    """The voxels that centroids lie in."""
    return np.clip(np.floor(centroids + 0.5).astype(np.int64), 0, np.array(plan.levels[0].shape) - 1)


def _blocks(plan: Plan, wanted: set[int], centroids: NDArray[np.float64]) -> Iterator[tuple[Box, bool, NDArray[np.int64]]]:
    """Each block that is wanted or holds the centroid of an object, with the rows of those."""
    grid = plan.stages[0].grid
    coordinates = _nearest(centroids, plan) // np.array(plan.block_shape)
    own = np.ravel_multi_index(tuple(coordinates.T), grid.counts)
    order = np.argsort(own, kind="stable")
    numbers = np.array(sorted(wanted | set(own.tolist())), dtype=np.int64)
    firsts, stops = np.searchsorted(own[order], numbers), np.searchsorted(own[order], numbers, side="right")
    for number, first, stop in zip(numbers.tolist(), firsts, stops, strict=True):
        yield grid.block(number), number in wanted, order[first:stop]


def _columns(regions: Regions, counts: _Counts, voxels: NDArray[np.int64]) -> dict[str, Column]:
    columns = {"label": Column(counts.labels, "", "Id of the object, as in tables/objects.parquet.")}
    for number, name in enumerate(regions.names):
        columns[f"in_{name}"] = Column(counts.holds[:, number], "", f"Whether the object's centroid lies in {name}.")
        fraction = counts.voxels[:, number] / voxels
        columns[f"fraction_in_{name}"] = Column(fraction, "", f"Fraction of the object's voxels that lie in {name}.")
    return columns
