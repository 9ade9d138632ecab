"""The training loop of one rank: crops in, weights changed, checkpoints out; begun or gone on with by the same call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_core import networks
from unet_core.errors import UnetCoreError
from unet_core.footprint import footprint
from unet_core.geometry import Box
from unet_core.store import local_path
from unet_core.training.batch_norm import synchronise_batch_norm
from unet_core.training.batches import Batch, BatchMaker
from unet_core.training.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, prune, save_checkpoint
from unet_core.training.fine_tuning import freeze, inherited, train_mode
from unet_core.training.group import Group
from unet_core.training.loaders import read_ahead
from unet_core.training.losses import head_loss
from unet_core.training.optimiser import MovingAverage, learning_rate, make_optimiser, set_rate
from unet_core.training.package import parent_state, write_model
from unet_core.training.plan import find_training_plan, is_trained, training_store
from unet_core.training.setup import open_sampler, open_tiles, open_validation
from unet_core.training.state import model_state, restore_state, state_tensors
from unet_core.training.validation import Validator, autocast, head_channels
from unet_core.training.watching import Log, StepReport
from unet_core.training_folder import FOLDER

_PICTURED = 4  # tiles of a validation
_LOADERS_ON_GPU = 4


def train_rank(
    model_out: str, group: Group, on_step: Callable[[StepReport], None] = lambda report: None, loaders: int | None = None
) -> dict[str, Any]:
    """Run the training planned below ``model_out`` from its last good checkpoint to its end, as one rank of a group.

    Killed at any instant and called again, the CPU gives the bytes of an undisturbed training with as many ranks and threads.

    Args:
        model_out: folder of the model; its ``training/plan.json`` says what to do.
        group: this rank and the others.
        on_step: called on rank 0 after every step.
        loaders: processes that read crops ahead; 0 reads in a thread of this one. Four with a GPU, else none, unless told.

    Returns:
        Summary: steps, best step, scores.

    Raises:
        UnetCoreError: if the loss is not finite, with the step and its crops.
    """
    return Trainer(model_out, group, on_step, loaders).run()


class Trainer:
    """One rank's network, optimiser and place in a training that is planned below ``model_out``; arguments as of ``train_rank``."""

    def __init__(self, model_out: str, group: Group, on_step: Callable[[StepReport], None], loaders: int | None) -> None:
        self.model_out, self.group, self.on_step = model_out, group, on_step
        self.store = training_store(model_out)
        plan = find_training_plan(self.store)
        if plan is None:
            raise UnetCoreError(f"{model_out} has no planned training.")
        self.plan, self.options = plan, plan.options
        self.device = torch.device(group.device)
        on_gpu = self.device.type == "cuda"
        self.loaders = (_LOADERS_ON_GPU if on_gpu else 0) if loaders is None else loaders
        torch.set_num_threads(plan.threads)
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.options.precision != "float32"

        torch.manual_seed(self.options.seed)
        network = networks.build(plan.description.network.name, **plan.description.network.arguments)
        self.geometry = footprint(network.eval())
        if plan.parent is not None:
            taken, _ = inherited(network, parent_state(plan.parent))
            network.load_state_dict(taken, strict=False)
        freeze(network, plan.freeze)
        self.layout = torch.channels_last if plan.dims == 2 else torch.contiguous_format
        network = network.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.network: nn.Module = synchronise_batch_norm(network, group)
        self.optimiser = make_optimiser(self.network, self.options.optimiser)
        self.average = MovingAverage(self.network, self.options.optimiser.ema) if self.options.optimiser.ema else None
        self.target = Box.from_shape(plan.target_shape, self.geometry.before)
        self.make_batch = BatchMaker(plan, self.target, self.device)
        self.channels = tuple(head_channels(plan))
        self.step = 0
        self.best: dict[str, Any] = {"step": None, "score": None, "scores": {}, "waited": 0}
        self.notes: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        if is_trained(self.model_out):
            return self._summary()
        self._restore()
        parts = open_validation(self.plan)
        tiles = open_tiles(self.plan, self.model_out, parts, self.geometry.stride)
        validator = Validator(self.plan, parts, tiles, self.geometry, self.device)
        sampler = open_sampler(self.plan, self.model_out, self.target)
        log = self._open_log(validator) if self.group.rank == 0 else None
        parallel = self.group.wrap(self.network)
        began, done = time.monotonic(), self.step
        try:
            for samples in read_ahead(sampler, self.numbers(), self.loaders):
                train_mode(self.network)
                loss, rate = self.change_weights(parallel, self.make_batch(samples), sampler.describe)
                self.step += 1
                report = StepReport(self.step, self.options.steps, loss, rate, 0.0, notes=self.notes)
                self.notes = ()
                if self.step % self.options.validate_every == 0 or self.step == self.options.steps:
                    report = self._validate(validator, log, report)
                if self._is_checkpoint():
                    self._save()
                speed = (self.step - done) * self.options.crops.per_step / (time.monotonic() - began)
                report = replace(report, crops_per_second=speed, best_step=self.best["step"])
                if log is not None:
                    with self._writing("log"):
                        log.write(report)
                        if report.scores:
                            log.draw_curves(self.options.best)
                    self.on_step(report)
                if self._out_of_patience():
                    break
        finally:
            if log is not None:
                log.close()
        return self._finish()

    def change_weights(self, parallel: nn.Module, batch: Batch, describe: Callable[[int], str]) -> tuple[float, float]:
        """One step; its loss and learning rate."""
        rate = learning_rate(self.options.optimiser, self.step, self.options.steps)
        set_rate(self.optimiser, rate)
        # The state of every generator is this number: dropout of a step does not depend on what was drawn before.
        torch.manual_seed(int(np.random.SeedSequence([self.options.seed, self.step, self.group.rank]).generate_state(1)[0]))
        with autocast(self.device, self.options.precision):
            logits: Tensor = parallel(batch.image.contiguous(memory_format=self.layout))
        losses = [
            head_loss(self.options.loss, head.kind, logits[:, channels], target, self.group.total)
            for head, channels, target in zip(self.options.heads, self.channels, batch.heads, strict=True)
        ]
        loss = torch.stack(losses).sum()
        self._check_finite(float(loss.detach()), "loss", batch, logits, describe)
        self.optimiser.zero_grad(set_to_none=True)
        with self.group.collective("averaging gradients"):
            (loss * self.group.size).backward()  # DDP takes the mean over ranks; the loss is that of all crops
        clip = self.options.optimiser.clip
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), clip or float("inf"))
        self._check_finite(float(norm), "norm of the gradient", batch, logits, describe)
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.network, self.step)
        return float(loss.detach()), rate

    def _check_finite(self, value: float, what: str, batch: Batch, logits: Tensor, describe: Callable[[int], str]) -> None:
        """Stop before a weight is changed by a number that is none.

        Raises:
            UnetCoreError: naming step and crops.
        """
        if np.isfinite(value):
            return
        bad = np.zeros(self.options.crops.per_step)
        for number, image, output in zip(batch.numbers, batch.image, logits, strict=True):
            bad[number % len(bad)] = not (bool(torch.isfinite(image).all()) and bool(torch.isfinite(output).all()))
        bad = self.group.gather_counts(bad)
        first = self.step * len(bad)
        guilty = [first + position for position in range(len(bad)) if bad[position]] or [
            first + position for position in range(len(bad))
        ]
        kept = latest_checkpoint(self.store)[0]
        raise UnetCoreError(
            f"The {what} is {value} at step {self.step}, with {'; '.join(describe(number) for number in guilty[:4])}. "
            f"The last good checkpoint is {f'that of step {kept.step}' if kept else 'none'}; look at these crops, lower optimiser.rate, or "
            "set optimiser.clip."
        )

    def numbers(self) -> Iterator[list[int]]:
        """Samples of this rank for every step from the next on."""
        size = self.options.crops.per_step
        if self._out_of_patience():  # before it was killed
            return
        for step in range(self.step, self.options.steps):
            yield [step * size + position for position in range(self.group.rank, size, self.group.size)]

    def _validate(self, validator: Validator, log: Log | None, report: StepReport) -> StepReport:
        network, training = self.network, None
        if self.average is not None:
            training = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            network.load_state_dict(self.average.state)
        network.eval()
        scores = validator.scores(network, self.group)
        picture = None
        if log is not None and validator.tiles:
            step = max(1, len(validator.tiles) // _PICTURED)
            tiles = [validator.predict(network, tile) for tile in validator.tiles[::step][:_PICTURED]]
            with self._writing("picture"):
                picture = f"{FOLDER}/{log.draw(self.step, tiles, self.plan.description)}"
        if training is not None:
            network.load_state_dict(training)
        self._judge(scores)
        return replace(report, scores=scores, picture=picture)

    def _judge(self, scores: dict[str, float]) -> None:
        """Whether this validation is the best so far."""
        if not scores:
            return
        name, old = self.options.best, self.best["score"]
        if name not in scores:
            raise UnetCoreError(f"Option best is '{name}', which is no score of this training; it has {', '.join(scores)}.")
        new = scores[name]
        better = np.isfinite(new) and (old is None or (new < old if name == "loss" else new > old))
        if better:
            self.best = {"step": self.step, "score": new, "scores": scores, "waited": 0}
        else:
            self.best = self.best | {"waited": self.best["waited"] + 1}

    def _out_of_patience(self) -> bool:
        return self.options.patience is not None and self.best["waited"] >= self.options.patience

    def _is_checkpoint(self) -> bool:
        every = (self.options.checkpoint_every, self.options.validate_every, self.options.steps)
        return any(self.step % step == 0 for step in every)

    def _save(self) -> None:
        if self.group.rank == 0:
            tensors = state_tensors(self.network, self.optimiser, self.average)
            state = {
                "plan": self.plan.id,
                "best": self.best,
                "seed": self.options.seed,
                "next_sample": self.step * self.options.crops.per_step,
            }
            with self._writing("checkpoint"):
                save_checkpoint(self.store, Checkpoint(self.step, state, tensors))
                prune(self.store, self.best["step"])
        self.group.barrier()

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Say what has no room where, and that what was saved before is kept."""
        try:
            yield
        except OSError as error:
            kept = latest_checkpoint(self.store)[0]
            raise UnetCoreError(
                f"The {what} of step {self.step} cannot be written to {self.model_out} ({error.strerror or error}); the last good checkpoint "
                f"is {f'that of step {kept.step}' if kept else 'none'}. Make room, and run the same command again to go on from it."
            ) from error

    def _restore(self) -> None:
        """Go on from the last good checkpoint, the same on every rank."""
        found, problems = latest_checkpoint(self.store) if self.group.rank == 0 else (None, ())
        self.notes = problems
        step = int(self.group.broadcast_text(str(found.step) if found else "-1"))
        if step < 0:
            return
        found = found or load_checkpoint(self.store, step)
        if found.state["plan"] != self.plan.id:
            raise UnetCoreError(
                f"Checkpoint of step {found.step} in {self.model_out} belongs to another plan; choose another folder."
            )
        restore_state(found.tensors, self.network, self.optimiser, self.average, self.device)
        self.step, self.best = found.step, found.state["best"]

    def _open_log(self, validator: Validator) -> Log:
        return Log(local_path(self.model_out) / FOLDER, self.step, validator.names if validator.tiles else ())

    def _finish(self) -> dict[str, Any]:
        """Write the model: the best weights, or the last without a validation."""
        if self.group.rank == 0:
            best = self.best["step"] if self.best["step"] is not None else self.step
            try:
                tensors = load_checkpoint(self.store, best).tensors
            except UnetCoreError as error:
                raise UnetCoreError(
                    f"{error} It is the best one, which the model was to be made of; put the file back, or train again in another folder."
                ) from error
            result = {"steps": self.step, "best_step": best, "validation": self.best["scores"]}
            with self._writing("model"):
                write_model(self.model_out, self.plan, model_state(tensors), result)
        self.group.barrier()
        return self._summary()

    def _summary(self) -> dict[str, Any]:
        from unet_core.model_description import read_description

        found = read_description(self.model_out)[0].provenance
        return {"model": self.model_out} | {
            name: found.get(name) for name in ("steps", "best_step", "validation", "training_plan")
        }
