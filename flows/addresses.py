"""Addresses of dask schedulers: which have a meaning, and which are refused. Knows no dask, and connects to nothing."""

from __future__ import annotations

import re
from ipaddress import ip_address

from unet_core.errors import JobError

_ADDRESS = re.compile(r"(?:tcp|tls)://(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<host>[\w.-]+)):(?P<port>[0-9]{1,5})", re.ASCII)


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of a scheduler's address.

    Raises:
        JobError: if it has none.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or not 0 < int(found["port"]) < 1 << 16:
        raise JobError(f"Cluster '{address}' is no address of a scheduler; write tcp or tls, then ://HOST:PORT.")
    return found["six"] or found["host"], int(found["port"])


def address_of(host: str, port: int) -> str:
    """Of a scheduler that speaks TLS.

    Example:
        >>> address_of("head.lab", 8786), address_of("fd00::7", 8786)
        ('tls://head.lab:8786', 'tls://[fd00::7]:8786')
    """
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def check_address(cluster: str | None) -> str | None:
    """Refuse a scheduler elsewhere that is spoken to without TLS; other clusters pass.

    Names are not looked up: only ``localhost`` and the addresses of the loopback interface count as this machine.

    Raises:
        JobError: with what to do.
    """
    if cluster is None or "://" not in cluster:
        return cluster
    host, port = host_and_port(cluster)
    if cluster.startswith("tcp:") and not is_loopback(host):
        raise JobError(
            f"Cluster '{cluster}' is another machine without TLS, and whoever reaches a port of dask can execute code there. Make "
            f"certificates with 'unet certificates FOLDER --host {host}', start scheduler and workers with them as it says, and write "
            f"--cluster tls://{cluster.removeprefix('tcp://')}; or reach it through SSH (ssh -L {port}:127.0.0.1:{port} {host}) as "
            f"tcp://127.0.0.1:{port}."
        )
    return cluster


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False
