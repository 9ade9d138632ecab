"""Mutex watersheds against brute force: of one array, of tiles and the graph of their fragments, in memory and in blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.unet_core.postprocess.cells import touching_cells, true_affinities
from tests.unet_core.postprocess.test_watershed import classes
from unet_core.errors import InputError
from unet_core.geometry import BlockGrid
from unet_core.metrics import adapted_rand
from unet_core.postprocess import blockwise_mutex, bonding, connected_components, in_scan_order, watershed_on_affinities
from unet_core.postprocess.affinities import usual_tile
from unet_core.postprocess.blockwise_mutex import describe_fragments, tiles_box
from unet_core.postprocess.joining import Joiner
from unet_core.postprocess.mutex import mutex_watershed

OFFSETS = {
    2: ((0, 1), (-1, 0), (0, 3), (2, -2), (-3, 1)),
    3: ((0, 0, 1), (0, -1, 0), (1, 0, 0), (0, 3, 0), (-2, 0, 2), (0, 0, -3)),
}
Place = tuple[int, ...]
Edge = tuple[Any, Hashable, Hashable, bool]  # sorts first where it comes first; both ends; whether it attracts


def clusters(nodes: Iterable[Hashable], edges: list[Edge]) -> dict[Hashable, Hashable]:
    """For each node its cluster, one edge after the other, as in the paper."""
    members = {node: {node} for node in nodes}
    apart: set[frozenset[Hashable]] = set()
    for _, one, other, pulls in sorted(edges, key=lambda edge: edge[0]):
        if members[one] is members[other]:
            continue
        kept_apart = any(frozenset((first, second)) in apart for first in members[one] for second in members[other])
        if kept_apart:
            continue
        if not pulls:
            apart.add(frozenset((one, other)))
            continue
        both = members[one] | members[other]
        for node in both:
            members[node] = both
    return {node: min(found) for node, found in members.items()}


def voxel_edges(labels: np.ndarray, affinities: np.ndarray, offsets: tuple[Place, ...]) -> list[Edge]:
    edges = []
    for place in product(*map(range, labels.shape)):
        for number, offset in enumerate(offsets):
            there = tuple(one + step for one, step in zip(place, offset, strict=True))
            if not all(0 <= one < size for one, size in zip(there, labels.shape, strict=True)):
                continue
            if labels[place] and labels[place] == labels[there]:
                pulls = sum(map(abs, offset)) == 1
                strength = int(affinities[(number, *place)]) if pulls else 255 - int(affinities[(number, *place)])
                if strength or not pulls:
                    edges.append(((-strength, place, number), place, there, pulls))
    return edges


def brute_force(labels: np.ndarray, affinities: np.ndarray, offsets: tuple[Place, ...]) -> np.ndarray:
    inside = list(zip(*map(tuple, np.nonzero(labels).__iter__()), strict=True)) if labels.any() else []
    inside = [tuple(int(one) for one in place) for place in inside]
    return painted(labels.shape, clusters(inside, voxel_edges(labels, affinities, offsets)))


def painted(shape: Place, found: dict[Any, Any]) -> np.ndarray:
    result = np.zeros(shape, dtype=np.int64)
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(found.values()), 1)}
    for place, cluster in found.items():
        result[place] = numbers[cluster]
    return in_scan_order(result)


def brute_force_in_tiles(labels: np.ndarray, affinities: np.ndarray, offsets: tuple[Place, ...], tile: Place) -> np.ndarray:
    fragment: dict[Place, Place] = {}  # the first voxel of each voxel's fragment
    for box in BlockGrid(labels.shape, tile).blocks():
        found = brute_force(labels[box.slices()], affinities[(slice(None), *box.slices())], offsets)
        firsts: dict[int, Place] = {}
        for place in product(*map(range, found.shape)):
            if found[place]:
                absolute = tuple(one + first for one, first in zip(place, box.start, strict=True))
                fragment[absolute] = firsts.setdefault(int(found[place]), absolute)
    said: dict[tuple[Place, Place], list[tuple[int, bool]]] = {}
    for place in fragment:
        for number, offset in enumerate(offsets):
            there = tuple(one + step for one, step in zip(place, offset, strict=True))
            if there in fragment and labels[place] == labels[there] and fragment[place] != fragment[there]:
                first, second = sorted((fragment[place], fragment[there]))
                value = int(affinities[(number, *place)]), sum(map(abs, offset)) == 1
                said.setdefault((first, second), []).append(value)
    edges: list[Edge] = []
    for (first, second), values in said.items():
        lean = Fraction(sum(value for value, _ in values), 255 * len(values)) - Fraction(1, 2)
        if lean < 0 or (lean > 0 and any(near for _, near in values)):
            edges.append(((-abs(lean), first, second), first, second, lean > 0))
    owner = clusters(set(fragment.values()), edges)
    return painted(labels.shape, {place: owner[first] for place, first in sorted(fragment.items())})


def noise(shape: Place, seed: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.integers(0, 256, (len(OFFSETS[len(shape)]), *shape))
    return (values if kind == "noise" else 51 * (values // 51)).astype(np.uint8)  # in steps, most are equal


def in_blocks(
    labels: np.ndarray, affinities: np.ndarray, offsets: tuple[Place, ...], tile: Place, block: Place, min_voxels: int = 1
) -> np.ndarray:
    grid = BlockGrid(labels.shape, block)
    joiner, runs = Joiner(grid), {}
    for number in np.random.default_rng(0).permutation(grid.block_count).tolist():
        own = grid.block(number)
        land = tiles_box(own, labels.shape, tile, offsets).slices()
        runs[number], described = describe_fragments(
            labels[land], affinities[(slice(None), *land)], own, labels.shape, offsets=offsets, tile=tile
        )
        joiner.add(number, described)
    joined = joiner.join(min_voxels)
    result = np.zeros(labels.shape, dtype=np.int64)
    for number, own in enumerate(grid.blocks()):
        result[own.slices()] = runs[number].replaced(np.concatenate(([0], joined.ids_of(number))), own.shape)
    np.testing.assert_array_equal(joined.sizes, np.bincount(result.ravel())[1:])
    for number in range(1, len(joined.values) + 1):
        assert set(labels[result == number]) == {joined.values[number - 1]}
    return result


@pytest.mark.parametrize("kind", ["noise", "steps"])
@pytest.mark.parametrize("shape", [(9, 11), (1, 7), (4, 5, 6)], ids=str)
def test_parts_are_those_of_brute_force(kind: str, shape: Place) -> None:
    for seed in range(6):
        labels, affinities = classes(shape, seed), noise(shape, seed, kind)
        expected = brute_force(labels, affinities, OFFSETS[len(shape)])
        np.testing.assert_array_equal(mutex_watershed(labels, affinities, OFFSETS[len(shape)]), expected)
        exact = affinities.astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(mutex_watershed(labels, exact, OFFSETS[len(shape)]), expected)
        assert expected.max() > 1
    assert not mutex_watershed(np.zeros(shape, np.uint8), affinities, OFFSETS[len(shape)]).any()
    one = (slice(0, 1),) * len(shape)
    assert mutex_watershed(np.ones((1,) * len(shape), np.uint8), affinities[(slice(None), *one)], OFFSETS[len(shape)]).max() == 1


CUTS = [((13, 17), (5, 4), [(5, 8), (3, 6), (13, 2)]), ((6, 7, 9), (3, 2, 4), [(3, 4, 4), (6, 1, 5), (2, 3, 9)])]


@pytest.mark.parametrize("kind", ["noise", "steps"])
@pytest.mark.parametrize(("shape", "tile", "blocks"), CUTS, ids=str)
def test_any_blocks_give_what_brute_force_gives_in_the_same_tiles(
    kind: str, shape: Place, tile: Place, blocks: list[Place]
) -> None:
    offsets, joined = OFFSETS[len(shape)], 0
    for seed in range(4):
        labels, affinities = classes(shape, seed), noise(shape, seed, kind)
        expected = brute_force_in_tiles(labels, affinities, offsets, tile)
        for block in blocks:
            np.testing.assert_array_equal(in_blocks(labels, affinities, offsets, tile, block), expected)
        mask = (labels > 0).astype(np.uint8)
        whole = watershed_on_affinities(affinities, mask, offsets, tile=tile)
        np.testing.assert_array_equal(whole, in_blocks(mask, affinities, offsets, tile, blocks[0]))
        fragments = sum(
            mutex_watershed(labels[box.slices()], affinities[(slice(None), *box.slices())], offsets).max()
            for box in BlockGrid(shape, tile).blocks()
        )
        joined += fragments - expected.max()
    assert joined > 4


@pytest.mark.parametrize(
    ("shape", "tile", "blocks"),
    [
        ((131, 170), (48, 32), [(96, 64), (50, 170), (64, 24)]),
        ((30, 41, 53), (16, 16, 16), [(16, 32, 16), (30, 13, 53), (8, 41, 24)]),
    ],
)
def test_true_affinities_of_cells_that_touch_give_the_cells(shape: Place, tile: Place, blocks: list[Place]) -> None:
    cells = touching_cells(shape, seed=2)
    ids = connected_components(cells.mask)  # touch all over; a cell that the image's end cuts in two is two
    assert len(np.unique(cells.ids)) > 1.3 * ids.max()
    pieces = sum((connected_components(cells.ids == one) > 0).any() for one in range(1, cells.ids.max() + 1))
    assert pieces == cells.ids.max()
    affinities = true_affinities(cells.ids, OFFSETS[len(shape)])
    mask = cells.mask.astype(np.uint8)
    whole = watershed_on_affinities(affinities, mask, OFFSETS[len(shape)], tile=tile)
    assert adapted_rand(whole, cells.ids).error == 0
    np.testing.assert_array_equal(whole, in_scan_order(cells.ids))
    for block in blocks:
        np.testing.assert_array_equal(in_blocks(mask, affinities, OFFSETS[len(shape)], tile, block), whole)


def test_small_ones_are_left_out_and_the_others_numbered_on() -> None:
    labels, affinities = classes((13, 17), 1), noise((13, 17), 1, "noise")
    whole = in_blocks(labels, affinities, OFFSETS[2], (5, 4), (6, 7))
    kept = in_blocks(labels, affinities, OFFSETS[2], (5, 4), (5, 8), min_voxels=3)
    sizes = np.bincount(whole.ravel())
    np.testing.assert_array_equal(kept, in_scan_order(np.where(sizes[whole] >= 3, whole, 0)))
    assert 0 < kept.max() < whole.max()


@pytest.mark.parametrize("mutation", ["weakest first", "fragments known to one block", "edges counted twice"])
def test_blocks_would_differ_from_brute_force_with(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true_clusters, true_positions, true_added = bonding.mutex_clusters, blockwise_mutex.scan_positions, blockwise_mutex._added
    if mutation == "weakest first":
        monkeypatch.setattr(
            bonding, "mutex_clusters", lambda count, *edges: true_clusters(count, *(part[::-1] for part in edges))
        )
    elif mutation == "fragments known to one block":
        calls = iter(range(10**6))
        monkeypatch.setattr(
            blockwise_mutex, "scan_positions", lambda *places: true_positions(*places) + np.uint64(999 * next(calls))
        )
    else:
        monkeypatch.setattr(blockwise_mutex, "_added", lambda pairs, count, *sums: true_added(pairs, np.uint64(2) * count, *sums))
    shape, tile, blocks = CUTS[0]
    labels, affinities = classes(shape, 0), noise(shape, 0, "noise")
    expected = brute_force_in_tiles(labels, affinities, OFFSETS[2], tile)
    assert (in_blocks(labels, affinities, OFFSETS[2], tile, blocks[1]) != expected).any()


def test_what_has_no_meaning_is_refused() -> None:
    mask = np.ones((5, 6), dtype=bool)
    with pytest.raises(InputError, match=r"None of the offsets .* direct neighbour"):
        watershed_on_affinities(np.ones((1, 5, 6), np.float32), mask, ((0, 2),))
    with pytest.raises(InputError, match="not all of the 2 axes"):
        watershed_on_affinities(np.ones((1, 5, 6), np.float32), mask, ((0, 0, 1),))
    with pytest.raises(InputError, match=r"have shape \(2, 5, 6\), 1 offsets"):
        watershed_on_affinities(np.ones((2, 5, 6), np.float32), mask, ((0, 1),))
    with pytest.raises(InputError, match="no probabilities"):
        watershed_on_affinities(np.full((1, 5, 6), np.nan, np.float32), mask, ((0, 1),))


def test_tiles_are_no_thin_slices_and_sections_that_no_offset_joins_have_their_own() -> None:
    assert usual_tile((9, 900, 1023), ((0, 0, 1), (0, 1, 0), (0, 9, 0), (0, 0, 4))) == (1, 256, 256)
    assert usual_tile((50, 100, 200), OFFSETS[3]) == (50, 64, 56)
    for size in range(1, 400):
        step = usual_tile((size, 10, 10), OFFSETS[3])[0]
        assert min(size, 32) <= step <= 64
        assert size % step == 0 or size % step >= min(size, step / 2)
