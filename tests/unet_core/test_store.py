from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unet_core.test_segment import digest
from unet_core.errors import InputError
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.store import check_url, local_path, open_store, redacted, storage_errors, this_writer

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


def test_only_parts_of_writers_that_are_gone_are_deleted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put(".unet/plan.json", b"{}")
    mine, foreign = (tmp_path / ".unet" / f".key.{writer}.0.unet-part" for writer in (this_writer(), "elsewhere@1"))
    mine.touch()
    foreign.touch()
    store.delete_leftovers()
    assert sorted(path.name for path in (tmp_path / ".unet").iterdir()) == sorted([mine.name, foreign.name, "plan.json"])
    os.utime(foreign, (0, 0))
    store.delete_leftovers()
    assert not foreign.exists()
    assert mine.exists()


KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from unet_core.store import open_store
store = open_store(sys.argv[1])
store.put(".unet/plan.json", b"{}")
os.replace = os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
getattr(store, sys.argv[2])("0/c/0/0", b"voxels")
"""


@pytest.mark.parametrize("put", ["put", "put_if_absent"])
def test_a_put_killed_before_its_rename_leaves_nothing_among_the_voxels(put: str, tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(tmp_path), put], env=os.environ | {"PYTHONPATH": "."}
    )
    assert child.returncode == -signal.SIGKILL
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2  # the plan, and the part
    assert {path.parts[0] for path in files} == {".unet"}
    open_store(str(tmp_path)).delete_leftovers()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plan.json"]


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
    with pytest.raises(InputError, match="symlink leaves the archive: link/secret .*put a copy"):
        store.get("link/secret")


def test_an_own_folder_that_is_a_link_out_is_refused_and_nothing_there_touched(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / ".unet").symlink_to(outside)
    leftover = outside / ".x.elsewhere@1.0.unet-part"
    leftover.touch()
    os.utime(leftover, (0, 0))
    store = open_store(str(root))
    for use in (lambda: store.put("a", b"x"), lambda: store.put_if_absent("a", b"x"), store.delete_leftovers):
        with pytest.raises(InputError, match=r"symlink leaves the archive: \.unet in"):
            use()
    assert os.listdir(outside) == [leftover.name]
    assert not (root / "a").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://a:b@bucket/x", "Credentials"),
        ("s3://bucket/x?X-Amz-Signature=1", "Credentials"),
        ("http://169.254.169.254/x", "not known"),
        ("simplecache::s3://bucket/x", "Chained"),
        ("zip://a.zip::file:///x", "Chained"),
        ("file://relative/x", "names the machine 'relative', not a path; write file:///FOLDER/NAME"),
        ("file://relative", "names the machine 'relative'"),
        ("file:///a%00b", "NUL character; check the path"),
        ("a\0b", "NUL character; check the path"),
        ("s3://[bucket/x", "cannot be read; write s3://BUCKET/PREFIX"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_url(url)


def test_redacted_urls_hold_no_secret() -> None:
    assert redacted("s3://user:geheim@bucket/path?token=geheim") == "s3://bucket/path"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a%20b/c.zarr", "/a b/c.zarr"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a#1?x=2/b", "/a#1?x=2/b"),
        ("/a%20b/c", "/a%20b/c"),
        ("/a#1?x=2/b::c", "/a#1?x=2/b::c"),
    ],
)
def test_local_urls_name_paths(url: str, path: str) -> None:
    check_url(url)
    assert local_path(url) == Path(path)
    assert redacted(url) == url


def test_a_folder_in_the_place_of_an_object_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    store = open_store(str(tmp_path))
    for key in ("folder", "file/below"):
        assert not store.exists(key)
        with pytest.raises(FileNotFoundError):
            store.get(key)
        with pytest.raises(InputError, match=f"{key} cannot be written in .*a folder or file lies where the other should"):
            store.put(key, b"y")
    with pytest.raises(InputError, match="file/below cannot be written"):
        store.put_if_absent("file/below", b"y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_links_that_point_nowhere_are_no_objects_and_loops_are_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    store.put("a/1", b"x")
    store.put("b/2", b"y")
    (tmp_path / "root" / "a" / "inside").symlink_to("../b/2")
    (tmp_path / "root" / "a" / "dangling").symlink_to("/nowhere/at/all")
    assert sorted(entry.key for entry in store.list()) == ["a/1", "a/inside", "b/2"]
    (tmp_path / "root" / "a" / "itself").symlink_to("itself")
    for failing in (lambda: store.get("a/itself"), lambda: list(store.list())):
        with pytest.raises(InputError, match="symbolic links in a loop: .*itself; replace the link"):
            failing()
    (tmp_path / "root" / "a" / "itself").unlink()
    (tmp_path / "root" / "a" / "b").symlink_to("../b")
    assert "a/b/2" in {entry.key for entry in store.list()}
    (tmp_path / "root" / "b" / "a").symlink_to("../a")
    with pytest.raises(InputError, match="symbolic links in a loop"):
        list(store.list())


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for failing in (lambda: store.get("x" * 300), lambda: store.put("x" * 300, b""), lambda: store.child_names("x" * 300)):
        with pytest.raises(InputError, match="name too long for this file system: .*x; check the path"):
            failing()


def test_objects_of_a_bucket(endpoint: str) -> None:
    store = open_store("s3://bucket/a#b")
    with pytest.raises(FileNotFoundError):
        store.get("x/y")
    assert not store.exists("x/y")
    assert store.put_if_absent("x/y", b"12")
    assert not store.put_if_absent("x/y", b"3")
    assert (store.get("x/y"), store.child_names("x")) == (b"12", ("y",))
    assert [(entry.key, entry.size_bytes) for entry in open_store("s3://bucket").list()] == [("a#b/x/y", 2)]


def test_a_bucket_that_cannot_be_used_is_one_line(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def messages(url: str) -> list[str]:
        store, found = open_store(url), []
        for failing in (lambda: store.get("x"), lambda: store.put("x", b""), lambda: list(store.list()), store.child_names):
            with pytest.raises(InputError) as caught:
                failing()
            found.append(str(caught.value))
            assert "\n" not in found[-1]
            assert "Generic" not in found[-1]
        return found

    assert all("s3://absent" in text and "the bucket does not exist; check its name" in text for text in messages("s3://absent"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match="s3://bucket/x cannot be used: the server does not answer; check AWS_ENDPOINT_URL"):
        open_store("s3://bucket").get("x")
    assert time.monotonic() - start < 10
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(InputError, match="the address is refused; check AWS_ENDPOINT_URL"):
        open_store("s3://bucket").get("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    assert all("AWS_ALLOW_HTTP=true" in text for text in messages("s3://bucket"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s",
            "no credentials were found; set AWS_ACCESS_KEY_ID",
        ),
        ("non-2xx status code: 403 Forbidden: <Error>", "permission denied; check AWS_ACCESS_KEY_ID"),
        ("redirect without LOCATION, this normally indicates an incorrectly configured region", "set AWS_REGION"),
        ("Generic S3 error: 503 Slow down\n\nDebug source: Generic {", "503 Slow down; try again later"),
    ],
)
def test_what_errors_of_object_stores_mean(text: str, words: str) -> None:
    from obstore.exceptions import GenericError

    with pytest.raises(InputError, match=words), storage_errors("s3://bucket/x"):
        raise GenericError(text)


def test_a_public_bucket_is_read_without_credentials_and_a_private_one_is_not(
    endpoint: str,
    make_model: Callable[..., Path],
    make_image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import boto3

    client, image, model = boto3.client("s3", endpoint_url=endpoint), make_image((40, 50)), make_model(levels=2)
    client.create_bucket(Bucket="public", ACL="public-read")
    for entry in (source := open_store(str(image))).list():
        for bucket, acl in (("public", "public-read"), ("bucket", "private")):
            client.put_object(Bucket=bucket, Key=f"image.zarr/{entry.key}", Body=source.get(entry.key), ACL=acl)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for name, place in (("remote", "s3://public/image.zarr"), ("local", str(image))):
        run(make_job(image=place, output=f"{tmp_path}/{name}", model=str(model)))
    assert digest(tmp_path / "remote") == digest(tmp_path / "local")
    with pytest.raises(InputError, match="s3://bucket/image.zarr.* permission denied; .*without credentials only what is public"):
        run(make_job(image="s3://bucket/image.zarr", output=f"{tmp_path}/private", model=str(model)))
