"""Checkpoints: whole or absent, damage is found, the previous one is taken; a writer that is killed leaves nothing that loads wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from unet_core.errors import UnetCoreError
from unet_core.store import open_store
from unet_core.training.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, prune, save_checkpoint, steps_saved


def checkpoint(step: int, size: int = 7) -> Checkpoint:
    return Checkpoint(
        step, {"best": {"score": 0.5}, "at": step}, {"a": torch.full((size,), float(step)), "n": torch.tensor(step)}
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    save_checkpoint(store, checkpoint(12))
    found = load_checkpoint(store, 12)
    assert found.state == {"best": {"score": 0.5}, "at": 12}
    assert torch.equal(found.tensors["a"], torch.full((7,), 12.0))
    assert found.tensors["n"].dtype == torch.int64
    assert latest_checkpoint(open_store(str(tmp_path / "none"))) == (None, ())


def truncate(data: bytes) -> bytes:
    return data[:-3]


def flip(data: bytes) -> bytes:
    middle = data.rindex(b"2") if b'"step"' in data else len(data) - 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_checkpoint_is_told_and_the_previous_one_taken(tmp_path: Path, suffix: str, damage) -> None:
    store = open_store(str(tmp_path))
    for step in (10, 20):
        save_checkpoint(store, checkpoint(step))
    path = tmp_path / "checkpoints" / f"00000020.{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    found, problems = latest_checkpoint(store)
    assert found is not None
    assert found.step == 10
    assert "00000020" in problems[0]
    assert "damaged" in problems[0]


def test_a_checkpoint_without_its_tensors_is_none(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    save_checkpoint(store, checkpoint(10))
    (tmp_path / "checkpoints" / "00000010.safetensors").unlink()
    found, problems = latest_checkpoint(store)
    assert found is None
    assert "not whole" in problems[0]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    save_checkpoint(store, checkpoint(10))
    broken = Checkpoint(20, {}, {"head.weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(UnetCoreError, match="step 20.*head.weight"):
        save_checkpoint(store, broken)
    assert steps_saved(store) == (10,)


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (10, 20, 30, 40, 50):
        save_checkpoint(store, checkpoint(step))
        prune(store, best=20 if step >= 20 else 10)
    assert steps_saved(store) == (50, 40, 20)
    assert len(os.listdir(tmp_path / "checkpoints")) == 6


_WRITER = """
import sys
import torch
from unet_core.store import open_store
from unet_core.training.checkpoints import Checkpoint, prune, save_checkpoint
store = open_store(sys.argv[1])
print("ready", flush=True)
for step in range(1, 10**6):
    save_checkpoint(store, Checkpoint(step, {"at": step}, {"a": torch.full((1 << 16,), float(step))}))
    prune(store, None)
"""


def test_a_writer_killed_at_any_instant_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    """SIGKILL during the saves of a real process, at eight instants."""
    store = open_store(str(tmp_path))
    reached = 0
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.017 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found, problems = latest_checkpoint(store)
        assert problems == ()
        if found is not None:
            assert torch.equal(found.tensors["a"], torch.full((1 << 16,), float(found.state["at"])))
            reached += 1
    assert reached >= 5
