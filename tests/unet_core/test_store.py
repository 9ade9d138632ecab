from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unet_core.errors import InputError
from unet_core.store import check_url, open_store, redacted

WRITER = """
import sys
from unet_core.store import open_store
store = open_store(sys.argv[1])
for number in range(10**6):
    store.put("a/key", bytes([number % 256]) * 300_000)
"""


@pytest.mark.slow
def test_a_put_that_is_killed_leaves_a_whole_object(tmp_path: Path) -> None:
    for number in range(10):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=os.environ | {"PYTHONPATH": "."})
        while not (tmp_path / "a" / "key").exists():
            time.sleep(0.01)
        time.sleep(0.05 + 0.013 * number)
        child.send_signal(signal.SIGKILL)
        child.wait()
        data = (tmp_path / "a" / "key").read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
    store = open_store(str(tmp_path))
    assert [entry.key for entry in store.list()] == ["a/key"]
    store.delete_leftovers()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


def claim(root: str, barrier: object, results: object, name: int) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    results.put(open_store(root).put_if_absent("owner", str(name).encode()))  # type: ignore[attr-defined]


def test_of_many_claims_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(5):
        barrier, results = context.Barrier(4), context.Queue()
        children = [
            context.Process(target=claim, args=(str(tmp_path / str(number)), barrier, results, name)) for name in range(4)
        ]
        for child in children:
            child.start()
        assert sorted(results.get(timeout=30) for _ in children) == [False, False, False, True]
        for child in children:
            child.join()


def test_keys_and_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    store = open_store(str(tmp_path / "root"))
    for key in ("../outside/secret", "/etc/passwd"):
        with pytest.raises(InputError, match="leaves the folder"):
            store.get(key)
    with pytest.raises(InputError, match="Symlink leaves the archive"):
        store.get("link/secret")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://a:b@bucket/x", "Credentials"),
        ("s3://bucket/x?X-Amz-Signature=1", "Credentials"),
        ("http://169.254.169.254/x", "not known"),
        ("simplecache::s3://bucket/x", "Chained"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_url(url)


def test_redacted_urls_hold_no_secret() -> None:
    assert redacted("s3://user:geheim@bucket/path?token=geheim") == "s3://bucket/path"
