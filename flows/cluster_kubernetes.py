"""Workers as pods that the Dask operator starts, and a scheduler on a node that nobody takes away. Knows no images.

The operator's own ways to grow and shrink ask the scheduler without TLS; they are not used, but its resource DaskCluster is. The manifest is
made by dask-kubernetes; what the pods may do is as in deploy/kubernetes.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask
import httpx
import kr8s
from dask_kubernetes.operator import make_cluster_spec
from distributed import Client
from kr8s.objects import Deployment, Secret, Service, new_class

from flows.certificates import CONFIG, Certificates, make_certificates
from flows.cluster_adaptive import IDLE_SECONDS, TARGET_DURATION
from flows.cluster_settings import KubernetesSettings
from flows.clusters import THREADS, Start, silence_dask
from flows.settings import DASK_CONFIG, worker_environment
from unet_core.errors import UnetCoreError

PLACE = "/certificates"
PORT = 8786
START_SECONDS = 600  # for the operator, and for a node for the scheduler
LOOK_SECONDS = 3.0
USUAL_MEMORY = 8 << 30  # of a worker where neither plan nor settings say it
PART_OF = {"app.kubernetes.io/part-of": "unet"}  # whom deploy/kubernetes/network-policy.yaml lets through
_INSIDE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")  # there in every pod that may ask Kubernetes for something
_WEB = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]

# Nodes that their owner may take away, as the clouds label them. A node without the label is none of them.
_PREEMPTIBLE = {
    "cloud.google.com/gke-preemptible": "true",
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}

# What asking Kubernetes may end in; kr8s passes on what httpx says of a connection that is not to be had.
_KUBERNETES_ERRORS = (kr8s.APITimeoutError, kr8s.ServerError, kr8s.NotFoundError, httpx.HTTPError, OSError)

DaskCluster = new_class("DaskCluster", "kubernetes.dask.org/v1")
DaskWorkerGroup = new_class("DaskWorkerGroup", "kubernetes.dask.org/v1", scalable=True, scalable_spec="worker.replicas")


class PodsFailError(UnetCoreError):
    """Kubernetes does not start what was asked for; the output can be resumed."""


@contextmanager
def kubernetes(start: Start) -> Iterator[str | None]:
    """A scheduler and workers in pods; removed when the context ends.

    Raises:
        PodsFailError: if the scheduler is not there in time, or Kubernetes refuses.
    """
    settings = start.settings
    assert isinstance(settings, KubernetesSettings)
    silence_dask()
    certificates = make_certificates(["localhost"])
    name = f"unet-{uuid4().hex[:8]}"
    # A node may take long to come: no worker for a while is no fault here.
    config = DASK_CONFIG | {"distributed.scheduler.no-workers-timeout": None} | certificates.in_memory()
    with dask.config.set(config), ExitStack() as stack:
        try:
            for kind, manifest in (
                (Secret, certificates_secret(name, certificates)),
                (DaskCluster, cluster_spec(start, name)),
            ):
                made = kind(manifest, namespace=settings.namespace or kr8s.api().namespace)
                made.create()
                stack.callback(_delete, made)
            address = _address(name, made.namespace, stack)
        except (*_KUBERNETES_ERRORS, ValueError) as error:
            raise PodsFailError(
                f"Kubernetes does not start the cluster ({error}); is the Dask operator installed, and are you allowed?"
            ) from None
        scaler = _Scaler(name, made.namespace, address, start)
        stack.callback(scaler.stop)
        yield address


def certificates_secret(name: str, certificates: Certificates) -> dict[str, Any]:
    """A Secret with the files of a cluster."""
    data = {file: base64.b64encode(text.encode()).decode() for file, text in certificates.files(PLACE).items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-tls", "labels": PART_OF}, "data": data}


def cluster_spec(start: Start, name: str) -> dict[str, Any]:
    """The DaskCluster of a run, of the schema ``kubernetes.dask.org/v1``.

    Args:
        start: as asked for.
        name: of the cluster.
    """
    settings = start.settings
    assert isinstance(settings, KubernetesSettings)
    memory = settings.memory_bytes(start.memory_bytes or USUAL_MEMORY)
    address = f"tls://{name}-scheduler:{PORT}"
    spec = make_cluster_spec(name, image=settings.image, n_workers=start.fewest)
    spec["metadata"]["labels"] = PART_OF
    scheduler, worker = spec["spec"]["scheduler"], spec["spec"]["worker"]
    for part in (scheduler, worker):
        part["metadata"] = {"labels": PART_OF}
    scheduler["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    scheduler["service"]["ports"] = [port for port in scheduler["service"]["ports"] if port["port"] == PORT]
    served = ["--protocol", "tls", "--host", "0.0.0.0", "--port", str(PORT)]
    comm = {
        "ports": [{"name": "tcp-comm", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": "tcp-comm"}, "periodSeconds": 5},
    }
    limits = {"ALLOWED_FAILURES": "1", "WORKER_TTL": "2m"}
    variables = {f"DASK_DISTRIBUTED__SCHEDULER__{key}": value for key, value in limits.items()}
    small = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    scheduler["spec"] = _pod(settings, "scheduler", name, ["dask", "scheduler", *served, *_WEB], variables, small) | {
        "affinity": _affinity()
    }
    if settings.scheduler_nodes:
        scheduler["spec"]["nodeSelector"] = settings.scheduler_nodes
    scheduler["spec"]["containers"][0] |= comm
    threads = ["--nthreads", str(THREADS), "--memory-limit", str(memory), "--death-timeout", "120"]
    gpu = ["--resources", "GPU=1"] if settings.gpus else []
    arguments = ["dask", "worker", address, "--protocol", "tls", "--name", "$(DASK_WORKER_NAME)", *threads, *gpu, *_WEB]
    variables = worker_environment(None, threads=settings.cpus if settings.cpus > THREADS else 1) | {
        "DASK_SCHEDULER_ADDRESS": address
    }
    resources = {"requests": {"cpu": str(settings.cpus), "memory": str(memory)}, "limits": {"memory": str(memory)}}
    if settings.gpus:
        resources["limits"]["nvidia.com/gpu"] = "1"
    worker["spec"] = _pod(settings, "worker", name, arguments, variables, resources)
    if settings.worker_nodes:
        worker["spec"]["nodeSelector"] = settings.worker_nodes
    if settings.tolerate:
        worker["spec"]["tolerations"] = [{"key": key, "operator": "Exists"} for key in settings.tolerate]
    return spec


def _pod(
    settings: KubernetesSettings, role: str, name: str, arguments: list[str], variables: dict[str, str], resources: dict[str, Any]
) -> dict[str, Any]:
    """A pod of one container without any rights, with the certificates, and with images and keys if it is a worker."""
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "certificates", "secret": {"secretName": f"{name}-tls", "defaultMode": 0o440}},
    ]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "certificates", "mountPath": PLACE, "readOnly": True}]
    container: dict[str, Any] = {
        "name": role,
        "image": settings.image,
        "args": arguments,
        "env": [{"name": key, "value": value} for key, value in ({"DASK_CONFIG": f"{PLACE}/{CONFIG}"} | variables).items()],
        "resources": resources,
        "securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    if role == "worker" and settings.claim:
        volumes.append({"name": "images", "persistentVolumeClaim": {"claimName": settings.claim}})
        mounts.append({"name": "images", "mountPath": "/data"})
    if role == "worker" and settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    user = {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "runAsNonRoot": True,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 45,
        "securityContext": user,
        "containers": [container],
        "volumes": volumes,
    }


def _affinity() -> dict[str, Any]:
    expressions = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in _PREEMPTIBLE.items()]
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _address(name: str, namespace: str, stack: ExitStack) -> str:
    """Wait for the scheduler; its address, through Kubernetes' API where this process is not in the cluster."""
    scheduler = f"{name}-scheduler"
    began = threading.Event()
    for _ in range(START_SECONDS):
        try:
            deployment = Deployment.get(scheduler, namespace=namespace, timeout=1)
            if deployment.raw.get("status", {}).get("readyReplicas"):
                break
        except kr8s.NotFoundError:
            pass
        began.wait(1)
    else:
        raise PodsFailError(
            f"No scheduler {scheduler} in namespace {namespace} for {START_SECONDS} s; is the Dask operator installed? 'kubectl "
            f"--namespace {namespace} describe daskcluster {name}' says more."
        )
    if _INSIDE.exists():
        return f"tls://{scheduler}.{namespace}:{PORT}"
    forward = Service.get(scheduler, namespace=namespace).portforward(PORT, local_port="auto")
    forward.start()
    stack.callback(forward.stop)
    for _ in range(60):
        if forward.local_port:
            break
        began.wait(0.5)
    return f"tls://127.0.0.1:{forward.local_port}"


def _delete(made: Any) -> None:
    """Remove what was made; where that fails, the run is no worse for it."""
    try:
        made.delete()
    except kr8s.NotFoundError:
        pass
    except _KUBERNETES_ERRORS as error:
        logging.getLogger(__name__).warning(
            "%s %s in namespace %s stays (%s): 'kubectl --namespace %s delete %s %s' removes it.",
            *(made.kind, made.name, made.namespace, error, made.namespace, made.kind.lower(), made.name),
        )


class _Scaler(threading.Thread):
    """Lets the number of pods follow the work, by the scheduler's own rules; a worker that goes is retired first.

    Args:
        name: of the cluster.
        namespace: likewise.
        address: of its scheduler.
        start: with the bounds.
    """

    def __init__(self, name: str, namespace: str, address: str, start: Start) -> None:
        super().__init__(name="unet-kubernetes", daemon=True)
        self._name, self._namespace, self._address, self._start_options = name, namespace, address, start
        self._wanted, self._low = start.fewest, 0
        self._stopping = threading.Event()
        if start.fewest < start.most:
            self.start()

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        with Client(self._address, set_as_default=False, timeout="60s") as client:
            while not self._stopping.wait(LOOK_SECONDS):
                try:
                    self._look(client)
                except _KUBERNETES_ERRORS:
                    continue  # the next look may do; what is lost for good the run itself notices

    def _look(self, client: Client) -> None:
        target = client.sync(client.scheduler.adaptive_target, target_duration=TARGET_DURATION)
        target = min(max(target, self._start_options.fewest), self._start_options.most)
        self._low = self._low + 1 if target < self._wanted else 0
        if target == self._wanted or 0 < self._low * LOOK_SECONDS < IDLE_SECONDS:
            return
        if target < self._wanted:
            names = list(client.sync(client.scheduler.workers_to_close, n=self._wanted - target, attribute="name"))
            client.sync(client.scheduler.retire_workers, names=names, close_workers=True, remove=True)
            for name in names:  # before the number: the operator would choose others
                Deployment.get(name, namespace=self._namespace).delete()
            target = self._wanted - len(names)
        DaskWorkerGroup.get(f"{self._name}-default", namespace=self._namespace).scale(target)
        self._wanted, self._low = target, 0
