"""Simple points by brute force over all neighbourhoods; warping keeps topology, and counts what it cannot mend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from tests.unet_core.metrics.partitions import blur, partition
from unet_core.metrics import pixel_error_fiji, warping_error, warping_error_splits_mergers
from unet_core.metrics.warping import _RING, simple_points, splits_and_mergers, warp_sections


def topology(mask: np.ndarray) -> tuple[int, int]:
    """Objects (4-connected) and background regions (8-connected, the outside one of them)."""
    padded = np.pad(mask, 1)
    return int(label(padded, connectivity=1).max()), int(label(~padded, connectivity=2).max())


def test_simple_points_are_those_whose_change_leaves_the_parts_of_3_by_3_pixels() -> None:
    """Counted over the neighbourhood framed by foreground that is joined, or not: brute force over all 256 neighbourhoods."""
    for code, simple in enumerate(simple_points()):
        patch = np.zeros((3, 3), dtype=bool)
        for bit, (row, column) in enumerate(_RING):
            patch[1 + row, 1 + column] = bool(code >> bit & 1)
        foreground = label(patch, connectivity=1)
        near = {foreground[0, 1], foreground[1, 0], foreground[1, 2], foreground[2, 1]} - {0}
        outside = ~patch
        outside[1, 1] = False
        background = label(outside, connectivity=2)
        assert simple == (len(near) == 1 and background.max() == 1), code
    assert sum(simple_points()) == 116  # of 256, as known in digital topology


@pytest.mark.parametrize("seed", range(4))
def test_warping_keeps_the_topology_and_only_ever_removes_mismatches(seed: int) -> None:
    reference = partition((37, 45), seed, 7, 0.3)
    predicted = blur(reference, seed) > 0.5
    warped = warp_sections(predicted, reference, 0.5)[0]
    assert topology(warped.reference) == topology(reference > 0)
    np.testing.assert_array_equal(warped.mismatches, warped.reference != predicted)
    changed = warped.reference != (reference > 0)
    assert not (changed & warped.mismatches).any()
    assert 0 < warped.mismatches.sum() < ((reference > 0) != predicted).sum()
    for row, column in np.argwhere(warped.mismatches):  # none that is left could be mended
        mended = warped.reference.copy()
        mended[row, column] ^= True
        around = np.pad(warped.reference, 1)[row : row + 3, column : column + 3]
        code = sum(bool(around[1 + y, 1 + x]) << bit for bit, (y, x) in enumerate(_RING))
        assert not simple_points()[code]


def test_a_displaced_outline_costs_nothing_and_a_merger_one_pixel() -> None:
    cells = np.zeros((21, 31), dtype=int)
    cells[3:18, 3:14] = 1
    cells[3:18, 17:28] = 1
    displaced = ndimage.binary_dilation(cells, iterations=1)
    assert warping_error(displaced, cells) == 0
    assert pixel_error_fiji(displaced, cells) > 0.1
    bridged = cells.astype(bool).copy()
    bridged[9, 14:17] = True
    assert warping_error(bridged, cells) == 1 / (21 * 31)
    assert warping_error_splits_mergers(bridged, cells) == 1 / (21 * 31)
    divided = cells.astype(bool).copy()
    divided[:, 8] = False
    assert warping_error(divided, cells) == 1 / (21 * 31)
    assert warping_error_splits_mergers(divided, cells) == 1 / (21 * 31)


def test_holes_and_lost_objects_are_no_splits_or_mergers() -> None:
    cells = np.zeros((21, 31), dtype=int)
    cells[3:18, 3:14] = 1
    cells[5:9, 17:22] = 1
    wrong = cells.astype(bool).copy()
    wrong[5:9, 17:22] = False  # lost
    wrong[9:12, 7:9] = False  # a hole
    wrong[15:17, 24:26] = True  # made up
    assert warping_error(wrong, cells) * 21 * 31 == pytest.approx(1 + 6 + 4)
    assert warping_error_splits_mergers(wrong, cells) == 0


def test_sections_are_averaged_and_thresholds_searched() -> None:
    cells = np.zeros((15, 23), dtype=int)
    cells[2:13, 2:10] = cells[2:13, 12:21] = 1
    bridged = cells.astype(np.float32)
    bridged[7, 10:12] = 0.35  # joined below 0.35 only
    stack, truth = np.stack([bridged, cells.astype(np.float32)]), np.stack([cells, cells])
    assert warping_error(stack, truth, threshold=0.3) == pytest.approx(1 / (2 * 15 * 23))
    assert warping_error(stack, truth, threshold=0.4) == 0
    assert warping_error_splits_mergers(stack, truth) == 0
    assert warping_error_splits_mergers(stack, truth, thresholds=(0.1, 0.3)) == pytest.approx(1 / (2 * 15 * 23))


def test_the_most_certain_pixel_is_changed_first() -> None:
    """Two ways to mend a gap: the surer pixel goes first, so that the other stays as the mismatch."""
    cells = np.zeros((7, 12), dtype=int)
    cells[2:5, 1:5] = cells[2:5, 7:11] = 1
    joined = np.where(cells, 1.0, 0.0)
    joined[3, 5], joined[3, 6] = 0.9, 0.6
    assert np.argwhere(warp_sections(joined, cells, 0.5)[0].mismatches).tolist() == [[3, 6]]
    joined[3, 5], joined[3, 6] = 0.6, 0.9
    assert np.argwhere(warp_sections(joined, cells, 0.5)[0].mismatches).tolist() == [[3, 5]]


def test_ignored_pixels_are_neither_changed_nor_wrong() -> None:
    reference = partition((37, 45), 5, 7, 0.3)
    marked = reference.copy()
    marked[:, 20:26] = 255
    warped = warp_sections(blur(reference, 5), marked, 0.5, ignore=255)[0]
    assert not warped.mismatches[:, 20:26].any()
    assert not warped.reference[:, 20:26].any()
    assert splits_and_mergers(warped).sum() <= warped.mismatches.sum()


@pytest.mark.parametrize("score", [warping_error, warping_error_splits_mergers])
def test_sections_that_are_ignored_everywhere_are_left_out_of_the_mean(score: Callable[..., float]) -> None:
    cells = np.zeros((15, 23), dtype=int)
    cells[2:13, 2:10] = cells[2:13, 12:21] = 1
    bridged, ignored = cells.copy(), np.full_like(cells, 255)
    bridged[7, 10:12] = 1
    assert score(np.stack([bridged, bridged]) > 0, np.stack([ignored, cells]), ignore=255) == pytest.approx(1 / (15 * 23))
    assert np.isnan(score(bridged > 0, ignored, ignore=255))
