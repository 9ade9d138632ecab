"""What a training job may say."""

from __future__ import annotations

import pytest

from flows.training import make_training_job, train_plainly
from unet_core.errors import InputError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"restarts": -1}, "restarts"),
        ({"loaders": -1}, "loaders"),
        ({"init": "nuclei-he", "settings": ("network.arguments.base=8",)}, "leave --set network.arguments.base=8 away"),
    ],
)
def test_a_job_without_meaning_is_refused_in_one_line(fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_plainly(make_training_job(dataset="data", model_out="model", **fields))
