"""Where close-ups of a result are taken: of a sample of places, the densest, the most uncertain, and some at random. Knows no report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.pictures.scene import Readable, Scene

CANDIDATES = 256  # places that are looked at, at most
_LISTED = 50_000  # places of an image up to which all are listed, to draw from
_PLANES = 16  # sections of a volume that places lie in; neighbours look alike
_READERS = 4
_SEED = 0

Why = Literal["densest", "most uncertain", "at random"]


@dataclass(frozen=True)
class Place:
    """A place of a result.

    Args:
        box: in voxels; one thick along z.
        why: it was chosen.
        objects: that it touches: ids where there are some, else connected voxels of one class.
        share: of its voxels that are of a class that is shown.
        uncertainty: mean over its voxels, 0 (certain) to 1 (all classes equally likely); None without probabilities.
    """

    box: Box
    why: Why
    objects: int
    share: float
    uncertainty: float | None


@dataclass(frozen=True)
class Sample:
    """Places for close-ups, and of how many they were chosen."""

    places: tuple[Place, ...]
    candidates: int
    side: Shape


def choose_places(
    scene: Scene,
    side: int,
    each: int,
    probabilities: Readable | None = None,
    kind: Literal["classes", "regions"] = "classes",
    centres: NDArray[np.floating] | None = None,
) -> Sample:
    """Choose places; the same for the same result.

    Args:
        scene: whose labels are looked at.
        side: of a place, in voxels along the last two axes.
        each: places of each kind, at most; those at random are empty ones only where no others are left.
        probabilities: of the classes, of shape (C, ...), as they are stored.
        kind: of the head that they come from.
        centres: of all objects, (objects, axes), if they are known: the densest places are then found wherever they are.
    """
    boxes = candidate_boxes(scene, side, each, centres)
    with ThreadPoolExecutor(_READERS) as readers:
        looked = list(readers.map(lambda box: _look(scene, box, probabilities, kind), boxes))
    order = np.random.default_rng(_SEED).permutation(len(looked)).tolist()
    order.sort(key=lambda number: looked[number][0] == 0)  # of glass and resin there is more than enough
    rankings: list[tuple[Why, list[int]]] = [("densest", _best([objects for objects, _, _ in looked]))]
    if probabilities is not None:
        rankings.append(("most uncertain", _best([uncertainty or 0.0 for _, _, uncertainty in looked])))
    rankings.append(("at random", order))
    chosen: dict[int, Why] = {}
    apart = tuple(2 * -(-extent // _PLANES) for extent in scene.shape[:-2])
    for why, ranking in rankings:
        found = 0
        for number in ranking:
            if found < each and not any(_resembles(boxes[number], boxes[other], apart) for other in chosen):
                chosen[number] = why
                found += 1
    places = tuple(Place(boxes[number], why, *looked[number]) for number, why in chosen.items())
    return Sample(places, len(boxes), boxes[0].shape if boxes else ())


def _resembles(box: Box, other: Box, apart: Shape) -> bool:
    """Whether two places show much of the same: more than half of each, in sections less than ``apart`` from each other."""
    flat = len(apart)
    if any(abs(first - second) > far for first, second, far in zip(box.start, other.start, apart, strict=False)):
        return False
    common = Box(box.start[flat:], box.stop[flat:]).intersect(Box(other.start[flat:], other.stop[flat:]))
    return 2 * common.voxel_count > box.voxel_count


def _best(values: Sequence[float]) -> list[int]:
    """Numbers of the values above 0, the highest first."""
    return [number for number in sorted(range(len(values)), key=lambda number: -values[number]) if values[number] > 0]


def candidate_boxes(scene: Scene, side: int, each: int = 0, centres: NDArray[np.floating] | None = None) -> list[Box]:
    """At most ``CANDIDATES`` places inside what was computed, in the order of a scan; and ``each`` with the most centres."""
    flat = len(scene.shape) - 2
    thick = tuple(-(-extent // _PLANES) for extent in scene.shape[:flat])
    grid = BlockGrid(scene.shape, thick + tuple(min(side, extent) for extent in scene.shape[flat:]))
    random = np.random.default_rng(_SEED)
    if grid.block_count <= _LISTED:
        listed = [index for index in range(grid.block_count) if _is_computed(scene, _inside(grid, index))]
    else:
        listed = sorted({index for index in _drawn(scene, grid, random) if _is_computed(scene, _inside(grid, index))})
    if len(listed) > CANDIDATES:
        listed = random.choice(listed, CANDIDATES, replace=False).tolist()
    if centres is not None:
        listed = [*listed, *_crowded(scene, grid, each, centres)]
    return [_inside(grid, index) for index in sorted(set(listed))]


def _crowded(scene: Scene, grid: BlockGrid, each: int, centres: NDArray[np.floating]) -> list[int]:
    """Places that hold the most centres."""
    places = np.floor(centres).astype(np.int64) // np.asarray(grid.block_shape)
    numbers, counts = np.unique(np.ravel_multi_index(tuple(places.T), grid.counts), return_counts=True)
    ordered = numbers[np.argsort(-counts, kind="stable")].tolist()
    return list(islice((index for index in ordered if _is_computed(scene, _inside(grid, index))), each))


def _drawn(scene: Scene, grid: BlockGrid, random: np.random.Generator) -> list[int]:
    """Places in blocks that were computed, of which there may be few in a huge image."""
    blocks = np.flatnonzero(scene.done.reshape(-1))
    found = []
    for block in random.choice(blocks, 8 * CANDIDATES).tolist() if blocks.size else []:
        box = scene.grid.block(block).scale_down(grid.block_shape)
        offset = tuple(int(random.integers(extent)) for extent in box.shape)
        found.append(grid.index(tuple(first + more for first, more in zip(box.start, offset, strict=True))))
    return found


def _inside(grid: BlockGrid, index: int) -> Box:
    """The middle plane of a box of the grid, moved in at the end of the image so that all are of one size."""
    box, size = grid.block(index), grid.block_shape
    flat = box.ndim - 2
    middle = tuple((first + last) // 2 for first, last in zip(box.start[:flat], box.stop[:flat], strict=True))
    ends = zip(box.start[flat:], grid.shape[flat:], size[flat:], strict=True)
    start = middle + tuple(min(first, extent - side) for first, extent, side in ends)
    return Box.from_shape((1,) * flat + size[flat:], start)


def _is_computed(scene: Scene, box: Box) -> bool:
    return bool(scene.done[box.scale_down(scene.grid.block_shape).slices()].all())


def _look(
    scene: Scene, box: Box, probabilities: Readable | None, kind: Literal["classes", "regions"]
) -> tuple[int, float, float | None]:
    """Objects, share, and uncertainty of a place."""
    inside = np.zeros(box.shape, dtype=bool)
    objects = 0
    if scene.ids_path is not None:
        objects = len(np.setdiff1d(scene.labels(scene.ids_path).read(box)[0], [0]))
    for path in dict.fromkeys(entry.path for entry in scene.classes):
        labels = scene.labels(path).read(box)[0]
        shown = np.where(np.isin(labels, [entry.value for entry in scene.classes if entry.path == path]), labels, 0)
        inside |= shown > 0
        if scene.ids_path is None:
            objects += int(label(shown, connectivity=1).max())
    share = float(inside.mean()) if prod(box.shape) else 0.0
    if probabilities is None:
        return objects, share, None
    from unet_core.corrections.scores import UNIT, entropies  # its package imports torch, which pictures do without

    return objects, share, float(entropies(probabilities.read(box), kind).mean()) / UNIT
