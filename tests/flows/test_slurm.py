"""Workers as real jobs of a SLURM on this machine: cancelled ones and those at their limit are replaced, and the bytes stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_jobqueue.slurm import SLURMJob

from flows.cluster_settings import SlurmSettings, settings_of, walltime_seconds
from flows.cluster_slurm import job_options
from flows.clusters import Start, check_cluster
from tests.flows.slurm_here import MISSING, slurm_here
from tests.unet_core.test_segment import digest
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
needs_slurm = pytest.mark.skipif(
    bool(MISSING), reason=f"no SLURM is installed, {', '.join(MISSING)} (Debian: apt-get install slurm-wlm munge)"
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with slurm_here() as environment:
        yield environment


def jobs(slurm: dict[str, str], since: int = 0) -> dict[int, str]:
    """States of all jobs, by their ids."""
    command = ["squeue", "--noheader", "--states=all", "--format=%A %T"]
    done = subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, check=True)
    found = {int(line.split()[0]): line.split()[1] for line in done.stdout.splitlines()}
    return {number: state for number, state in found.items() if number > since}


def unet(slurm: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    environment = os.environ | slurm | {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{slurm['PATH']}"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def settings_file(folder: Path, **values: Any) -> Path:
    path = folder / "slurm.toml"
    lines = {"backend": "slurm", "interface": "lo", "shared_folder": str(folder)} | values
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    return path


SLOW = """
import time
from unet_core import worker

def predict_slowly(unit, predict=worker.predict_block):
    time.sleep(0.8)
    return predict(unit)
if worker.predict_block.__name__ != "predict_slowly":  # dask may run this twice
    worker.predict_block = predict_slowly
"""


@needs_slurm
@pytest.mark.slow
def test_cancelled_jobs_and_those_at_their_limit_are_replaced_and_the_bytes_stay(
    slurm: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model, output = make_image((230, 200)), make_model(), tmp_path / "out"
    (tmp_path / "slow.py").write_text(SLOW)
    slow = [f"export DASK_DISTRIBUTED__WORKER__PRELOAD={tmp_path}/slow.py"]
    fields = {"image": str(image), "model": str(model), "block_shape": (32, 32)}
    cluster = settings_file(tmp_path, walltime="00:02:00", stop_before=103, prologue=slow)  # a worker ends 17 s after it began
    began = time.monotonic()
    running = unet(
        slurm, "segment", image, output, "--model", model, "--block-shape", "32,32", "--cluster", cluster, "--workers", 2
    )
    records = output / ".unet/ledger/segment"
    while not (records.exists() and len(list(records.iterdir())) > 3):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() - began < 240, jobs(slurm)
        time.sleep(0.2)
    first = jobs(slurm)
    assert list(first.values()) == ["RUNNING", "RUNNING"]
    (folder,) = tmp_path.glob("unet-slurm-*")
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("certificates/*-key.pem"))
    subprocess.run(["scancel", str(min(first))], env=os.environ | slurm, check=True)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "Exception" not in err
    assert out.startswith("complete")
    ended = jobs(slurm)
    assert len(ended) > len(first)  # one for the cancelled, and one for each whose time was over
    assert "COMPLETED" in ended.values(), ended  # a worker whose time was over ended by itself, and well
    assert "TIMEOUT" not in ended.values()
    assert not list(tmp_path.glob("unet-slurm-*"))
    run(make_job(**fields, output=str(tmp_path / "serial")))
    assert digest(output) == digest(tmp_path / "serial")


@needs_slurm
@pytest.mark.slow
def test_jobs_that_end_before_they_compute_end_the_run_with_what_they_wrote(
    slurm: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    before = max(jobs(slurm), default=0)
    cluster = settings_file(tmp_path, python="/no/such/python")
    out = tmp_path / "out"
    running = unet(slurm, "segment", make_image((40, 50)), out, "--model", make_model(), "--cluster", cluster, "--workers", 2)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert err.count("\n") == 1
    assert "jobs of SLURM ended one after the other before they had a worker" in err
    assert "/no/such/python: No such file" in err
    assert 5 <= len(jobs(slurm, before)) <= 8
    assert not {"PENDING", "RUNNING"} & set(jobs(slurm, before).values())
    assert not list(tmp_path.glob("unet-slurm-*/certificates"))
    assert list(tmp_path.glob("unet-slurm-*/*.err"))


@needs_slurm
@pytest.mark.slow
def test_what_slurm_refuses_is_told_and_a_job_that_it_refused_once_is_submitted_again(
    slurm: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((40, 50)), make_model()
    wrong = settings_file(tmp_path, queue="nowhere")
    running = unet(slurm, "segment", image, tmp_path / "out", "--model", model, "--cluster", wrong, "--workers", 1)
    _, err = running.communicate(timeout=300)
    assert (running.returncode, err.count("\n")) == (1, 1)
    assert "SLURM refuses jobs: sbatch: error: " in err
    assert "invalid partition specified: nowhere" in err
    assert not list(tmp_path.glob("unet-slurm-*"))
    once = tmp_path / "bin/sbatch"  # SLURM's own, but for the first call
    once.parent.mkdir()
    once.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/refused ] || {{ touch {tmp_path}/refused; echo 'sbatch: error: busy' >&2; exit 1; }}\n"
        f'exec {shutil.which("sbatch", path=slurm["PATH"])} "$@"\n'
    )
    once.chmod(0o755)
    busy = slurm | {"PATH": f"{once.parent}:{slurm['PATH']}"}
    cluster = settings_file(tmp_path)
    running = unet(busy, "segment", image, tmp_path / "out", "--model", model, "--cluster", cluster, "--workers", 1)
    out, err = running.communicate(timeout=300)
    assert (tmp_path / "refused").exists()
    assert running.returncode == 0, err
    assert out.startswith("complete")
    run(make_job(image=str(image), output=str(tmp_path / "serial"), model=str(model)))
    assert digest(tmp_path / "out") == digest(tmp_path / "serial")


def test_the_script_of_a_job_passes_shellcheck_and_says_what_was_asked(tmp_path: Path) -> None:
    settings = SlurmSettings(
        queue="gpu", account="imaging", walltime="08:00:00", memory="24G", gpus=1, cpus=4, prologue=("module load cuda",),
        directives=("--constraint=a100",),
    )  # fmt: skip
    options = job_options(Start("slurm", settings, 2, 2, 0, 6 << 30), tmp_path)
    for name in ("scheduler_options", "silence_logs"):
        del options[name]
    script = SLURMJob("tls://10.0.0.5:40001", name="unet-0", protocol="tls://", **options).job_script()
    (tmp_path / "job.sh").write_text(script)
    checked = subprocess.run([BIN / "shellcheck", tmp_path / "job.sh"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    lines = script.splitlines()
    for directive in (
        "-p gpu",
        "-A imaging",
        "-t 08:00:00",
        "--cpus-per-task=4",
        "--mem=24G",
        "--gres=gpu:1",
        "--constraint=a100",
        "--no-requeue",
    ):
        assert f"#SBATCH {directive}" in lines
    assert lines.index("module load cuda") < next(number for number, line in enumerate(lines) if "dask_worker" in line)
    command = lines[-1]
    for words in (
        "--resources GPU=1",
        "--lifetime 27075s --lifetime-stagger 1425s",
        f"--tls-key {tmp_path}/certificates/worker-key.pem",
        "--protocol tls://",
        "--nthreads 2",
    ):
        assert words in command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('backend = "slurm"\nwalltme = "1:00"', "walltme: Extra inputs are not permitted .*slurm has the keys account, cpus, "),
        ('backend = "slurm"\nwalltime = "soon"', "walltime: .*write HH:MM:SS or D-HH:MM:SS"),
        ('backend = "slurm"\nwalltime = "00:01:00"\nstop_before = 58', "leaves a worker no time in a walltime of 00:01:00"),
        ('backend = "slurm"\nqueue = "a\\nrm"', "queue: String should match pattern"),
        ('backend = "slurm"\nprologue = ["a\\nb"]', "prologue.0: .*give one line of text"),
        ('backend = "slurm"\nshared_folder = "/no/such"', "shared_folder: .*/no/such is no folder that is there"),
        ('backend = "slurm"\nmemory = "lots"', "memory: String should match"),
        ('backend = "cloud"', "says backend = 'cloud'; write backend = one of 'slurm', 'kubernetes'"),
        ('queue = "gpu"', "does not say which backend"),
        ("queue: gpu", "is no TOML"),
    ],
)
def test_a_file_of_settings_is_refused_by_key(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(text)
    with pytest.raises(JobError, match=f"Cluster file {tmp_path}/lab.toml.*{words}"):
        settings_of(str(tmp_path / "lab.toml"))


def test_walltimes_are_read_as_slurm_reads_them() -> None:
    texts = {"90": 5400, "01:30": 90, "02:00:00": 7200, "1-12": 129600, "1-00:30": 88200, "2-00:00:01": 172801}
    assert {text: walltime_seconds(text) for text in texts} == texts


def test_what_slurm_needs_and_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(JobError, match="Cluster 'slurm' needs the command sbatch, which is not here"):
        check_cluster("slurm", 2)
    with pytest.raises(JobError, match=r"workers is 4..2; write the fewest first"):
        check_cluster("local", "4..2")


@pytest.mark.parametrize(("walltime", "before"), [("08:00:00", None), ("00:02:00", 103), ("1-00:00:00", 5), ("30", 60)])
def test_no_worker_lives_longer_than_its_job_may(walltime: str, before: int | None, tmp_path: Path) -> None:
    settings = SlurmSettings(walltime=walltime, stop_before=before, shared_folder=str(tmp_path))
    words = job_options(Start("slurm", settings, 1, 1, 0, 0), tmp_path)["worker_extra_args"]
    life, stagger = (int(words[words.index(name) + 1].removesuffix("s")) for name in ("--lifetime", "--lifetime-stagger"))
    assert 0 < life + stagger <= walltime_seconds(walltime) - (5 if before is None else before)  # dask: life +/- stagger
    assert life - stagger >= 0.85 * settings.lifetime_seconds
