"""Trainings on real dask workers and under torchrun whose ranks are killed and stopped: the weights are those of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import train_ranks
from flows.clusters import open_cluster
from flows.train_ranks import RestartsSpentError, Supervision, train_on_cluster, train_serially
from tests.flows.small_training import STEPS, final_weights
from unet_core.errors import InputError, JobError, UnetCoreError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TARGET = "tests.flows.small_training:train_rank"
HOW = Supervision(ranks=2, target=TARGET, hang_minutes=0.5, timeout_minutes=0.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with open_cluster("local", 2) as address:
        assert address
        yield address


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    reports: list[dict[str, Any]] = []
    summary = train_on_cluster(str(folder), cluster, HOW, reports.append)
    assert summary == {"steps": STEPS, "first": 0}
    assert reports[-1]["step"] == STEPS
    assert 3 <= len(reports) <= STEPS
    assert set(reports[0]) == {"step", "steps", "loss"}
    return final_weights(folder)


def pid(folder: Path, rank: int) -> int:
    return int((folder / f"pid-{rank}").read_text())


def attempts(folder: Path, rank: int) -> int:
    return len((folder / f"attempts-{rank}").read_text())


def once(act: Callable[[], None], after: int = 4) -> Callable[[dict[str, Any]], None]:
    """Do something at the first report of a step past ``after``."""
    done: list[int] = []

    def look(report: dict[str, Any]) -> None:
        if report["step"] > after and not done:
            done.append(report["step"])
            act()

    return look


def wait_for_steps(process: subprocess.Popen[Any], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "step-3.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_restarts_the_group_and_the_weights_stay(
    rank: int, cluster: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    reasons: list[str] = []
    summary = train_on_cluster(
        str(tmp_path), cluster, HOW, once(lambda: os.kill(pid(tmp_path, rank), signal.SIGKILL)), reasons.append
    )
    assert final_weights(tmp_path) == undisturbed
    assert summary["first"] >= 3
    assert len(reasons) == 1
    assert f"rank {rank} on tcp://127.0.0.1" in reasons[0]
    assert "its process was killed by SIGKILL" in reasons[0]
    assert [attempts(tmp_path, number) for number in (0, 1)] == [2, 2]


def test_a_killed_dask_worker_takes_its_rank_with_it_and_is_replaced(
    cluster: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    reasons: list[str] = []
    ranks: list[int] = []

    def kill() -> None:
        ranks.append(pid(tmp_path, 1))
        os.kill(psutil.Process(ranks[0]).ppid(), signal.SIGKILL)

    train_on_cluster(str(tmp_path), cluster, HOW, once(kill), reasons.append)
    assert final_weights(tmp_path) == undisturbed
    assert len(reasons) == 1
    assert gone(ranks[0])


def test_a_stopped_rank_is_noticed_by_the_others(cluster: str, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    how = Supervision(ranks=2, target=TARGET, hang_minutes=5, timeout_minutes=0.05)
    reasons: list[str] = []
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(pid(tmp_path, 1))
        os.kill(stopped[0], signal.SIGSTOP)

    began = time.monotonic()
    train_on_cluster(str(tmp_path), cluster, how, once(stop), reasons.append)
    assert final_weights(tmp_path) == undisturbed
    assert len(reasons) == 1
    assert "the longest wait is 3 s" in reasons[0]
    assert gone(stopped[0])
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("what", ["rank", "worker"])
def test_a_group_without_steps_counts_as_hanging(
    what: str, cluster: str, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_ranks, "_STOP_SECONDS", 2)
    how = Supervision(ranks=2, target=TARGET, hang_minutes=0.3, timeout_minutes=5)
    reasons: list[str] = []
    ranks: list[int] = []

    def stop() -> None:
        ranks.append(pid(tmp_path, 0))
        os.kill(ranks[0] if what == "rank" else psutil.Process(ranks[0]).ppid(), signal.SIGSTOP)

    train_on_cluster(str(tmp_path), cluster, how, once(stop), reasons.append)
    assert final_weights(tmp_path) == undisturbed
    assert any(re.match("no step after step [0-9]+ for 18 s: the group hangs", reason) for reason in reasons)
    assert gone(ranks[0])


def test_a_rank_that_always_dies_ends_the_training_with_each_reason(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("die")
    how = Supervision(ranks=2, target=TARGET, restarts=1)
    with pytest.raises(RestartsSpentError, match=r"stopped after 1 restarts: 1\) rank 1 .*SIGKILL; 2\) rank 1 .*SIGKILL") as told:
        train_on_cluster(str(tmp_path), cluster, how)
    assert f"Its last checkpoint is kept in {tmp_path}" in str(told.value)
    assert attempts(tmp_path, 0) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [("bad input", InputError, "^Labels 'b.tif' have no class.$"), ("not finite", UnetCoreError, "^Loss is nan at step 2.$")],
)
def test_what_would_come_again_is_told_at_once(
    fault: str, kind: type[Exception], words: str, cluster: str, tmp_path: Path
) -> None:
    (tmp_path / "fault").write_text(fault)
    with pytest.raises(kind, match=words):
        train_on_cluster(str(tmp_path), cluster, HOW)
    assert attempts(tmp_path, 0) == attempts(tmp_path, 1) == 1
    assert gone(pid(tmp_path, 0))
    assert gone(pid(tmp_path, 1))


def test_a_stopped_training_ends_its_ranks_within_seconds(cluster: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    began: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        train_on_cluster(str(tmp_path), cluster, HOW, once(lambda: (began.append(time.monotonic()), interrupt())))  # type: ignore[func-returns-value]
    assert time.monotonic() - began[0] < 5
    assert gone(pid(tmp_path, 0))
    assert gone(pid(tmp_path, 1))


def test_ranks_end_when_the_process_that_supervises_is_killed(
    cluster: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    code = (
        "import sys; from flows.train_ranks import *; "
        f"train_on_cluster(sys.argv[1], sys.argv[2], Supervision(ranks=2, target={TARGET!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), cluster], cwd=ROOT)
    wait_for_steps(process, tmp_path)
    ranks = [pid(tmp_path, 0), pid(tmp_path, 1)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while not all(gone(rank) for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / f"step-{STEPS}.pt").exists()
    assert train_on_cluster(str(tmp_path), cluster, HOW)["first"] >= 3
    assert final_weights(tmp_path) == undisturbed


def test_torchrun_restarts_killed_ranks_and_the_weights_stay(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3",
            "--monitor-interval", "0.2", "-m", "flows.rank", str(tmp_path), "--target", TARGET,
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_steps(process, tmp_path)
    os.kill(pid(tmp_path, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err[-2000:]
    assert final_weights(tmp_path) == undisturbed
    assert [attempts(tmp_path, number) for number in (0, 1)] == [2, 2]


def test_one_rank_needs_no_cluster(tmp_path: Path) -> None:
    steps: list[int] = []
    how = Supervision(target=TARGET)
    assert train_serially(str(tmp_path), how, lambda report: steps.append(report["step"])) == {
        "steps": STEPS,
        "first": 0,
    }
    assert steps == list(range(1, STEPS + 1))


def test_more_ranks_than_workers_are_refused(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="--ranks is 3, the cluster has 2 workers"):
        train_on_cluster(str(tmp_path), cluster, Supervision(ranks=3, target=TARGET))
    with pytest.raises(JobError, match="Cluster 'serial' has one process, --ranks is 2"):
        train_serially(str(tmp_path), HOW)
    with pytest.raises(JobError, match="--ranks is 2, the cluster has 0 workers with the resource GPU=1"):
        train_on_cluster(str(tmp_path), cluster, Supervision(ranks=2, target=TARGET, device="cuda"))
