"""What a training shows while it runs: a CSV table, TensorBoard, and a picture of each validation. Written by rank 0 only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_core.model_description import ModelDescription
from unet_core.training.validation_picture import draw_validation

if TYPE_CHECKING:
    from unet_core.training.validation import Predicted

LOG, CURVES = "log.csv", "curves.png"
_FIRST_COLUMNS = ("step", "loss", "rate", "crops_per_second")


@dataclass(frozen=True)
class StepReport:
    """One step, as it is shown.

    Args:
        step: steps done.
        steps: in all.
        loss: of this step's crops.
        rate: learning rate.
        crops_per_second: over all ranks, since the last report.
        scores: of the validation after this step; empty without one.
        best_step: step of the best validation so far.
        picture: of the validation, relative to the folder of the training.
        notes: what is worth a line, e.g. that a checkpoint was damaged.
    """

    step: int
    steps: int
    loss: float
    rate: float
    crops_per_second: float
    scores: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    picture: str | None = None
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Step, loss and speed on one line."""
        return (
            f"step {self.step} of {self.steps}: loss {self.loss:.4g}, rate {self.rate:.3g}, {self.crops_per_second:.1f} crops/s"
        )

    def scored(self) -> tuple[str, ...]:
        """The validation in one line, where there was one."""
        if not self.scores:
            return ()
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        return (f"validation after step {self.step}: {scores}{' (the best so far)' if self.best_step == self.step else ''}",)


class Log:
    """``log.csv``, ``tensorboard/`` and ``pictures/`` of a training; what a killed run wrote after its last checkpoint is cut off.

    Args:
        folder: of the training.
        step: steps done, at which it goes on.
        score_names: columns beside the loss.
    """

    def __init__(self, folder: Path, step: int, score_names: Sequence[str]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = folder
        self.columns = (*_FIRST_COLUMNS, *(f"validation_{name}" for name in score_names))
        path = folder / LOG
        kept = _rows_until(path, step)
        self._file = path.open("w", newline="")
        self._rows = csv.DictWriter(self._file, self.columns, extrasaction="ignore")
        self._rows.writeheader()
        self._rows.writerows(kept)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, report: StepReport) -> None:
        """Add one step."""
        scores = {f"validation_{name}": _short(value) for name, value in report.scores.items()}
        row = {name: _short(getattr(report, name)) for name in _FIRST_COLUMNS}
        self._rows.writerow(row | scores)
        self._file.flush()
        for name, value in (("loss", report.loss), ("rate", report.rate), ("crops_per_second", report.crops_per_second)):
            self._board.add_scalar(f"training/{name}", value, report.step)
        for name, value in report.scores.items():
            self._board.add_scalar(f"validation/{name}", value, report.step)

    def draw(self, step: int, tiles: Sequence[Predicted], description: ModelDescription) -> str:
        """Write the picture of a validation; its path relative to the folder."""
        name = f"pictures/{step:08d}.png"
        (self.folder / "pictures").mkdir(exist_ok=True)
        sheet = draw_validation(tiles, description.heads[0], description.classes)
        sheet.save(self.folder / name)
        import numpy as np

        self._board.add_image("validation", np.asarray(sheet), step, dataformats="HWC")
        return name

    def draw_curves(self, score: str) -> None:
        """Draw ``curves.png``: the loss of crops, and a score of the validation, so far."""
        from unet_core.training.curves import draw_curves

        draw_curves({"this training": read_log(self.folder)}, score).save(self.folder / CURVES)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
        self._file.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of ``log.csv``; cells without a number are left out."""
    with (folder / LOG).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
    return [row for row in rows if int(row["step"]) <= step and None not in row.values()]


def _short(value: float) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.6g}")
