"""Archives: each image as its own run would make it, failures named and passed by, finished ones known without a look at a voxel."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from PIL import Image

from tests.conftest import DATA, needs_data, textured
from tests.flows.test_cli import call
from tests.unet_core.test_foreground import slide_like
from tests.unet_core.test_segment import digest
from unet_core import inputs
from unet_core.archives import preparing
from unet_core.job import make_job
from unet_core.segment import read_status, run
from unet_core.store import open_store

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"a": (41, 53), "b": (90, 17), "c": (64, 64), "d": (33, 130), "sub/e": (7, 9)}
INSTANCES = ("--instances", "components", "--block-shape", "32,32")


def write_images(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Path:
    """Images of unequal sizes, and a broken one."""
    for number, (name, shape) in enumerate(shapes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{name}.tif", textured(shape, number))
    (folder / "broken.tif").write_bytes(b"II*\0 cut short")
    return folder


def summary_of(output: Path) -> dict[str, dict[str, Any]]:
    """Rows of archive.json by the name of the result; archive.csv must say the same."""
    summary = json.loads((output / "archive.json").read_text())
    rows = {row["result"]: row for row in summary["images"]}
    with (output / "archive.csv").open(newline="") as file:
        table = {row["result"]: row for row in csv.DictReader(file)}
    assert {name: row["state"] for name, row in rows.items()} == {name: row["state"] for name, row in table.items()}
    return rows


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_gives_the_results_of_single_runs_and_a_broken_image_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder, output, model = write_images(tmp_path / "in"), tmp_path / "out", make_model(levels=2)
    arguments = ("archive", folder, output, "--model", model, *INSTANCES, "--cluster", "serial", "--json")
    code, _, _ = call(monkeypatch, capsys, *arguments, "--dry-run")
    assert (code, output.exists()) == (0, False)
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 3
    assert json.loads(out.splitlines()[-1])["counts"] == {"complete": 5, "failed": 1}
    rows = summary_of(output)
    assert "cut short or damaged" in rows["broken.zarr"]["reason"]
    for name, shape in SHAPES.items():
        single, result = tmp_path / "single" / name, output / f"{name.replace('/', '-')}.zarr"
        job = make_job(
            image=str(folder / f"{name}.tif"), output=str(single), model=str(model), instances="components", block_shape=(32, 32)
        )
        alone = run(job)
        assert digest(result) == digest(single)
        row = rows[result.name]
        assert (row["state"], row["classes"], row["objects"]) == ("complete", alone.label_voxels, alone.instances)
        assert sum(row["classes"].values()) == np.prod(shape)
    check_second_run(monkeypatch, capsys, output, arguments, rows)
    check_measured(monkeypatch, capsys, rows, tmp_path / "globbed.csv", sorted(output.glob("*.zarr")))
    check_measured(monkeypatch, capsys, rows, tmp_path / "named.csv", [output])


def check_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: dict[str, dict[str, Any]],
    file: Path,
    outputs: list[Path],
) -> None:
    """All results in one table, with the objects that the summary counts."""
    code, out, _ = call(monkeypatch, capsys, "measure", *outputs, "--summary", file)
    assert code == 0
    assert ("note: 1 image of" in out) == (len(outputs) == 1), out  # an archive with one that failed
    with file.open(newline="") as lines:
        counted = [(Path(row["output"]).name, row["class"], int(row["objects"])) for row in csv.DictReader(lines)]
    expected = [(name, kind, count) for name, row in rows.items() for kind, count in (row["objects"] or {}).items()]
    assert sorted(counted) == sorted(expected)


def check_second_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: Path,
    arguments: tuple[object, ...],
    rows: dict[str, dict[str, Any]],
) -> None:
    """Nothing is planned, opened or written but the summary; status tells the same from the ledgers."""
    before = {name: times(output / name) for name in rows}
    with monkeypatch.context() as patched:
        opened: list[str] = []
        patched.setattr(preparing, "open_input", lambda job, *rest: opened.append(job.image) or inputs.open_input(job, *rest))
        patched.setattr(preparing, "resolve", lambda job: pytest.fail("an image was planned"))
        code, _, _ = call(patched, capsys, *arguments)
    assert code == 3
    assert [Path(image).name for image in opened] == ["broken.tif"]
    assert {name: times(output / name) for name in rows} == before
    again = summary_of(output)
    assert {name: row | {"seconds": None} for name, row in rows.items()} == again
    (output / "b.zarr/.unet/complete.json").unlink()
    (output / "c.zarr/.unet/complete.json").unlink()
    (output / "c.zarr/.unet/ledger/segment/00000000.json").unlink()
    code, out, _ = call(monkeypatch, capsys, "status", output, "--json")
    states = {row["result"]: (row["state"], row["reason"][:5]) for row in json.loads(out.splitlines()[-1])["images"]}
    assert states["a.zarr"] == ("complete", "")
    assert states["b.zarr"][0] == states["c.zarr"][0] == "waiting"
    assert states["broken.zarr"][0] == "failed"
    code, _, _ = call(monkeypatch, capsys, *arguments)
    assert summary_of(output)["c.zarr"]["objects"] == rows["c.zarr"]["objects"]
    after = {name: times(output / name) for name in rows}
    assert {name for name in rows if after[name] != before[name]} == {"b.zarr", "c.zarr"}


def test_options_of_a_list_are_those_of_single_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder, model = write_images(tmp_path / "in"), make_model(voxel_size_um=(0.5, 0.5), levels=2)
    zarr.create_array(folder / "two.zarr", data=textured((2, 50, 40)), chunks=(1, 50, 40))
    (folder / "list.csv").write_text(
        "image,output,voxel_size,roi,owner,project\n"
        'a.tif,first,"0.52,0.48",,ann,liver\n'
        'a.tif,part,"0.5,0.5","0:20,0:20",ann,liver\n'
        'b.tif,,"2,2",,bob,\n'
        "c.tif,,,,bob,\n"
        'two.zarr,,"0.5,0.5",,eve,stacks\n'
    )
    arguments = (
        "archive",
        folder / "list.csv",
        tmp_path / "out",
        "--model",
        model,
        "--cluster",
        "serial",
        "--block-shape",
        "16,16",
    )
    code, _, _ = call(monkeypatch, capsys, *arguments)
    assert code == 3
    rows = summary_of(tmp_path / "out")
    assert {name: row["state"] for name, row in rows.items()} == {
        "first.zarr": "complete", "part.zarr": "complete", "b.zarr": "failed", "c.zarr": "failed", "two.zarr": "failed",
    }  # fmt: skip
    assert "no level is within 10 %" in rows["b.zarr"]["reason"]
    assert "does not say its voxel size" in rows["c.zarr"]["reason"]
    assert [(row["owner"], row["project"]) for row in rows.values()][:3] == [("ann", "liver"), ("ann", "liver"), ("bob", "")]
    for name, options in (
        ("first", {"voxel_size_um": (0.52, 0.48)}),
        ("part", {"voxel_size_um": (0.5, 0.5), "roi": ("0:20,0:20",)}),
    ):
        single = tmp_path / f"single-{name}"
        run(make_job(image=str(folder / "a.tif"), output=str(single), model=str(model), block_shape=(16, 16), **options))
        assert digest(tmp_path / f"out/{name}.zarr") == digest(single)


def test_images_that_their_own_kind_or_row_rules_out_stop_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    """Many at the beginning, and again when all that can be done is complete: the exit code is the same."""
    (tmp_path / "in").mkdir()
    for name, pieces in {"a": [], "b": [], "c": [], "d": [(200, 200, 120)]}.items():
        Image.fromarray(slide_like((400, 400), pieces).transpose(1, 2, 0)).save(tmp_path / f"in/{name}.png")
    write_images(tmp_path / "rows", {"a": (20, 20), "b": (40, 40)})
    (tmp_path / "rows/list.csv").write_text(
        "image,output,roi\n" + "".join(f'a.tif,{n},"30:40,0:20"\n' for n in range(3)) + 'b.tif,,"30:40,0:20"\n'
    )
    for source, channels, options in (("in", 3, ("--tissue",)), ("rows/list.csv", 1, ())):
        output = tmp_path / f"out-{channels}"
        model = make_model(levels=2, in_channels=channels)
        arguments = ("archive", tmp_path / source, output, "--model", model, "--cluster", "serial", *options)
        for _ in range(2):
            code, _, err = call(monkeypatch, capsys, *arguments)
            rows = summary_of(output)
            assert (code, sorted(row["state"] for row in rows.values())) == (3, ["complete", *["failed"] * 3]), err
        assert all(
            re.search("No tissue|covers nothing of the image", row["reason"]) for row in rows.values() if row["state"] == "failed"
        )


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_no_text_are_named_and_stop_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder, output = write_images(tmp_path / "in", {"a": (20, 20)}), tmp_path / "out"
    for name in (b"caf\xe9.tif", b"notes.\xff", b"other.\x1b[31m", b"red\x1b[31m\n.tif"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((folder / "a.tif").read_bytes())
    code, out, err = call(monkeypatch, capsys, "archive", folder, output, "--model", make_model(levels=2), "--cluster", "serial")
    rows = summary_of(output)
    assert (code, {name: row["state"] for name, row in rows.items()}) == (
        3,
        {"a.zarr": "complete", "broken.zarr": "failed", "caf\\udce9.zarr": "failed", "red\x1b[31m\n.zarr": "failed"},
    )
    assert "of visible letters" in rows["caf\\udce9.zarr"]["reason"]
    assert "\x1b" not in out + err
    code, out, _ = call(monkeypatch, capsys, "status", output)
    assert (code, out.count(" failed "), "\x1b" in out) == (0, 3, False)


def test_names_with_percent_signs_are_no_escapes_below_a_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    """a%41 and aA would have had one result in one folder."""
    (tmp_path / "in").mkdir()
    for name, shape in {"a%41": (20, 30), "aA": (25, 15), "50%": (10, 12)}.items():
        tifffile.imwrite(tmp_path / f"in/{name}.tif", textured(shape))
    (tmp_path / "in/list.csv").write_text("image,output\na%41.tif,one\n")
    output = tmp_path / "out"
    arguments = (f"file://{output}", "--model", make_model(levels=2), "--cluster", "serial")
    for source, count in (("in", 3), ("in/*.tif", 3), ("in/list.csv", 1)):
        code, _, err = call(monkeypatch, capsys, "archive", f"file://{tmp_path}/{source}", *arguments)
        assert (code, len(summary_of(output))) == (0, count), err
    for name, voxels in {"a%41": 600, "aA": 375, "50%": 120, "one": 600}.items():
        mark = json.loads((output / f"{name}.zarr/.unet/complete.json").read_text())
        assert sum(mark["label_voxels"].values()) == voxels
    code, out, _ = call(monkeypatch, capsys, "status", f"file://{output}")
    assert out.count(" complete ") == 1


def test_another_image_of_the_same_size_and_time_is_not_taken_for_the_one_that_is_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    """As of files that were unpacked together; the list that named them was wrong, and is corrected."""
    for number, name in enumerate("ab"):
        tifffile.imwrite(tmp_path / f"{name}.tif", textured((20, 30), number))
        os.utime(tmp_path / f"{name}.tif", ns=(10**18, 10**18))
    arguments = ("archive", tmp_path / "list.csv", tmp_path / "out", "--model", make_model(levels=2), "--cluster", "serial")
    for name, expected in (("a", 0), ("b", 3), ("a", 0)):
        (tmp_path / "list.csv").write_text(f"image,output\n{name}.tif,one\n")
        code, _, err = call(monkeypatch, capsys, *arguments)
        assert code == expected, err
        assert ("content of the image" in summary_of(tmp_path / "out")["one.zarr"]["reason"]) == (name == "b")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no such folder", {"images": "nowhere"}, "Images not found"),
    ("no image", {"images": "empty"}, "No image found"),
    ("no such model", {"options": ("--model", "nuclei-ho")}, "did you mean 'nuclei-he'"),
    ("no place", {"output": "in/out"}, "lie inside each other"),
    ("several at once in one process", {"options": ("--at-once", "2")}, "--cluster serial works on one image after the other"),
    ("none at once", {"options": ("--at-once", "0")}, "give 1 to 64"),
    ("an option that suits no image", {"options": ("--min-voxels", "5")}, "--min-voxels is for instances"),
    ("another kind of images", {"options": ("--model", "nuclei-he")}, "No image of .* can be segmented \\(6 images\\).*"),
]


@pytest.mark.parametrize(("case", "changed", "words"), BAD, ids=[case[0] for case in BAD])
def test_what_cannot_work_is_refused_with_nothing_written(
    case: str,
    changed: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    images, output = (tmp_path / changed.get(name, usual) for name, usual in (("images", "in"), ("output", "out")))
    options = changed.get("options", ())
    model = () if "--model" in options else ("--model", make_model(levels=2))
    code, _, err = call(monkeypatch, capsys, "archive", images, output, *model, "--cluster", "serial", *options)
    assert (code, output.exists(), err.count("\n")) == (2, False, 1), err
    assert re.search(words, err), err


def unet(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)], cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True, **more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_archive_goes_on_where_it_was_and_ends_in_the_same_bytes(
    number: signal.Signals, make_model: Maker, tmp_path: Path
) -> None:
    """Several images at once on two workers; finished ones are not touched again."""
    shapes = {f"i{count}": (70 + 30 * count, 131 - 20 * count) for count in range(4)}
    folder, model, output = write_images(tmp_path / "in", shapes), make_model(base=8), tmp_path / "out"
    listed = [f"{name}.tif,{name}" for name in shapes] + ["i1.tif,twin", "broken.tif,broken"]  # two results of one image at once
    (folder / "list.csv").write_text("\n".join(["image,output", *listed]))
    arguments = ("archive", folder / "list.csv", output, "--model", model, *INSTANCES[:3], "64,64", "--at-once", "2")
    process = unet(*arguments)
    try:
        deadline = time.monotonic() + 120
        while not list(output.glob("*.zarr/.unet/complete.json")):
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert err.splitlines()[-1] == "unet: stopped; run the same command again to resume."
        assert json.loads((output / "archive.json").read_text())["status"] == "running"
    finished = {path.parts[-3]: times(output / path.parts[-3]) for path in output.glob("*.zarr/.unet/complete.json")}
    assert 0 < len(finished) < len(shapes), "the archive was over before it was stopped"
    again = unet(*arguments)
    assert (again.wait(timeout=200), again.communicate()[1].count("Traceback")) == (3, 0)
    assert {name: times(output / name) for name in finished} == finished
    rows = summary_of(output)
    assert [rows[f"{name}.zarr"]["state"] for name in shapes] == ["complete"] * len(shapes)
    for name in shapes:
        image, single = str(folder / f"{name}.tif"), tmp_path / "single" / name
        run(make_job(image=image, output=str(single), model=str(model), instances="components", block_shape=(64, 64)))
        assert digest(output / f"{name}.zarr") == digest(single)
    assert digest(output / "twin.zarr") == digest(output / "i1.zarr")


@pytest.mark.slow
def test_images_and_results_on_an_object_store(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder, model = write_images(tmp_path / "in", {"a": (41, 53), "sub/e": (7, 9)}), make_model(levels=2)
    zarr.create_array(folder / "f.zarr", data=textured((30, 44), 5), chunks=(16, 16))
    source, target = open_store(str(folder)), open_store(f"{bucket}/in")
    for entry in source.list():
        target.put(entry.key, source.get(entry.key))
    arguments = ("archive", f"{bucket}/in", f"{bucket}/out", "--model", model, *INSTANCES, "--cluster", "serial", "--json")
    code, out, err = call(monkeypatch, capsys, *arguments)
    found = json.loads(out.splitlines()[-1])
    assert (code, found["counts"]) == (3, {"complete": 3, "failed": 1}), err
    results = open_store(f"{bucket}/out")
    tags = {entry.key: entry.tag for entry in results.list()}
    assert json.loads(results.get("archive.json"))["images"] == found["images"]
    for name, image in (("a", "a.tif"), ("sub-e", "sub/e.tif"), ("f", "f.zarr")):
        single = tmp_path / "single" / name
        job = {"image": str(folder / image), "model": str(model), "instances": "components", "block_shape": (32, 32)}
        run(make_job(**job, output=str(single)))
        expected = {key: (single / key).read_bytes() for key in digest(single)}
        assert {
            key.removeprefix(f"{name}.zarr/") for key in tags if key.startswith(f"{name}.zarr/") and "/.unet/" not in key
        } == set(expected)
        voxels = {key: data for key, data in expected.items() if key.startswith("labels/")}
        assert {key: results.get(f"{name}.zarr/{key}") for key in voxels} == voxels
    with monkeypatch.context() as patched:
        patched.setattr(preparing, "resolve", lambda job: pytest.fail("an image was planned"))
        code, out, _ = call(patched, capsys, *arguments)
    assert code == 3
    after = {entry.key: entry.tag for entry in results.list()}
    assert {key for key in tags if tags[key] != after[key]} <= {"archive.json", "archive.csv"}
    code, out, _ = call(monkeypatch, capsys, "status", f"{bucket}/out")
    assert (code, out.count(" complete ")) == (0, 3)


@needs_data
@pytest.mark.slow
def test_every_field_of_a_real_plate_has_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    plate = DATA / "omezarr/bioformats2raw_v04/hcs.zarr"
    model = make_model(levels=2)
    options = ("--model", model, "--cluster", "serial", "--channels", "0", "--time", "0")
    code, _, err = call(monkeypatch, capsys, "archive", plate, tmp_path / "out", *options)
    assert code == 0, err
    assert len(summary_of(tmp_path / "out")) == 8
    single = tmp_path / "single"
    run(make_job(image=f"{plate}/B/2/1", output=str(single), model=str(model), channels=(0,), time=0))
    assert digest(tmp_path / "out/B-2-1.zarr") == digest(single)
    assert read_status(str(tmp_path / "out/A-1-0.zarr")).state == "complete"
