"""Export of many nuclei as GeoJSON: ``python -m tests.benchmarks.exporting FOLDER [NUCLEI]``, a million unless told.

The result is drawn, not segmented: each block of the first stage is ellipses in place of what a network says; ids, table and coarser
levels are made by the pipeline, as always. It is kept in FOLDER and used again. The export is timed in a process of its own, with its
peak memory (resident, by the kernel). Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unet_core import worker
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.segment import run

_STEP = 40  # voxels from nucleus to nucleus
_BLOCK = 2000  # whole steps
_RADII = (7.0, 17.0)


def nuclei(box: Box) -> NDArray[np.uint8]:
    """Ellipses of all directions, one in each square of 40 voxels; always the same in the same block."""
    out = np.zeros(box.shape, np.uint8)
    y, x = np.mgrid[:_STEP, :_STEP] - (_STEP - 1) / 2
    for row in range(box.start[0] // _STEP, ceil(box.stop[0] / _STEP)):
        random = np.random.default_rng([row, box.start[1]])
        columns = range(box.start[1] // _STEP, ceil(box.stop[1] / _STEP))
        radii, turns = random.uniform(*_RADII, (len(columns), 2)), random.uniform(0, np.pi, len(columns))
        for number, column in enumerate(columns):
            along = y * np.cos(turns[number]) + x * np.sin(turns[number])
            across = x * np.cos(turns[number]) - y * np.sin(turns[number])
            inside = (along / radii[number, 0]) ** 2 + (across / radii[number, 1]) ** 2 < 1
            top, left = row * _STEP - box.start[0], column * _STEP - box.start[1]
            part = out[top : top + _STEP, left : left + _STEP]
            part[...] = inside[: part.shape[0], : part.shape[1]]
    return out


def draw(folder: Path, count: int) -> Path:
    """A finished result with about ``count`` nuclei."""
    columns = ceil(count**0.5)
    shape = (ceil(count / columns) * _STEP, columns * _STEP)
    image, output = folder / "image.zarr", folder / "nuclei.zarr"
    if not image.exists():
        zarr.create_array(image, shape=(*shape, 3), chunks=(_BLOCK, _BLOCK, 3), dtype="uint8", dimension_names=["y", "x", "c"])

    def drawn(unit: worker.Unit) -> list[NDArray[Any]]:
        values = nuclei(unit.stage.grid.block(unit.index))
        return [values * np.uint8(255) if entry.kind == "map" else values for entry in unit.worker.plan.images]

    worker.predict_block = drawn  # type: ignore[assignment]
    worker._read = lambda unit, box: np.zeros((3, *box.shape), np.uint8)
    job = make_job(
        image=str(image), output=str(output), model="nuclei-he", missing="fill", instances="components", min_voxels=20,
        voxel_size_um=(0.25, 0.25), block_shape=(_BLOCK, _BLOCK),
    )  # fmt: skip
    summary = run(job)
    assert summary.status == "complete", summary.failures
    return output


def export(output: str, target: str) -> dict[str, Any]:
    """Seconds and peak memory of one export, in this process."""
    from unet_core.exports import export_result

    before = time.process_time()
    done = export_result(output, target)
    return {
        "features": done.facts["features"],
        "measurements": len(done.facts["measurements"]),
        "seconds": round(done.seconds, 1),
        "cpu_seconds": round(time.process_time() - before, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "mib": done.size_bytes >> 20,
        "load": os.getloadavg()[0],
    }


def main(folder: Path, count: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    output, target = draw(folder, count), folder / "objects.geojson.gz"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.exporting", "--export", str(output), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        print(json.dumps(export(*sys.argv[2:])))
    else:
        print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)))
