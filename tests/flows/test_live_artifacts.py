"""The page of a flow run against a server that speaks HTTP: what it refuses, or what cannot be drawn, keeps nothing else back."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from flows import live_artifacts
from flows.live_artifacts import Content, Live, LiveArtifacts, Shown


class Artifacts(BaseHTTPRequestHandler):
    """Keeps what artifacts show, by their keys; refuses the key ``refused``."""

    def do_POST(self) -> None:
        asked = self._body()
        if asked["key"] == "refused":
            self._answer(422, {"detail": "too large"})
            return
        number = str(uuid4())
        self.server.keys[number] = asked["key"]  # type: ignore[attr-defined]
        self._keep(asked["key"], asked["data"])
        self.server.captions.append(asked["description"])  # type: ignore[attr-defined]
        self._answer(201, asked | {"id": number})

    def do_PATCH(self) -> None:
        self._keep(self.server.keys[self.path.rpartition("/")[2]], self._body()["data"])  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def _keep(self, key: str, data: Any) -> None:
        self.server.shown.setdefault(key, []).append(data)  # type: ignore[attr-defined]

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("TICK_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(live_artifacts, name, 0.05)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Artifacts)
    server.keys, server.shown, server.captions = {}, {}, []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings(updates={PREFECT_API_URL: address, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        yield server
    server.shutdown()
    server.server_close()


def broken() -> Content:
    raise ZeroDivisionError("no picture")


def test_an_artifact_that_cannot_be_made_or_is_refused_keeps_no_other_back(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    shown: dict[str, list[Any]] = server.shown
    counted, summary = iter(range(1000)), Shown()
    lives = [
        Live("refused", "markdown", 0.1, lambda: Content("x", "")),
        Live("broken", "markdown", 0.1, broken),
        Live("number", "progress", 0.1, lambda: Content(float(next(counted)), "")),
        Live("summary", "markdown", 0.1, summary),
    ]
    with caplog.at_level(logging.INFO), LiveArtifacts(uuid4(), lives, logging.getLogger("run")):
        ends = time.monotonic() + 20
        while len(shown.get("number", ())) < 4:
            assert time.monotonic() < ends, shown
            time.sleep(0.05)
        assert "summary" not in shown
        summary.content = Content("all is done", "a_b <i>.zarr")
    assert shown["summary"] == ["all is done"]
    assert r"a\_b &lt;i&gt;.zarr" in server.captions
    assert sum("artifact broken cannot be made" in text for text in caplog.messages) == 1
    assert any("cannot be updated" in text for text in caplog.messages)


def test_a_run_outlives_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(live_artifacts, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(live_artifacts, "TICK_SECONDS", 0.05)
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        lives = [Live("number", "progress", 0.1, Shown(Content(1.0, "")))]
        with LiveArtifacts(uuid4(), lives, logging.getLogger("run")):
            time.sleep(0.3)
    assert sum("cannot be updated" in text for text in caplog.messages) == 1
