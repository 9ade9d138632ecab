"""Whether the Prefect server that is configured answers. Prefect is not imported, since it would try for minutes."""

from __future__ import annotations

import ssl
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
