"""Connected components of what one block sees. Arrays only; how blocks are joined: ``block_parts``, ``joining``."""

from __future__ import annotations

from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS: tuple[Literal[6, 18, 26], ...] = (
    6,
    18,
    26,
)  # by how many axes a step to a neighbour may change; in 2D, of one section, 4, 8 and 8


def label_parts(labels: NDArray[np.unsignedinteger], connectivity: int) -> NDArray[np.uint32]:
    """Number the parts of equal value 1, 2, ..; 0 where the value is.

    Args:
        labels: of 2 or 3 dimensions.
        connectivity: how many axes a step to a neighbour may change.
    """
    volume = np.ascontiguousarray(labels if labels.ndim == 3 else labels[None])
    found: Any = cc3d.connected_components(volume, connectivity=_NEIGHBOURS[connectivity - 1], out_dtype=np.uint32)
    parts: NDArray[np.uint32] = found.reshape(labels.shape)
    return parts
