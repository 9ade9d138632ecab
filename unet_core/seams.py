"""Seams: how much a stored result jumps at the faces of its tiles (or blocks), compared with planes elsewhere. Knows no network.

                 face                     jump at plane p: by how much the step from plane p - 1 to p departs from the mean
    . . . . . . .|. . . . . . .           of the steps before and after it, |g(p) - (g(p - 1) + g(p + 1)) / 2|
        ^     ^  ^     ^     ^            score = mean jump at faces / mean jump at the planes marked beside them
                                          1 = a face is a plane like any other

The gradient is taken off since it hides a seam: where probabilities change by 2 % a voxel, a tile that is off by 0.5 % makes
plain differences 1.02 times as large at its faces, and jumps eleven times. A network's own grid (pooling, up-convolution)
makes some planes jump more than others, also in an exact result, and faces always lie on that grid; so they are compared with
planes a whole number of strides away. Labels have no gradient: there, a jump is the share of voxels that differ.

The interval is a bootstrap over pieces of faces. Pieces side by side are not quite independent: of smooth random results without
a seam it held 1 in 94 % (2D) and 83 to 94 % (3D, small volumes), and lay above 1 in 1 to 9 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.result import open_result
from unet_core.store import open_store

FACETS = 200  # pieces of faces that are looked at along one axis, at most
FACET_SIDE = {2: 128, 3: 32}  # voxels of a piece along the other axes; many small ones tell more than few large ones
FEWEST = 5  # facets that make an interval
RESAMPLES = 2000
_CANDIDATES = 20_000  # facets of an unfinished output that are tried for being there

Read = Callable[[Box], NDArray[np.floating]]


@dataclass(frozen=True)
class Seam:
    """The seam score along one axis.

    Args:
        face: mean jump at faces: absolute probability, or for labels the share of voxels that differ.
        elsewhere: the same at the planes beside them.
        ratio: face / elsewhere; None where only faces differ.
        low: of the 95 % interval of ratio (bootstrap over facets), None for fewer than 5 facets.
        high: likewise; None also where it is not finite.
        facets: pieces of faces that were looked at.
    """

    face: float
    elsewhere: float
    ratio: float | None
    low: float | None
    high: float | None
    facets: int

    def sentence(self, axis: str) -> str:
        """The score in words."""
        ratio = "without bound" if self.ratio is None else f"{self.ratio:.2f} times"
        text = f"across {axis}, the result jumps at faces {ratio} as much as beside them"
        if self.facets < FEWEST:
            return f"{text} ({self.facets} facets, too few to tell)"
        low, high = (f"{value:.2f}" if value is not None else "no bound" for value in (self.low, self.high))
        seen = "seams show" if self.low is None or self.low > 1 else "no seam is seen"
        return f"{text} (95 % interval {low} to {high}, {self.facets} facets): {seen}"


def measure_seams(output_url: str) -> dict[str, Seam]:
    """The seam score of a stored output by axis: of its probabilities if they were kept, else of its labels.

    Looks at what is committed, at faces of tiles, or of blocks where the plan has no tiles. Axes without faces are left out.

    Raises:
        ResumeError: if it is not an output of this program.
        LedgerError: if voxels that were written are no longer there.
    """
    result = open_result(output_url)
    plan, stage = result.plan, result.plan.stages[0]
    kept = [image for image in plan.images if image.kind == "probabilities"]
    images = kept or [image for image in plan.images if image.kind == "labels"]
    volumes = [result.volume(image.path) for image in images]
    scale = 255.0 if kept and kept[0].dtype == "uint8" else 1.0

    def read(box: Box) -> NDArray[np.floating]:
        return np.concatenate([volume.read(box).astype(np.float32) for volume in volumes]) / np.float32(scale)

    done = set(ledger.read_records(open_store(output_url), stage.name, plan.id))
    everything = len(done) == stage.grid.block_count
    region = _around(stage.grid, done)
    return seam_scores(
        read,
        region,
        plan.spatial_axes,
        plan.pass_shape,
        plan.footprint.stride,
        labels=not kept,
        is_there=None if everything else lambda box: done.issuperset(stage.grid.touching(box)),
    )


def _around(grid: BlockGrid, done: set[int]) -> Box:
    """The smallest box that holds all blocks of ``done``; empty if there are none."""
    if not done:
        return Box.from_shape((0,) * len(grid.shape))
    places = np.array([grid.coordinates(index) for index in done])
    first, last = places.min(0).tolist(), places.max(0).tolist()
    return Box(grid.block(grid.index(tuple(first))).start, grid.block(grid.index(tuple(last))).stop)


def seam_scores(
    read: Read,
    region: Box,
    axes: str,
    tile_shape: Shape,
    stride: Shape,
    labels: bool = False,
    is_there: Callable[[Box], bool] | None = None,
) -> dict[str, Seam]:
    """The seam score along each axis that has faces inside ``region``.

    Reads at most ``FACETS`` boxes an axis, at most four strides long and ``FACET_SIDE`` across; the same for the same arguments.

    Args:
        read: gives values of a box inside ``region``, of shape (C, *box.shape).
        region: where the result is; starts at a face.
        axes: names of the spatial axes.
        tile_shape: faces lie at its multiples.
        stride: of the network.
        labels: whether values are labels, which differ or do not.
        is_there: whether all of a box has been computed; None if all of ``region`` has.
    """
    found = {}
    for axis, name in enumerate(axes):
        offsets = _offsets(tile_shape[axis], stride[axis])
        rows = []
        for face, box in _facets(region, axis, tile_shape, offsets, is_there):
            jumps, weight = _jumps(np.moveaxis(read(box), axis + 1, 0), labels)
            here = face - box.start[axis]
            beside = [jumps[here + offset] for offset in offsets if here + offset in jumps]
            rows.append((jumps[here], np.mean(beside), weight))
        if rows:
            found[name] = _score(np.asarray(rows, dtype=np.float64))
    return found


def _offsets(size: int, stride: int) -> list[int]:
    """Where, from a face, planes are compared with it: the nearest two on each side that the jump of no face touches."""
    step = stride if size >= 2 * stride else 1  # tiles of one stride have no other planes of the same phase
    forward = [offset for offset in range(step, size - 1, step) if offset >= 2][:2]
    return [sign * offset for offset in forward for sign in (-1, 1)]


def _jumps(planes: NDArray[np.floating], labels: bool) -> tuple[dict[int, float], int]:
    """The mean jump at each plane that has two before it and one after, by its number; and the voxels of a plane."""
    if labels:
        every = planes[2:-1] != planes[1:-2]
    else:
        steps = np.diff(planes, axis=0)
        every = np.abs(steps[1:-1] - (steps[:-2] + steps[2:]) / 2)
    means = every.mean(axis=tuple(range(1, planes.ndim)), dtype=np.float64)
    return dict(enumerate(means.tolist(), start=2)), planes[0].size


def _facets(
    region: Box, axis: int, tile_shape: Shape, offsets: list[int], is_there: Callable[[Box], bool] | None
) -> Iterator[tuple[int, Box]]:
    """Evenly strewn pieces of faces along ``axis``: the first plane after the face, and the box around it."""
    size = tile_shape[axis]
    first, last = region.start[axis] // size + 1, (region.stop[axis] - 2) // size  # with a plane after the face's own
    if not offsets or last < first or region.is_empty:  # tiles of less than four voxels have no planes but faces
        return
    reach = max(offsets) + 2
    side = FACET_SIDE[region.ndim]
    pieces = tuple(min(side, tile) for tile in tile_shape)
    extent = tuple(last - first + 1 if number == axis else length for number, length in enumerate(region.shape))
    grid = BlockGrid(extent, tuple(1 if number == axis else piece for number, piece in enumerate(pieces)))

    def around(index: int) -> tuple[int, Box]:
        piece = grid.block(index).shift(tuple(first if number == axis else start for number, start in enumerate(region.start)))
        face = piece.start[axis] * size
        start = tuple(face - reach if number == axis else value for number, value in enumerate(piece.start))
        stop = tuple(face + reach if number == axis else value for number, value in enumerate(piece.stop))
        return face, Box(start, stop).intersect(region)

    wanted = FACETS if is_there is None else _CANDIDATES
    facets = [around(int(index)) for index in _strewn(grid.block_count, wanted)]
    if is_there is not None:
        facets = [(face, box) for face, box in facets if is_there(box)]
    for index in _strewn(len(facets), FACETS):
        yield facets[int(index)]


def _strewn(count: int, wanted: int) -> NDArray[np.intp]:
    """At most ``wanted`` of the numbers below ``count``, one drawn from each of as many equal parts, so that no column repeats."""
    wanted = min(count, wanted)
    edges = np.linspace(0, count, wanted + 1)
    drawn = edges[:-1] + np.random.default_rng(0).random(wanted) * np.diff(edges)
    return np.unique(np.minimum(drawn.astype(np.intp), count - 1))


def _score(rows: NDArray[np.float64]) -> Seam:
    """From (face, elsewhere, weight) of each facet."""
    weights = rows[:, 2:] / rows[:, 2].sum()
    face, elsewhere = (rows[:, :2] * weights).sum(0).tolist()
    low = high = None
    if len(rows) >= FEWEST:
        chosen = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
        sums = (rows[:, :2] * weights)[chosen].sum(1)
        ratios = np.sort([_ratio(*pair) for pair in sums.tolist()])
        low, high = (_finite(float(ratios[int(share * (RESAMPLES - 1))])) for share in (0.025, 0.975))
    return Seam(face, elsewhere, _finite(_ratio(face, elsewhere)), low, high, len(rows))


def _ratio(face: float, elsewhere: float) -> float:
    if elsewhere > 0:
        return face / elsewhere
    return float("inf") if face > 0 else 1.0


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
