"""Outlines of labels along the edges of their voxels, as polygons with holes. Knows arrays, no image and no file.

    corner of an outline: where the voxels around a crossing of the grid are not all of one label, nor split along a line

        a | b        one of four     three of four     two, diagonal: two corners
        --+--          #|.               #|#                #|.
        c | d          -+-               -+-                -+-
                       .|.               #|.                .|#

Corners say all: along each row (and each column) of the grid those of one label, sorted, are in turn first and last of a straight
edge. Which edges follow each other is thus found by sorting, for all labels at once, and corners may come from several tiles.

A polygon is a set of voxels that are connected through their edges. Where two of its voxels touch at a corner only, its outline
is led past the corner twice, on the side of what is not inside, so that no ring meets itself and the polygon is valid (OGC Simple
Feature Access 1.2.1, 6.1.11): what it encloses there becomes a hole that touches the outer ring in one point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Ring = Ints  # (n, 2) with x and y; the last point is the first one again

_ABOVE_LEFT, _ABOVE_RIGHT, _BELOW_LEFT, _BELOW_RIGHT = 1, 2, 4, 8
_ALL = 15
_DIAGONALS = ((_ABOVE_LEFT, _BELOW_RIGHT), (_ABOVE_RIGHT, _BELOW_LEFT))


def _where(*kinds: int) -> NDArray[np.bool_]:
    table = np.zeros(16, dtype=np.bool_)
    table[list(kinds)] = True
    return table


_IS_STRAIGHT = _where(3, 5, 10, 12, _ALL)
# By which of the four voxels have the label: single ones, and the complement of single ones.
_HAS_RIGHT_EDGE = _where(_ABOVE_RIGHT, _BELOW_RIGHT, _ALL - _ABOVE_RIGHT, _ALL - _BELOW_RIGHT)
_HAS_DOWN_EDGE = _where(_BELOW_LEFT, _BELOW_RIGHT, _ALL - _BELOW_LEFT, _ALL - _BELOW_RIGHT)
# Outlines run so that the label is on the left in coordinates where y points up (it points down on a screen): a row's edge runs
# to larger x where the label is at larger y. This tells the corners at which a row's edge begins.
_BEGINS = _where(_BELOW_RIGHT, _ALL - _ABOVE_RIGHT, _ABOVE_LEFT, _ALL - _BELOW_LEFT)


@dataclass(frozen=True)
class Corners:
    """Corners of outlines, in no order.

    Args:
        label: (n,) of any integer type.
        y: (n,) of the grid: 0 is above the first voxel.
        x: likewise.
        kind: (n,) which of the voxels around have the label, 1 above left, 2 above right, 4 below left, 8 below right; one or three.
    """

    label: NDArray[np.generic]
    y: Ints
    x: Ints
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.y)

    def select(self, which: NDArray[np.generic] | slice) -> Corners:
        return Corners(self.label[which], self.y[which], self.x[which], self.kind[which])

    @classmethod
    def join(cls, parts: Sequence[Corners]) -> Corners:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("label", "y", "x", "kind")))


def corners_of(labels: NDArray[np.generic], top: int = 0, left: int = 0) -> Corners:
    """Corners at the inner crossings of an array of labels; 0 has none.

    Args:
        labels: (Y, X) of any integer type; its crossings are between its voxels, so that an image needs a rim of 0.
        top: y of the first of these crossings.
        left: x of it.
    """
    as_right, as_below = labels[:, :-1] == labels[:, 1:], labels[:-1, :-1] == labels[1:, :-1]
    rows, columns = np.divmod(np.flatnonzero(~(as_right[:-1] & as_right[1:] & as_below)), labels.shape[1] - 1)
    flat, width = labels.ravel(), labels.shape[1]
    first = rows * width + columns
    around = np.stack([flat[first + step] for step in (0, 1, width, width + 1)])
    found = []
    for place, own in enumerate(around):
        same = around == own
        kind = np.packbits(same, axis=0, bitorder="little")[0]
        where = np.flatnonzero((own != 0) & ~_IS_STRAIGHT[kind] & ~same[:place].any(axis=0))  # each label once
        found.append(Corners(own[where], rows[where] + top, columns[where] + left, kind[where]))
    corners = Corners.join(found)
    for one, other in _DIAGONALS:
        both = np.flatnonzero(corners.kind == one + other)
        if both.size:
            corners.kind[both] = one
            second = corners.select(both)
            second.kind[:] = other
            corners = Corners.join([corners, second])
    return corners


def polygons_of(corners: Corners) -> Iterator[tuple[int, list[list[Ring]]]]:
    """Polygons of each label that has corners, by ascending label; all of its corners must be there.

    Yields:
        The label, and its polygons in the order of their first voxel: rings, the outer one first, then its holes. Outer rings run
        counter-clockwise in coordinates where y points up, holes clockwise (RFC 7946, 3.1.6), and begin at their first corner.
    """
    if not len(corners):
        return
    labels, key = np.unique(corners.label, return_inverse=True)
    links = _linked(corners, key)
    rings = _rings(links)
    owner = _owners(links, rings)
    # Rings by label, by the outer ring that they belong to, and the outer one before its holes.
    order = np.lexsort((np.arange(len(owner)), rings.is_hole, owner))
    points = rings.points
    polygons: list[list[Ring]] = []
    current = -1
    ring_key, is_hole, starts, stops = (
        rings.key[order].tolist(), rings.is_hole[order].tolist(), rings.starts[order].tolist(), rings.stops[order].tolist(),
    )  # fmt: skip
    for own, hole, start, stop in zip(ring_key, is_hole, starts, stops, strict=True):
        if own != current:
            if polygons:
                yield int(labels[current]), polygons
            current, polygons = own, []
        if not hole:
            polygons.append([])
        polygons[-1].append(points[start:stop])
    yield int(labels[current]), polygons


@dataclass(frozen=True)
class _Links:
    """Corners sorted by label, y and x, and for each the other end of its edge along the row and along the column."""

    key: Ints
    y: Ints
    x: Ints
    kind: NDArray[np.uint8]
    along_row: Ints
    along_column: Ints


def _linked(corners: Corners, key: Ints) -> _Links:
    # At a diagonal the edge that ends there comes before the one that begins.
    top, left = corners.y.min(), corners.x.min()  # so that the products stay small
    y, x = corners.y - top, corners.x - left
    width, height = int(x.max()) + 1, int(y.max()) + 1
    order = np.argsort(((key * height + y) * width + x) * 2 + _HAS_RIGHT_EDGE[corners.kind])
    key, y, x, kind = key[order], y[order], x[order], corners.kind[order]
    by_column = np.argsort(((key * width + x) * height + y) * 2 + _HAS_DOWN_EDGE[kind])
    along_row, along_column = np.arange(len(key)) ^ 1, np.empty(len(key), dtype=np.int64)
    along_column[by_column] = by_column[along_row]
    return _Links(key, y + top, x + left, kind, along_row, along_column)


@dataclass(frozen=True)
class _Rings:
    """Rings, in the order of their first corner.

    Args:
        of: ring of each corner.
        key: of each ring.
        is_hole: of each ring.
        points: (n, 2) with x and y, ring after ring.
        starts: where each ring's points begin.
        stops: where they end.
    """

    of: Ints
    key: Ints
    is_hole: NDArray[np.bool_]
    points: Ints
    starts: Ints
    stops: Ints


def _rings(links: _Links) -> _Rings:
    begins = np.flatnonzero(_BEGINS[links.kind])
    number = np.empty(len(links.key), dtype=np.int64)  # of the edge along the row that a corner begins
    number[begins] = np.arange(len(begins))
    ends = links.along_row[begins]
    after = number[links.along_column[ends]]
    first = _smallest_of_cycle(after)
    twin = _twins(links)
    if twin.size:
        ring = np.empty(len(links.key), dtype=np.int64)
        ring[begins], ring[ends] = first, first
        twin = twin[ring[twin] == ring[twin + 1]]  # of one polygon: other wise these are corners of two
    if twin.size:
        swapped = np.arange(len(links.key))
        swapped[twin], swapped[twin + 1] = twin + 1, twin
        along_column = swapped[links.along_column[swapped]]
        after = number[along_column[ends]]
        first = _smallest_of_cycle(after)
    firsts, ring_of_edge = np.unique(first, return_inverse=True)
    counts = np.bincount(ring_of_edge)
    stops = np.cumsum(2 * counts + 1)
    starts = stops - 2 * counts - 1
    place = starts[ring_of_edge] + 2 * _place_in_cycle(after, first)
    points = np.empty((int(stops[-1]), 2), dtype=np.int64)
    for offset, corner in ((0, begins), (1, ends)):
        points[place + offset, 0], points[place + offset, 1] = links.x[corner], links.y[corner]
    points[stops - 1] = points[starts]
    # Green's theorem: the area is the integral of -y dx, which edges along columns do not add to.
    area = np.bincount(
        ring_of_edge, weights=-(links.x[ends] - links.x[begins]) * (links.y[begins] - links.y.min()).astype(np.float64)
    )
    of = np.empty(len(links.key), dtype=np.int64)
    of[begins], of[ends] = ring_of_edge, ring_of_edge
    return _Rings(of, links.key[begins][firsts], area < 0, points, starts, stops)


def _twins(links: _Links) -> Ints:
    """The first of each two corners of one label at one crossing."""
    same = (links.x[1:] == links.x[:-1]) & (links.y[1:] == links.y[:-1]) & (links.key[1:] == links.key[:-1])
    return np.flatnonzero(same)


def _smallest_of_cycle(after: Ints) -> Ints:
    """The smallest number of each number's cycle, for a permutation; pointer doubling."""
    smallest, jump = np.arange(len(after)), after
    while True:
        seen = np.minimum(smallest, smallest[jump])
        if np.array_equal(seen, smallest):
            return smallest
        smallest, jump = seen, jump[jump]


def _place_in_cycle(after: Ints, first: Ints) -> Ints:
    """How many steps each number is behind the smallest of its cycle; pointer doubling."""
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    is_first = first == np.arange(len(after))
    steps, jump = np.where(is_first, 0, 1), np.where(is_first, first, before)
    while True:
        more = steps[jump]
        if not more.any():
            return steps
        steps, jump = steps + more, jump[jump]


def _owners(links: _Links, rings: _Rings) -> Ints:
    """The outer ring that each ring belongs to; outer ones belong to themselves.

    From a hole's first edge, the voxel above it is of the polygon. Go left from there to the polygon's end in that row: the ring of
    that edge belongs to the same polygon. It is the outer one, or a hole that begins further up.
    """
    owner = np.arange(len(rings.key))
    holes = np.flatnonzero(rings.is_hole)
    if not holes.size:
        return owner
    outer_count = np.bincount(rings.key[~rings.is_hole], minlength=int(rings.key.max()) + 1)
    only_outer = np.empty(len(outer_count), dtype=np.int64)
    only_outer[rings.key[~rings.is_hole]] = np.flatnonzero(~rings.is_hole)
    owner[holes] = only_outer[rings.key[holes]]
    several = holes[outer_count[rings.key[holes]] > 1]
    if several.size:
        owner[several] = _rings_to_the_left(links, rings, several)
        while rings.is_hole[owner[several]].any():
            owner[several] = owner[owner[several]]
    return owner


def _rings_to_the_left(links: _Links, rings: _Rings, holes: Ints) -> Ints:
    keys = np.unique(rings.key[holes])
    # Edges along columns with the label on their right side, cut into rows.
    begins = np.flatnonzero(_HAS_DOWN_EDGE[links.kind] & np.isin(links.key, keys))
    kind = links.kind[begins]
    begins = begins[(kind == _BELOW_RIGHT) | (kind == _ALL - _BELOW_LEFT)]
    lengths = links.y[links.along_column[begins]] - links.y[begins]
    corner = np.repeat(begins, lengths)
    row = links.y[corner] + np.arange(len(corner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    height, width = int(links.y.max()) + 1, int(links.x.max()) + 1
    place = (links.key[corner] * height + row) * width + links.x[corner]
    order = np.argsort(place)
    corner_of_ring = np.empty(len(rings.key), dtype=np.int64)
    corner_of_ring[rings.of[::-1]] = np.arange(len(links.key))[::-1]  # the first of a ring is written last
    start = corner_of_ring[holes]
    wanted = (links.key[start] * height + links.y[start] - 1) * width + links.x[start]
    found = order[np.searchsorted(place[order], wanted, side="right") - 1]
    return rings.of[corner[found]]
