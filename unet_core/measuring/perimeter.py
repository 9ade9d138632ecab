"""The perimeter of flat objects from what lies around each voxel: where an object's border goes straight, and where it turns.

A voxel is on the border of its object if one of its four neighbours is not of the object. Each border voxel adds 1, sqrt(2) or the mean of
both, by which of its eight neighbours are on the border of the same object (Benkrid and Crookes, "Design and FPGA implementation of a
perimeter estimator", as in ``skimage.measure.perimeter``). So a voxel must be seen with two more around it. Arrays only.
"""

from __future__ import annotations

from itertools import product
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS = (1.0, sqrt(2), (1 + sqrt(2)) / 2)  # of turns 1, 2 and 3

_DIAGONAL = 10
_TURNS = np.zeros(50, dtype=np.uint8)  # by 1 for the voxel, 2 for each side and 10 for each corner that are border
_TURNS[[5, 7, 15, 17, 25, 27]] = 1
_TURNS[[21, 33]] = 2
_TURNS[[13, 23]] = 3


def border_turns(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """How the border of its object runs through each voxel: 1 to 3, see ``WEIGHTS``, or 0 for not at all.

    Args:
        ids: (y + 4, x + 4): a box with a ring of two voxels, 0 where the image has ended; 0 is background.

    Returns:
        Array of shape (y, x).
    """
    near = ids[1:-1, 1:-1]
    sides = ((-1, 0), (1, 0), (0, -1), (0, 1))
    inside = near > 0
    border = inside & ~np.logical_and.reduce(
        [near == _shifted(ids, *side) for side in sides]
    )  # of the box and one voxel around it
    own, is_border = near[1:-1, 1:-1], border[1:-1, 1:-1]
    code = is_border.astype(np.uint8)
    for dy, dx in product((-1, 0, 1), repeat=2):
        if (dy, dx) != (0, 0):
            same = _shifted(border, dy, dx) & (_shifted(near, dy, dx) == own) & is_border
            code += same.view(np.uint8) * np.uint8(_DIAGONAL if dy and dx else 2)
    return np.asarray(_TURNS[code])


def _shifted(values: NDArray[Any], dy: int, dx: int) -> NDArray[Any]:
    """Of all but the outermost voxels, the neighbours in one direction."""
    height, width = values.shape
    return values[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
