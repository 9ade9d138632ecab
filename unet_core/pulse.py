"""Signs that a process moves, also within a block that takes minutes: steps that are counted, and read from outside. Knows nothing else."""

from __future__ import annotations


class Pulse:
    """A number that grows with each step; threads that add at once may lose one, which is nothing to who asks whether it grows."""

    def __init__(self) -> None:
        self.steps = 0

    def beat(self) -> None:
        self.steps += 1


PULSE = Pulse()  # of this process
