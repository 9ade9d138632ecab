"""Exported to bioimage.io and imported again, every network of the table is the model that it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import describe, random_network
from tests.unet_core.networks.test_conformance import CASE_IDS, CASES
from unet_core.foreign.bioimageio import import_model
from unet_core.foreign.export_bioimageio import export_bioimageio
from unet_core.model_description import MomentsNormalisation, NoNormalisation
from unet_core.model_package import ImageNormalisation, load_model, save_model

NORMALISATIONS = [
    ImageNormalisation(low=2.0, high=99.0),
    ImageNormalisation(joint=True, eps=1e-3),
    MomentsNormalisation(),
    MomentsNormalisation(joint=True, eps=1e-4),
    NoNormalisation(),
]


def there_and_back(folder: Path, description: Any, network: torch.nn.Module) -> None:
    save_model(folder / "model", network, description)
    before = load_model(folder / "model")
    export_bioimageio(before, str(folder / "exported"), authors=("A. Author",), licence="MIT")
    imported = import_model(str(folder / "exported"), str(folder / "imported"))
    after = load_model(folder / "imported")
    assert after.sha256 == before.sha256
    assert after.footprint == before.footprint
    assert after.description.model_copy(update={"provenance": {}}) == before.description.model_copy(update={"provenance": {}})
    image = torch.randn(2, len(description.input_channels), *before.footprint.legal_shape((1,) * before.dims))
    with torch.inference_mode():
        assert torch.equal(after.network(image), before.network(image))
    assert imported.difference.relative <= 1e-5


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_every_network_comes_back_as_it_was(
    name: str, dims: int, arguments: dict[str, Any], padding: str, tmp_path: Path
) -> None:
    chosen = {"in_channels": 1, "classes": 2, "base": 2, "dims": dims, "padding": padding} | json.loads(json.dumps(arguments))
    there_and_back(tmp_path, describe(network=name, **chosen), random_network(network=name, **chosen))


@pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=str)
def test_every_normalisation_comes_back_as_it_was(normalisation: Any, tmp_path: Path) -> None:
    chosen = {"in_channels": 2, "classes": 2, "base": 2, "levels": 2}
    description = describe("regions", **chosen).model_copy(update={"normalisation": normalisation})
    there_and_back(tmp_path, description, random_network(**chosen))


def test_other_weights_do_not_come_back(tmp_path: Path) -> None:
    from unet_core.errors import ModelPackageError

    chosen = {"in_channels": 1, "classes": 2, "base": 2, "levels": 2}
    save_model(tmp_path / "model", random_network(**chosen), describe(**chosen))
    export_bioimageio(load_model(tmp_path / "model"), str(tmp_path / "exported"), authors=("A. Author",), licence="MIT")
    state = torch.load(tmp_path / "exported/weights.pt", weights_only=True)
    state["head.bias"] += torch.tensor([0.5, 0.0])
    torch.save(state, tmp_path / "exported/weights.pt")
    with pytest.raises(ModelPackageError, match="sha256"):
        import_model(str(tmp_path / "exported"), str(tmp_path / "imported"))
    file = tmp_path / "exported/bioimageio.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "sha256" not in line))
    with pytest.raises(ModelPackageError, match="test output"):
        import_model(str(tmp_path / "exported"), str(tmp_path / "imported"))
    assert not (tmp_path / "imported").exists()
