"""What the Prefect UI shows of the flows' parameters."""

from __future__ import annotations

import json

from prefect.utilities.callables import parameter_schema

from unet_core.model_package import bundled_models


def test_every_parameter_of_the_forms_has_a_title_and_an_explanation() -> None:
    from flows.archive import segment_archive
    from flows.evaluate import evaluate_archive
    from flows.segment import segment_volume
    from flows.train import train_model
    from flows.verify import verify_output

    for flow in (segment_volume, segment_archive, train_model, evaluate_archive, verify_output):
        schema = parameter_schema(flow)
        for model in (schema.model_dump(), *schema.definitions.values()):
            for name, field in model["properties"].items():
                assert field.get("description"), (flow.name, name)
                assert field.get("title"), (flow.name, name)
        assert "Args:" not in json.dumps(schema.definitions)
    model = parameter_schema(segment_volume).definitions["SegmentationJob"]["properties"]["model"]
    assert all(name in model["description"] for name in bundled_models())
