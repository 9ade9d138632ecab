"""More workers while there is work for them, fewer when there is not, by dask's own rules. Knows no images."""

from __future__ import annotations

from distributed import SpecCluster

# dask wants all tasks that it knows done in so many seconds. It knows few, as a run hands out two for each thread and keeps the others to
# itself: with a time this short each of them counts, so that busy workers double their number until it is the most, and only idle ones go.
TARGET_DURATION = "1ms"
IDLE_SECONDS = (
    15  # before a worker goes: one unit at the end of a stage, such as the joining of objects, is soon followed by many
)


def adapt(cluster: SpecCluster, fewest: int, most: int) -> None:
    """Let a cluster grow and shrink between two numbers of workers; nothing is done if they are the same."""
    if fewest < most:
        cluster.adapt(minimum=fewest, maximum=most, interval="1s", wait_count=IDLE_SECONDS, target_duration=TARGET_DURATION)
