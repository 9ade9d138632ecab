"""What a folder of ``unet train`` is told by, for those who look for a result or a model in it. Knows no torch and no data.

MODEL_OUT/model.json                 when the training is complete
MODEL_OUT/training/plan.json         from the first moment
MODEL_OUT/training/checkpoints/00000200.json   whole checkpoints, by their step
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from unet_core.store import open_store

FOLDER, PLAN, CHECKPOINTS = "training", "plan.json", "checkpoints"
_MODEL = "model.json"
_STATE = ".json"


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training stands.

    Args:
        url: of the folder.
        is_complete: whether the model is there.
        kept: steps after which it would go on; those of the last whole checkpoint.
        steps: in all.
    """

    url: str
    is_complete: bool
    kept: int
    steps: int

    def sentence(self) -> str:
        """In words, with how to go on."""
        if self.is_complete:
            return f"{self.url} is a training, all its {self.steps} steps are done; unet model info {self.url} shows its model"
        return (
            f"{self.url} is a training that is not finished ({self.kept} of {self.steps} steps are kept); run the same unet train command "
            "again to go on from there, its model appears at the end"
        )


def find_training(url: str) -> TrainingStatus | None:
    """The training that a folder holds, None if it holds none that can be read."""
    store = open_store(url)
    try:
        steps = json.loads(store.get(f"{FOLDER}/{PLAN}"))["options"]["steps"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    names = [name.removesuffix(_STATE) for name in store.child_names(f"{FOLDER}/{CHECKPOINTS}") if name.endswith(_STATE)]
    kept = max((int(name) for name in names if name.isdecimal()), default=0)
    return TrainingStatus(url, store.exists(_MODEL), kept, steps) if isinstance(steps, int) else None
