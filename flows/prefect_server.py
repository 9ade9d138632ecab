"""The Prefect server of a flow: whether the configured one answers, and a short-lived one that outlasts Ctrl-C.

Checking imports no Prefect, which would try for minutes.
"""

from __future__ import annotations

import signal
import ssl
import threading
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from unet_core.errors import JobError

ANSWER_SECONDS = 4


def check_prefect(api_url: str) -> None:
    """Refuse to start a flow on a server that is not there.

    Args:
        api_url: as in PREFECT_API_URL.

    Raises:
        JobError: naming the URL, and what to do.
    """
    try:
        with urlopen(f"{api_url.rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return
    except HTTPError as error:
        if error.code < 500:  # it answers; whether we may use it is Prefect's to tell
            return
        reason = f"status {error.code}"
    except URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # Prefect may know certificates that Python does not
            return
        reason = str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, ValueError) as error:  # a time-out, or no URL at all
        reason = str(error)
    raise JobError(
        f"The Prefect server at {api_url} does not answer ({reason}); start it ('prefect server start'), or do without one: "
        "unset PREFECT_API_URL, or choose another profile ('prefect profile use ephemeral')."
    )


def start_ephemeral() -> None:
    """Start the server that Prefect would start itself, but so that Ctrl-C does not reach it.

    It stops when this process ends. Without it the end of a stopped flow could not be told to anyone, and Prefect would
    try for minutes.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of this thread only, and of what it starts
        SubprocessASGIServer().start()

    if get_current_settings().server.ephemeral.enabled:
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        thread.join()
