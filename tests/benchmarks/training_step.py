"""The training loop against bare steps on ready tensors: ``python -m tests.benchmarks.training_step MODEL ROUNDS STEPS``.

    loop     read ahead -> batch -> step -> ...        bare     step -> step -> ...

Both in one process, by turns, so that both meet the same machine. Prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from unet_core.training.fine_tuning import train_mode
from unet_core.training.group import single
from unet_core.training.loaders import read_ahead
from unet_core.training.loop import Trainer
from unet_core.training.setup import open_sampler

_APART = 10  # readings and batches that are timed by themselves


def measure(model_out: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of one step of each way, one number a round; and of reading and of making a batch, alone.

    Args:
        model_out: folder of a planned training.
        rounds: of ``steps`` steps of the loop and as many bare ones.
        steps: of one round.
    """
    trainer = Trainer(model_out, single(), lambda report: None, None)
    sampler = open_sampler(trainer.plan, model_out, trainer.target)
    train_mode(trainer.network)
    numbers = trainer.numbers()
    first = [sampler.sample(number) for number in next(numbers)]
    ready = trainer.make_batch(first)

    def bare() -> None:
        trainer.change_weights(trainer.network, ready, sampler.describe)

    def loop() -> Iterator[tuple[float, float]]:
        """Wall and CPU seconds of a step, round by round; while it waits, nothing is read."""
        while True:
            reading = read_ahead(sampler, numbers, trainer.loaders)
            samples = next(reading)
            clock = _Clock()  # the next samples are asked for already, as in the midst of a training
            for _ in range(steps):
                train_mode(trainer.network)
                trainer.change_weights(trainer.network, trainer.make_batch(samples), sampler.describe)
                trainer.step += 1
                samples = next(reading)
            seconds = clock.seconds(steps)
            reading.close()  # type: ignore[attr-defined]
            yield seconds

    bare()  # the first step is slow: optimiser and kernels are set up
    by_loop = loop()
    ways: dict[str, list[tuple[float, float]]] = {"loop": [], "bare": []}
    for turn in range(rounds):
        for way in ("loop", "bare") if turn % 2 else ("bare", "loop"):
            ways[way].append(next(by_loop) if way == "loop" else _timed(bare, steps))
    groups = [next(numbers) for _ in range(_APART)]
    loads = [_timed(lambda group=group: [sampler.sample(number) for number in group]) for group in groups]  # type: ignore[misc]
    read = [[sampler.sample(number) for number in group] for group in groups]
    batches = [_timed(lambda samples=samples: trainer.make_batch(samples)) for samples in read]  # type: ignore[misc]
    return {
        **{way: [wall for wall, _ in seconds] for way, seconds in ways.items()},
        **{f"{way}_cpu": [spent for _, spent in seconds] for way, seconds in ways.items()},
        "load": statistics.median(wall for wall, _ in loads),
        "batch": statistics.median(wall for wall, _ in batches),
        "crops": trainer.options.crops.per_step,
    }


class _Clock:
    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def seconds(self, times: int = 1) -> tuple[float, float]:
        """Of one of ``times`` calls since the clock was made: by the clock on the wall, and of all cores."""
        return (time.perf_counter() - self._began[0]) / times, (time.process_time() - self._began[1]) / times


def _timed(run: Callable[[], Any], times: int = 1) -> tuple[float, float]:
    clock = _Clock()
    for _ in range(times):
        run()
    return clock.seconds(times)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
