"""An evaluation as it is asked and told: which pairs are scored, what is printed, the page. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unet_core.errors import InputError
from unet_core.evaluation import Evidence, OpeningOptions, Pair, ScoreTable, check_metrics, open_pairs, score_images
from unet_core.symmetries import SymmetrySet
from unet_core.validation import first_problem

if TYPE_CHECKING:
    from unet_core.report.evaluation import Evaluated

BY_SECTION = "Sections of one stack resemble each other, so that the interval is too narrow."
INVERTED = (
    "Prediction and reference disagree on most voxels; if one marks what the other leaves dark, use --invert-prediction or "
    "--invert-reference."
)


class HeldOut(BaseModel):
    """How a model is scored on a data set: which part of it, and how the model runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["train", "validation", "test"] = Field(
        "test", title="Part", description="Of the data set, that the model is scored on."
    )
    root: str | None = Field(None, title="Root", description="Where relative paths of the data set start from.")
    fold: int | None = Field(None, title="Fold", description="Which one was held out, of a data set with folds.")
    symmetries: SymmetrySet = Field(
        "none", title="Symmetries", description="That predictions are averaged over: none, the 4 flips, or all 8 of the square."
    )
    device: str = Field("auto", title="Device", description="auto (a GPU if there is one), cpu, cuda, or cuda:N.")
    threads: int = Field(1, ge=1, le=1024, title="Threads", description="CPU threads of one forward pass.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HeldOut:
        """From plain values, as in JSON.

        Raises:
            InputError: naming what cannot be.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(f"Option {first_problem(error)}.") from None


@dataclass(frozen=True)
class EvaluationJob:
    """What is scored, and how.

    Args:
        prediction: result, image, folder of either; with ``held_out`` a model.
        reference: label image or folder; with ``held_out`` a data set.
        metrics: names of ``METRICS``.
        options: of both images.
        held_out: for a model on a data set; None for images.
        report: file of the page; None for none.
    """

    prediction: str
    reference: str
    metrics: tuple[str, ...] = ("iou", "dice")
    options: OpeningOptions = field(default_factory=OpeningOptions)
    held_out: HeldOut | None = None
    report: str | None = None

    def check(self) -> None:
        """Refuse what cannot be, before anything is read at length.

        Raises:
            InputError: in one of its kinds.
        """
        check_metrics(self.metrics)
        if self.report is not None:
            from unet_core.report.page import check_place

            check_place(self.report)

    def check_all(self) -> None:
        """The same, and open everything: what is wrong is told before a server starts.

        Raises:
            InputError: likewise.
        """
        self.check()
        if self.held_out is None:
            open_job(self)
            return
        from unet_core.model_package import load_model
        from unet_core.predict import resolve_device
        from unet_core.training.dataset import load_dataset

        resolve_device(self.held_out.device)
        load_dataset(self.reference, self.held_out.root)
        load_model(self.prediction)

    def as_parameters(self) -> dict[str, Any]:
        """For the flow, which takes plain values."""
        options = asdict(self.options)
        held_out = None if self.held_out is None else self.held_out.model_dump()
        return {
            "prediction": self.prediction,
            "reference": self.reference,
            "metrics": self.metrics,
            "options": options,
            "held_out": held_out,
            "report": self.report,
        }


def open_job(job: EvaluationJob) -> tuple[tuple[str, ...], Iterator[Pair]]:
    """What is foreground, in words, and the pairs; those of a model are predicted one after another, as they are asked for.

    Raises:
        InputError: if there is nothing to be scored, or not as it was asked.
    """
    if job.held_out is None:
        opened = open_pairs(job.prediction, job.reference, job.metrics, job.options)
        return opened[0].meaning.sentences(), iter(opened)
    from unet_core.predict import resolve_device
    from unet_core.training.held_out import held_out_pairs

    asked = job.held_out
    held_out = held_out_pairs(
        job.prediction,
        job.reference,
        job.options.meaning,
        purpose=asked.part,
        root=asked.root,
        fold=asked.fold,
        foreground=job.options.foreground,
        symmetries=asked.symmetries,
        device=resolve_device(asked.device),
        threads=asked.threads,
    )
    pairs = (section for pair in held_out for section in (pair.sections() if job.options.by_section else [pair]))
    first = next(pairs)
    return first.meaning.sentences(), chain([first], pairs)


class Teller:
    """Looks at each pair as it is scored, and tells the evaluation in the end.

    Args:
        job: what was asked.
        sentences: what is foreground, in words.
        keeps_cases: whether the worst cases are drawn.
    """

    def __init__(self, job: EvaluationJob, sentences: tuple[str, ...], keeps_cases: bool) -> None:
        self.job, self._sentences = job, sentences
        self._worst = None
        if keeps_cases:
            from unet_core.report.worst import WorstCases

            self._worst = WorstCases(job.metrics[0])

    def look(self, pair: Pair, evidence: Evidence, row: dict[str, float]) -> None:
        if self._worst is not None:
            self._worst.add(pair, evidence, row)

    def evaluated(self, table: ScoreTable) -> Evaluated:
        """The evaluation; its page is written if one was asked for."""
        from unet_core.report.evaluation import Evaluated, write_evaluation
        from unet_core.store import redacted

        notes = ((INVERTED,) if table.looks_inverted else ()) + ((BY_SECTION,) if self.job.options.by_section else ())
        prediction, reference = redacted(self.job.prediction), redacted(self.job.reference)
        cases = self._worst.cases() if self._worst else []
        value = next(iter(table.rows[0]))
        found = Evaluated(prediction, reference, self._sentences, table, value, cases, notes)
        if self.job.report is not None:
            write_evaluation(found, self.job.report)
        return found


def evaluate_plainly(job: EvaluationJob) -> Evaluated:
    """Score without Prefect.

    Raises:
        InputError: naming what is wrong.
    """
    job.check()
    sentences, pairs = open_job(job)
    teller = Teller(job, sentences, keeps_cases=job.report is not None)
    return teller.evaluated(score_images(pairs, job.metrics, job.options.memory_bytes, teller.look))
