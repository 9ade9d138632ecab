"""Seams: how much a stored result jumps at the faces of its tiles (or blocks), compared with planes elsewhere. Knows no network.

                 face                     step at plane p: by how much the change from plane p - 1 to p departs from the mean
    . . . . . . .|. . . . . . .           of the changes before and after it, g(p) - (g(p - 1) + g(p + 1)) / 2
        ^     ^  ^     ^     ^            score = jump at faces / jump at the planes marked beside them
                                          1 = a face is a plane like any other

The gradient is taken off since it hides a seam. Then, at a plane, steps s of single voxels become asinh(s / 0.1 %), signed, are averaged
over windows of 8 voxels along the plane, and the jump is the mean of the windows' absolute values, turned back by 0.1 % sinh. Why so,
from trials on a real slide (68 % of its voxels within 0.2 % of 0 or 1) and on smooth noise, stored as uint8:

- Plain mean |s| is ruled by the edges of objects: 0.5 % of bias in every second block made it 1.05 (0.96 to 1.16) on the
  slide. The logarithm keeps edges from counting for more than they tell.
- A mean over the whole face, with its sign, sees a bias best and what a naive tiling does worst: the ends of tiles that were mirrored
  or zero-padded are wrong by amounts of either sign, which cancel. Windows see both; of 4 to 128 voxels, 8 had no bad case.

A network's own grid (pooling, up-convolution) makes some planes jump more than others, also in an exact result, and faces always lie
on that grid; so they are compared with planes a whole number of strides away. Labels have no gradient: there, a jump is the share of
voxels that differ, which tells much less.

The interval is a bootstrap over pieces of faces. Pieces side by side are not quite independent: of smooth random results without a
seam, 95 % intervals held 1 in 87 to 99 % and lay above it in 1 to 9 % (75 to 80 intervals of each of five kinds, 2D and 3D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isfinite, prod, sinh
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.result import Result, open_result
from unet_core.store import open_store
from unet_core.wording import counted

FACETS = 200  # pieces of faces that are looked at along one axis, at most
SCALE = 1e-3  # of probability; smaller steps count as they are, larger ones by their logarithm
WINDOW = 8  # voxels along each axis of a plane
FACET_SIDE = {2: 64, 3: 32}  # voxels of a piece along the other axes; many small ones tell more than few large ones
FEWEST = 5  # facets that make an interval
RESAMPLES = 2000
DIGITS = 5  # of probabilities that are looked at: what no cut of the image is promised to keep is no seam
_CANDIDATES = 20_000  # pieces of blocks that are tried for having a face
_READERS = 8

Source = Literal["probabilities", "labels"]
Read = Callable[[Box], NDArray[np.floating]]


@dataclass(frozen=True)
class Seam:
    """The seam score along one axis.

    Args:
        face: jump at faces: of probability, or for labels the share of voxels that differ; None if not measurable.
        elsewhere: the same at the planes beside them.
        ratio: face / elsewhere; None where only faces differ.
        low: of the 95 % interval of ratio (bootstrap over facets), None for fewer than 5 facets.
        high: likewise; None also where it is not finite.
        facets: pieces of faces that were looked at.
        of: what jumps; labels where no probabilities were kept, which tell less.
    """

    face: float | None
    elsewhere: float | None
    ratio: float | None
    low: float | None
    high: float | None
    facets: int
    of: Source = "probabilities"

    @property
    def is_seen(self) -> bool | None:
        """Whether seams show: the whole interval lies above 1. None where that cannot be told."""
        return None if self.facets < FEWEST else self.low is None or self.low > 1

    def sentence(self, axis: str) -> str:
        """The score in words."""
        if not self.facets:
            return f"across {axis}, seams cannot be measured: no planes lie beside the faces (tiles are too small, or the image ends there)"
        ratio = "without bound" if self.ratio is None else f"{self.ratio:.2f} times"
        what, often = (
            ("probabilities jump", "much")
            if self.of == "probabilities"
            else ("labels (no probabilities are kept) change", "often")
        )
        text = f"across {axis}, {what} at faces {ratio} as {often} as beside them"
        assert self.face is not None
        assert self.elsewhere is not None
        sizes = f"{100 * self.face:.2g} % against {100 * self.elsewhere:.2g} %"
        if self.is_seen is None:
            return f"{text} ({sizes}; {counted(self.facets, 'facet')}, too few to tell)"
        low, high = (f"{value:.2f}" if value is not None else "no bound" for value in (self.low, self.high))
        seen = "seams show" if self.is_seen else "no seam is seen"
        return f"{text} ({sizes}; 95 % interval {low} to {high}, {self.facets} facets): {seen}"


def without_faces(block_count: int) -> str:
    """Why there is no score at all, of a result with so many blocks."""
    return "one block, no faces" if block_count == 1 else "no faces: no two blocks or tiles of it meet within an image or section"


# Of faces without planes beside them: in tiles of less than four voxels, or where the image ends next to them.
NOT_MEASURABLE = Seam(None, None, None, None, None, 0)


def measure_seams(output_url: str, most: int = FACETS) -> dict[str, Seam]:
    """The seam score of a stored output by axis, as ``result_seams`` tells it.

    Args:
        output_url: finished or not.
        most: pieces of faces that are read along an axis.

    Raises:
        ResumeError: if it is not an output of this program.
        LedgerError: if voxels that were written are no longer there.
    """
    result = open_result(output_url)
    done = ledger.recorded_units(open_store(output_url), result.plan.stages[0].name, result.plan.id).tolist()
    return result_seams(result, done, most)


def result_seams(result: Result, done: Iterable[int], most: int = FACETS) -> dict[str, Seam]:
    """The seam score of a stored output by axis: of its probabilities if they were kept, else of its labels, and named so.

    Looks at what is committed, at faces of tiles, or of blocks where the plan has no tiles. Axes without faces are left out; those
    whose faces have nothing beside them to be compared with are not measurable (no facets). Sections of a stack that were computed
    each by itself have no faces between them.

    Args:
        result: the output.
        done: numbers of its blocks that are committed.
        most: pieces of faces that are read along an axis.

    Raises:
        LedgerError: if voxels that were written are no longer there.
    """
    plan = result.plan
    kept = [image for image in plan.images if image.kind == "probabilities"]
    images = kept or [image for image in plan.images if image.kind == "labels"]
    volumes = [result.volume(image.path) for image in images]
    scale = 255.0 if kept and kept[0].dtype == "uint8" else 1.0

    def read(box: Box) -> NDArray[np.floating]:
        return np.concatenate([volume.read(box).astype(np.float32) for volume in volumes]) / np.float32(scale)

    of: Source = "probabilities" if kept else "labels"
    scores = seam_scores(read, plan.stages[0].grid, done, plan.spatial_axes, plan.pass_shape, plan.footprint.stride, of, most)
    return {axis: seam for axis, seam in scores.items() if axis in plan.network_axes}


def seam_scores(
    read: Read,
    grid: BlockGrid,
    done: Iterable[int],
    axes: str,
    tile_shape: Shape,
    stride: Shape,
    of: Source = "probabilities",
    most: int = FACETS,
) -> dict[str, Seam]:
    """The seam score along each axis that has faces with what was computed on both sides.

    Reads at most ``most`` boxes an axis, at most two tiles long and ``FACET_SIDE`` across; the same for the same arguments.

    Args:
        read: gives values of a box inside the grid's array, of shape (C, *box.shape); called from several threads.
        grid: of blocks, each of whole tiles.
        done: numbers of the blocks that have been computed.
        axes: names of the spatial axes.
        tile_shape: faces lie at its multiples.
        stride: of the network.
        of: what the values are; labels differ or do not.
        most: boxes that are read along an axis.
    """
    found, computed = {}, sorted(set(done))
    for axis, name in enumerate(axes):
        offsets = _offsets(tile_shape[axis], stride[axis])
        facets = _facets(grid, computed, axis, tile_shape, max(offsets, default=0) + 2, most)

        def row(facet: tuple[int, Box], axis: int = axis, offsets: list[int] = offsets) -> tuple[float, float, int] | None:
            face, box = facet
            planes = np.moveaxis(read(box), axis + 1, 0)
            here = face - box.start[axis]
            near = [plane for plane in (here, *(here + offset for offset in offsets)) if 2 <= plane < len(planes) - 1]
            # Tiles of less than four voxels have no planes but faces; the image may end with the plane after the face.
            if here not in near[:1] or len(near) == 1:
                return None
            first, *others = (_jump(planes[plane - 2 : plane + 2], of) for plane in near)
            return first, float(np.mean(others)), planes[0].size

        with ThreadPoolExecutor(_READERS) as readers:
            rows = [found for found in readers.map(row, facets if offsets else []) if found is not None]
        if facets:
            found[name] = _score(np.asarray(rows, dtype=np.float64), of) if rows else replace(NOT_MEASURABLE, of=of)
    return found


def _offsets(size: int, stride: int) -> list[int]:
    """Where, from a face, planes are compared with it: the nearest two on each side that the jump of no face touches."""
    step = stride if size >= 2 * stride else 1  # tiles of one stride have no other planes of the same phase
    forward = [offset for offset in range(step, size - 1, step) if offset >= 2][:2]
    return [sign * offset for offset in forward for sign in (-1, 1)]


def _jump(planes: NDArray[np.floating], of: Source) -> float:
    """The jump between the middle two of four planes, of shape (4, C, *plane)."""
    if of == "labels":
        return float((planes[2] != planes[1]).mean())
    before, across, after = np.diff(np.round(planes.astype(np.float64), DIGITS), axis=0)
    steps = np.arcsinh((across - (before + after) / 2) / SCALE)
    for axis in range(1, steps.ndim):
        steps = _window_means(steps, axis)
    return float(np.abs(steps).mean())


def _window_means(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """Means of windows along an axis; the last may be smaller."""
    size = values.shape[axis]
    starts = np.arange(0, size, WINDOW)
    sums = np.add.reduceat(values, starts, axis=axis)
    return sums / np.diff(starts, append=size).reshape([-1 if number == axis else 1 for number in range(values.ndim)])


def _facets(grid: BlockGrid, computed: list[int], axis: int, tile_shape: Shape, reach: int, most: int) -> list[tuple[int, Box]]:
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
    return [facets[int(number)] for number in _strewn(len(facets), most)]


def _strewn(count: int, wanted: int) -> NDArray[np.intp]:
    """At most ``wanted`` of the numbers below ``count``, one drawn from each of as many equal parts, so that no column repeats."""
    wanted = min(count, wanted)
    edges = np.linspace(0, count, wanted + 1)
    drawn = edges[:-1] + np.random.default_rng(0).random(wanted) * np.diff(edges)
    return np.unique(np.minimum(drawn.astype(np.intp), count - 1))


def _score(rows: NDArray[np.float64], of: Source) -> Seam:
    """From (face, elsewhere, weight) of each facet."""
    weights = rows[:, 2:] / rows[:, 2].sum()
    face, elsewhere = (_size(mean, of) for mean in (rows[:, :2] * weights).sum(0).tolist())
    low = high = None
    if len(rows) >= FEWEST:
        chosen = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
        sums = rows[chosen]
        means = (sums[..., :2] * sums[..., 2:]).sum(1) / sums[..., 2:].sum(1)
        ratios = np.sort([_ratio(_size(first, of), _size(second, of)) for first, second in means.tolist()])
        low, high = (_finite(float(ratios[int(share * (RESAMPLES - 1))])) for share in (0.025, 0.975))
    return Seam(face, elsewhere, _finite(_ratio(face, elsewhere)), low, high, len(rows), of)


def _size(mean: float, of: Source) -> float:
    """A mean jump as probability, or as share of voxels."""
    return SCALE * sinh(mean) if of == "probabilities" else mean


def _ratio(face: float, elsewhere: float) -> float:
    if elsewhere > 0:
        return face / elsewhere
    return float("inf") if face > 0 else 1.0


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
