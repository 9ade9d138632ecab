"""What the training flow shows of a step."""

from __future__ import annotations

from flows.train import sentence


def test_a_step_is_told_in_words() -> None:
    report = {"step": 200, "steps": 2000, "loss": 0.51234, "crops_per_second": 3.04, "scores": {}}
    assert sentence(report) == "step 200 of 2000: loss 0.5123, 3.0 crops/s"
    scored = report | {"scores": {"loss": 0.4, "iou": 0.71}}
    assert sentence(scored) == "step 200 of 2000: loss 0.5123, 3.0 crops/s; validation: loss 0.4000, iou 0.7100"
