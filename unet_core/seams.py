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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, prod

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
_CANDIDATES = 20_000  # pieces of blocks that are tried for having a face

Read = Callable[[Box], NDArray[np.floating]]


@dataclass(frozen=True)
class Seam:
    """The seam score along one axis.

    Args:
        face: mean jump at faces: absolute probability, or for labels the share of voxels that differ; None if not measurable.
        elsewhere: the same at the planes beside them.
        ratio: face / elsewhere; None where only faces differ.
        low: of the 95 % interval of ratio (bootstrap over facets), None for fewer than 5 facets.
        high: likewise; None also where it is not finite.
        facets: pieces of faces that were looked at.
    """

    face: float | None
    elsewhere: float | None
    ratio: float | None
    low: float | None
    high: float | None
    facets: int

    def sentence(self, axis: str) -> str:
        """The score in words."""
        if not self.facets:
            return f"across {axis}, seams cannot be measured: no planes lie beside the faces (tiles are too small, or the image ends there)"
        ratio = "without bound" if self.ratio is None else f"{self.ratio:.2f} times"
        text = f"across {axis}, the result jumps at faces {ratio} as much as beside them"
        if self.facets < FEWEST:
            return f"{text} ({self.facets} facets, too few to tell)"
        low, high = (f"{value:.2f}" if value is not None else "no bound" for value in (self.low, self.high))
        seen = "seams show" if self.low is None or self.low > 1 else "no seam is seen"
        return f"{text} (95 % interval {low} to {high}, {self.facets} facets): {seen}"


# Of faces without planes beside them: in tiles of less than four voxels, or where the image ends next to them.
NOT_MEASURABLE = Seam(None, None, None, None, None, 0)


def measure_seams(output_url: str) -> dict[str, Seam]:
    """The seam score of a stored output by axis: of its probabilities if they were kept, else of its labels.

    Looks at what is committed, at faces of tiles, or of blocks where the plan has no tiles. Axes without faces are left out; those
    whose faces have nothing beside them to be compared with are ``NOT_MEASURABLE``. Sections of a stack that were computed each by
    itself have no faces between them.

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

    done = ledger.read_records(open_store(output_url), stage.name, plan.id)
    scores = seam_scores(read, stage.grid, done, plan.spatial_axes, plan.pass_shape, plan.footprint.stride, labels=not kept)
    return {axis: seam for axis, seam in scores.items() if axis in plan.network_axes}


def seam_scores(
    read: Read,
    grid: BlockGrid,
    done: Iterable[int],
    axes: str,
    tile_shape: Shape,
    stride: Shape,
    labels: bool = False,
) -> dict[str, Seam]:
    """The seam score along each axis that has faces with what was computed on both sides.

    Reads at most ``FACETS`` boxes an axis, at most two tiles long and ``FACET_SIDE`` across; the same for the same arguments.

    Args:
        read: gives values of a box inside the grid's array, of shape (C, *box.shape).
        grid: of blocks, each of whole tiles.
        done: numbers of the blocks that have been computed.
        axes: names of the spatial axes.
        tile_shape: faces lie at its multiples.
        stride: of the network.
        labels: whether values are labels, which differ or do not.
    """
    found, computed = {}, sorted(set(done))
    for axis, name in enumerate(axes):
        offsets = _offsets(tile_shape[axis], stride[axis])
        facets = _facets(grid, computed, axis, tile_shape, max(offsets, default=0) + 2)
        rows = []
        for face, box in facets if offsets else []:  # tiles of less than four voxels have no planes but faces
            jumps, weight = _jumps(np.moveaxis(read(box), axis + 1, 0), labels)
            here = face - box.start[axis]
            beside = [jumps[here + offset] for offset in offsets if here + offset in jumps]
            if here in jumps:  # else the image ends with the plane after the face
                rows.append((jumps[here], np.mean(beside), weight))
        if facets:
            found[name] = _score(np.asarray(rows, dtype=np.float64)) if rows else NOT_MEASURABLE
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


def _facets(grid: BlockGrid, computed: list[int], axis: int, tile_shape: Shape, reach: int) -> list[tuple[int, Box]]:
    """Evenly strewn pieces of faces along ``axis`` between computed tiles: the first plane after the face, and the box around it.

    They are drawn from the blocks that were computed, so that a few of them, far apart in a huge image, have all of theirs.
    """
    size, to_next = tile_shape[axis], prod(grid.counts[axis + 1 :])
    known = set(computed)
    # Of the first block along the axis, index - to_next is the last of another row, or of none.
    follows = {index for index in computed if index // to_next % grid.counts[axis] and index - to_next in known}
    blocks = computed if grid.block_shape[axis] > size else sorted(follows)
    side = FACET_SIDE[len(grid.shape)]
    pieces = BlockGrid(
        grid.block_shape, tuple(size if number == axis else min(side, tile) for number, tile in enumerate(tile_shape))
    )

    def around(number: int) -> tuple[int, Box] | None:
        index = blocks[number // pieces.block_count]
        block = grid.block(index)
        piece = pieces.block(number % pieces.block_count).shift(block.start).intersect(block)
        face = piece.start[axis]
        if piece.is_empty or (face == block.start[axis] and index not in follows):
            return None
        start = tuple(face - reach if number == axis else value for number, value in enumerate(piece.start))
        stop = tuple(face + reach if number == axis else value for number, value in enumerate(piece.stop))
        return face, Box(start, stop).intersect(Box.from_shape(grid.shape))

    drawn = [around(int(number)) for number in _strewn(len(blocks) * pieces.block_count, _CANDIDATES)]
    facets = [facet for facet in drawn if facet is not None]
    return [facets[int(number)] for number in _strewn(len(facets), FACETS)]


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
