"""The folder of a case, made from seeds: the same image and the same weights whenever it is made. Knows no contender."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import zarr

from tests.benchmarks.cases import Case
from tests.conftest import describe, random_network, textured
from unet_core.model_package import save_model

CHUNKS = {2: 512, 3: 64}


def prepare(folder: Path, case: Case) -> None:
    """Make the folder of a case; one that was made for the same case is left as it is."""
    stated = folder / "case.json"
    if stated.exists() and json.loads(stated.read_text()) == case.facts():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = {"in_channels": 1, "classes": 2, "dims": case.dims, **case.arguments}
    network = random_network(network=case.network, **arguments)
    save_model(folder / "model", network, describe(network=case.network, **arguments))
    chunks = tuple(min(CHUNKS[case.dims], size) for size in case.shape)
    zarr.create_array(folder / "image", data=textured(case.shape), chunks=chunks)
    stated.write_text(json.dumps(case.facts()))  # last: a folder without it is made again
