"""The files of `deploy/` against the schemas and linters of those who read them; nothing is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
KUBERNETES_VERSION = "1.33"


def check(*command: str) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_its_linter_and_copies_what_its_ignore_file_lets_through() -> None:
    check("hadolint", "Dockerfile")
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") and "--from" not in line for name in line.split()[1:-1]}
    let_through = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_job_script_and_the_compose_files_pass_theirs() -> None:
    check("shellcheck", "slurm/segment.sbatch")
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml", "compose.gpu.yaml")


def test_only_prefect_is_published_on_the_loopback_interface_and_nothing_runs_as_root() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"prefect": ["127.0.0.1:4200:4200"]}
    for name, service in services.items():
        if name != "postgres":
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert service["user"] == "${UNET_USER:-1000:1000}"


def manifests() -> list[dict[str, Any]]:
    files = ("dask.yaml", "network-policy.yaml")
    return [document for name in files for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]


def job_of_a_run() -> dict[str, Any]:
    """The Job that Prefect's worker makes of `work-pool.json`, with what it fills in replaced by its defaults."""
    template = json.loads((DEPLOY / "kubernetes/work-pool.json").read_text())
    values = {name: field.get("default") for name, field in template["variables"]["properties"].items()}
    values |= {"name": "run", "labels": {}, "annotations": {}, "env": [], "command": ["prefect", "flow-run", "execute"]}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            filled = {key: fill(entry) for key, entry in value.items()}
            return {key: entry for key, entry in filled.items() if entry is not None}
        if isinstance(value, list):
            return [fill(entry) for entry in value]
        name = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
        return values[name.group(1)] if name else value

    return fill(template["job_configuration"]["job_manifest"])


def test_manifests_and_the_job_of_a_run_fit_the_schemas_of_kubernetes() -> None:
    documents = [*manifests(), job_of_a_run()]
    assert len(documents) == 9
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    broken = job_of_a_run()
    broken["spec"]["backoffLimitt"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSION, strict=True)


def test_kubernetes_starts_no_run_again_by_itself_and_no_pod_is_privileged() -> None:
    job = job_of_a_run()
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    pods = [document["spec"]["template"] for document in [*manifests(), job] if "template" in document.get("spec", {})]
    assert len(pods) == 3
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "unet"  # whom the network policies let through
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_dask_is_started_alike_everywhere() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    pods = {entry["metadata"]["name"]: entry for entry in manifests() if entry["kind"] == "Deployment"}
    for service, pod in (("scheduler", "dask-scheduler"), ("dask-worker", "dask-worker")):
        container = pods[pod]["spec"]["template"]["spec"]["containers"][0]
        settings = {entry["name"]: entry["value"] for entry in container["env"]}
        assert settings.items() <= services[service]["environment"].items()
        assert settings


def test_the_settings_of_servers_exist_in_this_prefect() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known = {field.name for field in _get_settings_fields(Settings).values()}
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.is_file()]
    named = {name for text in texts for name in re.findall(r"\bPREFECT_(?:SERVER|API|RESULTS|FLOWS|HOME)\w*", text)}
    assert len(named) > 8
    assert named <= known


def test_images_agree_on_versions() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    charts = [yaml.safe_load((DEPLOY / f"kubernetes/prefect-{name}.yaml").read_text()) for name in ("server", "worker")]
    tags = charts[0]["global"]["prefect"]["image"]["prefectTag"], charts[1]["worker"]["image"]["prefectTag"]
    assert all(f"prefect=={tag.split('-')[0]}\n" in pins for tag in tags)


def test_each_worker_of_a_slurm_job_has_all_cores_of_its_task(tmp_path: Path) -> None:
    """srun takes them from SRUN_CPUS_PER_TASK alone since SLURM 22.05; stand-ins for the programs that the script calls."""
    programs = {
        "openssl": "touch key.pem; while [ $# -gt 1 ]; do case $1 in -keyout|-out) touch $2;; esac; shift; done",
        "dask": 'while [ $# -gt 1 ]; do [ $1 = --scheduler-file ] && echo \'{"address": "tls://127.0.0.1:1"}\' > $2; shift; done',
        "srun": f"echo $SRUN_CPUS_PER_TASK $* > {tmp_path}/srun",
        "unet": f"while [ ! -s {tmp_path}/srun ]; do sleep 0.1; done",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    subprocess.run(
        [DEPLOY / "slurm/segment.sbatch", "slide.svs", "slide.zarr"], check=True, timeout=60, cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3"},
    )  # fmt: skip
    cores, *command = (tmp_path / "srun").read_text().split()
    assert (cores, "worker" in command, "tls://127.0.0.1:1" in command) == ("3", True, True)
