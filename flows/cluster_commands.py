"""The command ``unet certificates``. Imports nothing heavy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.addresses import address_of
from flows.options import Flag, Whole
from flows.printing import print_json


def certificates(
    folder: Path,
    *,
    host: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    used_at: str | None = None,
    days: Whole = 365,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Make certificates with which a dask scheduler on other machines, its workers and `unet` trust each other and nobody else.

    Args:
        folder: New folder for them; who can read its keys can execute code on the cluster.
        host: Name or address of a machine of the scheduler or a worker; may be repeated.
        used_at: Path under which the machines find the folder, where it is not this one, as in a container.
        days: For which they are good.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.certificates import CONFIG, make_certificates, write_certificates

    made = make_certificates(host, days)
    files = write_certificates(folder, made, used_at)
    address = address_of(host[0] if host else "127.0.0.1", 8786)
    place = used_at.rstrip("/") if used_at else folder.resolve()
    config = f"DASK_CONFIG={shlex.quote(f'{place}/{CONFIG}')}"
    web = "--no-dashboard --dashboard-address 127.0.0.1:0"  # else dask serves pages and numbers on every interface, without TLS
    lines = {
        "scheduler": f"{config} dask scheduler --protocol tls --port 8786 {web}",
        "worker": f"{config} MALLOC_ARENA_MAX=1 dask worker {address} --protocol tls --nthreads 2 {web}",
        "client": f"{config} unet segment IMAGE OUTPUT --model MODEL --cluster {address}",
    }
    print(f"{folder}: {len(files)} files, good until {made.expires:%Y-%m-%d}; bring it to each machine, keys unread by others")
    for role, line in lines.items():
        print(f"  {role:>9}  {line}")
    if json:
        print_json({"folder": str(folder), "files": sorted(files), "expires": made.expires.isoformat(), "commands": lines})
    return 0
