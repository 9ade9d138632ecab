"""How commands and flows ask for an output, which one run at a time may write. Imports nothing heavy until it is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.settings import lease_seconds

if TYPE_CHECKING:
    from unet_core.lease import Claim


def terminal_claim() -> Claim:
    """Of a command: a wait is told on standard error."""
    return _claim(None, lambda text: print(text, file=sys.stderr, flush=True))


def flow_claim(run: str | None, tell: Callable[[str], None]) -> Claim:
    """Of a flow run, which may take over from itself, as where its process was lost and it is started again.

    Args:
        run: its id.
        tell: its log.
    """
    return _claim(run, tell)


def _claim(run: str | None, tell: Callable[[str], None]) -> Claim:
    from unet_core.lease import LEASE_SECONDS, Claim

    return Claim(run, lease_seconds() or LEASE_SECONDS, tell)
