"""What the Dask operator is given, by the schemas of the operator and of Kubernetes; its commands run here, without Kubernetes."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask_kubernetes
import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.certificates import make_certificates
from flows.cluster_kubernetes import PART_OF, PodsFailError, certificates_secret, cluster_spec, kubernetes
from flows.cluster_settings import KubernetesSettings
from flows.clusters import Start
from flows.run import segment_on_cluster
from tests.flows.test_tls import free_port, started, trusting, until
from tests.unet_core.test_segment import digest
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
VERSION = "1.33"
SETTINGS = KubernetesSettings(
    image="registry.lab/unet-flows:gpu", gpus=1, cpus=4, memory="24G", worker_nodes={"pool": "gpu"}, tolerate=("nvidia.com/gpu", "lab/spot"),
    claim="images", secret="object-store", scheduler_nodes={"pool": "steady"},
)  # fmt: skip


def spec(settings: KubernetesSettings = SETTINGS) -> dict[str, Any]:
    return cluster_spec(Start("kubernetes", settings, 3, 3, 0, 5 << 30), "unet-1234")


def operators_schema() -> dict[str, Any]:
    """Of DaskCluster, closed: what Kubernetes would prune is an error here."""
    folder = Path(dask_kubernetes.__file__).parent
    (file,) = folder.glob("operator/deployment/helm/*/crds/daskcluster.yaml")
    schema = yaml.safe_load(file.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def close(node: Any) -> Any:
        if isinstance(node, dict):
            closed = {key: close(value) for key, value in node.items()}
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                closed.setdefault("additionalProperties", False)
            return closed
        return [close(entry) for entry in node] if isinstance(node, list) else node

    closed = close(schema)
    closed["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"const": "DaskCluster"}, "metadata": {"type": "object"}}
    return closed


def test_the_cluster_fits_the_operators_schema() -> None:
    schema = operators_schema()
    for settings in (SETTINGS, KubernetesSettings()):
        jsonschema.validate(spec(settings), schema)
    broken = copy.deepcopy(spec())
    broken["spec"]["worker"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(jsonschema.ValidationError, match="argz"):
        jsonschema.validate(broken, schema)


def made_by_the_operator(settings: KubernetesSettings = SETTINGS) -> list[dict[str, Any]]:
    """Deployments and the Service that the operator makes of it, by its own functions."""
    from dask_kubernetes.operator.controller import controller

    scheduler, worker = spec(settings)["spec"]["scheduler"], spec(settings)["spec"]["worker"]
    names = {"cluster_name": "unet-1234", "annotations": {}, "labels": PART_OF}
    return [
        controller.build_scheduler_deployment_spec(pod_spec=scheduler["spec"], **names),
        controller.build_scheduler_service_spec(spec=scheduler["service"], **names),
        controller.build_worker_deployment_spec("unet-1234-default", "lab", pod_spec=worker["spec"], uuid="1", **names),
    ]


def test_what_the_operator_makes_of_it_fits_the_schemas_of_kubernetes() -> None:
    for settings in (SETTINGS, KubernetesSettings()):
        for document in (*made_by_the_operator(settings), certificates_secret("unet-1234", make_certificates())):
            kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_scheduler_stays_on_nodes_that_nobody_takes_away_and_pods_have_no_rights() -> None:
    scheduler, _, worker = (document["spec"].get("template", {}).get("spec", {}) for document in made_by_the_operator())
    (term,) = scheduler["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {entry["operator"] for entry in term["matchExpressions"]} == {"NotIn"}
    assert scheduler["nodeSelector"] == {"pool": "steady"}
    assert "affinity" not in worker
    assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "lab/spot", "operator": "Exists"}]
    assert worker["containers"][0]["resources"]["limits"] == {"memory": str(24 << 30), "nvidia.com/gpu": "1"}
    arguments = worker["containers"][0]["args"]
    assert arguments[arguments.index("--resources") + 1] == "GPU=1"
    for pod in (scheduler, worker):
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "http" not in str(pod["containers"][0].get("readinessProbe"))  # dask's pages are off
    # The operator's own address is without TLS; the container's stands.
    addresses = [entry["value"] for entry in worker["containers"][0]["env"] if entry["name"] == "DASK_SCHEDULER_ADDRESS"]
    assert addresses == ["tls://unet-1234-scheduler:8786"]


@pytest.mark.slow
def test_a_kubernetes_that_does_not_answer_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "unet"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "me", "user": {"token": "none"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with (
        pytest.raises(PodsFailError, match="Kubernetes does not start the cluster"),
        kubernetes(Start("kubernetes", SETTINGS, 1, 1, 0, 0)),
    ):
        pass


def test_the_commands_of_the_pods_segment_with_the_certificates_of_the_secret(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    port, place = free_port(), tmp_path / "certificates"
    place.mkdir()
    for name, text in certificates_secret("unet-1234", make_certificates())["data"].items():
        (place / name).write_text(base64.b64decode(text).decode().replace("/certificates/", f"{place}/"))
    scheduler, _, worker = made_by_the_operator(KubernetesSettings(memory="8G"))

    def command(document: dict[str, Any]) -> str:
        (container,) = document["spec"]["template"]["spec"]["containers"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        words = [f"{name}={value}" for name, value in variables.items()]
        words += [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in container["args"]]
        text = " ".join(words).replace("unet-1234-scheduler:8786", f"127.0.0.1:{port}").replace("--port 8786", f"--port {port}")
        return text.replace("--host 0.0.0.0", "--host 127.0.0.1").replace("/certificates", str(place))

    logs = {name: tmp_path / f"{name}.log" for name in ("scheduler", "worker")}
    job = {"image": str(make_image((70, 90))), "model": str(make_model()), "block_shape": (32, 32)}
    run(make_job(**job, output=str(tmp_path / "serial")))
    with ExitStack() as stack:
        stack.enter_context(started(command(scheduler), logs["scheduler"]))
        until(lambda: "Scheduler at" in logs["scheduler"].read_text(), 120, lambda: logs["scheduler"].read_text())
        stack.enter_context(started(command(worker), logs["worker"]))
        until(lambda: "Registered to" in logs["worker"].read_text(), 120, lambda: logs["worker"].read_text())
        stack.enter_context(trusting(place))
        segment_on_cluster(make_job(**job, output=str(tmp_path / "out")), f"tls://127.0.0.1:{port}")
    assert digest(tmp_path / "out") == digest(tmp_path / "serial")
