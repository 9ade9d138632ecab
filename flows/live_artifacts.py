"""Artifacts of a flow run that change while it goes on, sent by a thread of their own, at most one a second. Knows no images.

What Prefect's server answers, or whether it does, changes nothing for the run: what cannot be sent is told once, and tried again later.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.printing import visible
from unet_core.report.markdown import plain

TICK_SECONDS = 1.0  # between requests, at least
ASK_SECONDS = 5.0  # between questions whether the run is to be cancelled
AGAIN_SECONDS = 15.0  # after a request that failed
END_SECONDS = 20.0  # that a run waits at its end for what is still to be sent


@dataclass(frozen=True)
class Content:
    """What an artifact shows: a percentage, rows (a list of dicts), or Markdown; and its caption, plain text."""

    data: float | str | list[dict[str, Any]]
    caption: str


@dataclass
class Live:
    """An artifact that changes.

    Args:
        key: of the artifact.
        kind: of it.
        every: seconds between updates, at least.
        render: gives the content now; None for nothing new. Called in the thread that sends.
        share: of the time that rendering may take, at most.
    """

    key: str
    kind: Literal["progress", "table", "markdown"]
    every: float
    render: Callable[[], Content | None]
    share: float = 0.01
    due: float = 0.0
    sent: Content | None = None
    is_failing: bool = False  # it could not be made the last time
    artifact: UUID | None = field(default=None, repr=False)


class Shown:
    """What an artifact shows at any time: what was said last, by any thread; nothing before.

    Args:
        content: to begin with.
    """

    def __init__(self, content: Content | None = None) -> None:
        self.content = content

    def __call__(self) -> Content | None:
        return self.content


class LiveArtifacts:
    """Sends artifacts while the context lasts, and all of them once more at its end.

    Args:
        run_id: of the flow run.
        lives: what is sent.
        logger: of the run.
        on_cancel: called once if somebody cancels the run; None for not asking.
    """

    def __init__(self, run_id: UUID, lives: Sequence[Live], logger: Any, on_cancel: Callable[[], None] | None = None) -> None:
        self._run_id, self._lives, self._logger, self._on_cancel = run_id, list(lives), logger, on_cancel
        self._ending = threading.Event()
        self._client: SyncPrefectClient | None = None
        self._asked = time.monotonic()
        self._silent = False  # the last request failed
        self._is_cancelled = False
        work = contextvars.copy_context().run  # settings and server of the run
        self._thread = threading.Thread(target=work, args=(self._work,), name="unet-artifacts", daemon=True)

    def __enter__(self) -> LiveArtifacts:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join(END_SECONDS)

    def _work(self) -> None:
        with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}):
            wait = 0.0
            while not self._ending.wait(wait):
                wait = TICK_SECONDS if self._try(self._step) else AGAIN_SECONDS
            for live in self._lives:  # one that is refused keeps no other back
                self._try(lambda live=live: self._send(live))  # type: ignore[misc]
            if self._client is not None:
                self._client.__exit__(None, None, None)

    def _try(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except Exception as error:  # whatever it is: the run goes on without its page
            if not self._silent:
                text = visible(error)[:300] or type(error).__name__
                self._logger.warning("The page of this run cannot be updated (%s); the run goes on, and is tried again.", text)
            self._silent, self._client = True, None
            return False
        if self._silent:
            self._logger.info("The page of this run is updated again.")
        self._silent = False
        return True

    def _step(self) -> None:
        """One request: the artifact that waits longest, or whether the run is to be cancelled."""
        now = time.monotonic()
        if self._on_cancel is not None and not self._is_cancelled and now - self._asked >= ASK_SECONDS:
            self._asked = now
            state = self._connected().read_flow_run(self._run_id).state
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                self._is_cancelled = True
                self._on_cancel()
            return
        for live in sorted(self._lives, key=lambda live: live.due):
            if live.due <= now and self._send(live):
                return

    def _send(self, live: Live) -> bool:
        """Send what an artifact shows now, if that is new; whether there was a request."""
        worked = time.thread_time()
        content = self._made(live)
        took = time.thread_time() - worked if live.sent else 0.0  # the first time opens what later times look at
        live.due = time.monotonic() + max(live.every, took / live.share)
        if content is None or content == live.sent:
            return False
        data = json.dumps(content.data) if isinstance(content.data, list) else content.data
        caption = plain(content.caption)  # Prefect shows it as Markdown
        client = self._connected()
        if live.artifact is None:
            created = ArtifactCreate(key=live.key, type=live.kind, description=caption, data=data, flow_run_id=self._run_id)
            live.artifact = client.create_artifact(created).id
        else:  # not by update_artifact, which would leave an event with all of the data for each
            body = {"data": data, "description": caption}
            client.request("PATCH", "/artifacts/{id}", json=body, path_params={"id": live.artifact})
        live.sent = content
        return True

    def _made(self, live: Live) -> Content | None:
        """What an artifact shows now; None where it cannot be made, which is told once and keeps no other artifact back."""
        try:
            content = live.render()
        except Exception as error:  # whatever it is: the run goes on without it
            if not live.is_failing:
                text = visible(error)[:300] or type(error).__name__
                self._logger.warning(
                    "The artifact %s cannot be made (%s); the run goes on, and it is tried again.", live.key, text
                )
            live.is_failing = True
            return None
        live.is_failing = False
        return content

    def _connected(self) -> SyncPrefectClient:
        if self._client is None:
            client = get_client(sync_client=True)
            client.__enter__()
            self._client = client
        return self._client
