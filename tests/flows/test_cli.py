"""The command line: one line and exit code 2 for bad input with nothing written, a summary and 0 for a finished run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from flows import cli, clusters, settings
from flows.printing import print_json, readable
from tests.conftest import textured
from unet_core.segment import RunSummary

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``unet ARGUMENTS`` in this process."""
    monkeypatch.setattr(sys, "argv", ["unet", *(str(argument) for argument in arguments)])
    monkeypatch.setattr(settings, "prefect_api_url", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_segment_plan_status_and_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model, output = make_image((90, 70)), make_model(), tmp_path / "out"
    common = (image, output, "--model", model, "--block-shape", "32,32", "--json")
    code, out, _ = call(monkeypatch, capsys, "plan", *common)
    assert code == 0
    facts = json.loads(out.splitlines()[-1])
    assert facts["blocks"] == "9 of (32, 32) voxels"
    assert facts["exact"] is True
    assert not output.exists()
    code, out, _ = call(monkeypatch, capsys, "segment", *common, "--cluster", "serial")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["status"], summary["computed"]) == (0, "complete", 9)
    assert sum(summary["label_voxels"].values()) == 90 * 70
    code, out, _ = call(monkeypatch, capsys, "segment", *common, "--cluster", "serial")
    assert (code, json.loads(out.splitlines()[-1])["computed"]) == (0, 0)
    code, out, _ = call(monkeypatch, capsys, "status", output, "--json")
    assert (code, json.loads(out.splitlines()[-1])["state"]) == (0, "complete")


def test_a_mask_is_said_by_plan_and_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    mask = np.zeros((90, 70), "u1")
    mask[:9, :9] = 1
    zarr.create_array(tmp_path / "mask.zarr", data=mask, chunks=(90, 70))
    common = (make_image((90, 70)), tmp_path / "out", "--model", make_model(), "--block-shape", "32,32", "--mask")
    code, out, _ = call(monkeypatch, capsys, "plan", *common, tmp_path / "mask.zarr", "--json")
    skipped = f"8 blocks skipped where mask {tmp_path}/mask.zarr is 0"
    assert json.loads(out.splitlines()[-1])["foreground"] == f"1 blocks to compute; {skipped}"
    code, out, _ = call(monkeypatch, capsys, "segment", *common, tmp_path / "mask.zarr", "--cluster", "serial", "--json")
    assert (code, json.loads(out.splitlines()[-1])["skipped"]) == (0, [skipped])
    assert "  1 of 1 blocks computed" in out
    assert f"  {skipped}" in out.splitlines()
    code, out, err = call(monkeypatch, capsys, "segment", *common, tmp_path / "none.png", "--cluster", "serial")
    assert (code, err.count("\n")) == (2, 1)


BAD: list[tuple[str, tuple[str, ...], str]] = [
    ("unknown option", ("--devise", "cpu"), "devise"),
    ("absent device", ("--device", "cuda:7"), "this machine has"),
    ("unknown device", ("--device", "tpu"), "use auto, cpu, cuda"),
    ("no workers", ("--workers", "0"), "workers is 0"),
    ("negative workers", ("--workers", "-2"), "workers is -2"),
    ("unknown cluster", ("--cluster", "cloud"), "Cluster 'cloud' is not known"),
    ("no address", ("--cluster", "address"), "write --cluster tcp://HOST:PORT"),
    ("address of another kind", ("--cluster", "foo://x"), "is no address of a scheduler"),
    ("address without a port", ("--cluster", "tcp://nohost"), "is no address of a scheduler"),
    ("port of letters", ("--cluster", "tcp://nohost:xx"), "is no address of a scheduler"),
    ("nothing listens", ("--cluster", "tcp://127.0.0.1:9"), "No scheduler answers .*dask scheduler"),
    ("another machine without TLS", ("--cluster", "tcp://no.invalid:8786"), "is another machine without TLS"),
    ("TLS without certificates", ("--cluster", "tls://no.invalid:8786"), "needs certificates, and dask knows no"),
    ("half a thread", ("--threads", "1.5"), "'1.5' is no whole number"),
    ("half a level", ("--level", "1.5"), "'1.5' is no whole number"),
    ("half a worker", ("--workers", "2.0"), "'2.0' is no whole number"),
    ("tiny voxels", ("--voxel-size", "1e-320,1"), "voxel_size_um.0"),
    ("endless memory", ("--memory-gib", "1e308"), "memory_gib"),
    ("block off the stride", ("--block-shape", "30,32"), "use 28 or 32"),
    ("block of other axes", ("--block-shape", "4,32,32"), "has 3 axes"),
    ("block of letters", ("--block-shape", "a,b"), "write numbers"),
    ("negative voxel size", ("--voxel-size=-1,1",), "greater than or equal to 0.000001"),
    ("voxel size of other axes", ("--voxel-size", "1,1,1"), "give one an axis"),
    ("region outside", ("--roi", "900:950,0:10"), "covers nothing"),
    ("region of letters", ("--roi", "all"), "is not a box"),
    ("too little memory", ("--memory-gib", "0.000001"), "GiB, the worker may use"),
    ("a level that is not there", ("--level", "3"), "level 3 .* does not exist"),
    ("precision", ("--precision", "float16"), "float16"),
]


@pytest.mark.parametrize(("options", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_bad_options_end_with_one_line_and_nothing_written(
    command: str,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    image, model, output = make_image((90, 70)), make_model(), tmp_path / "out"
    code, _, err = call(monkeypatch, capsys, command, image, output, "--model", model, *options)
    assert code == 2
    assert err.startswith("unet: ")
    assert err.count("\n") == 1
    assert re.search(words, err), err
    assert not output.exists()


def test_bad_places_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((90, 70)), make_model()
    for arguments, words in [
        ((tmp_path / "no.zarr", tmp_path / "o", "--model", model), "input not found"),
        ((image, tmp_path / "o", "--model", "nope"), "Model not found"),
        ((image, image / "o", "--model", model), "inside each other"),
        ((image, image, "--model", model), "is the image itself"),
        ((image, tmp_path / "o"), "model"),
        (("s3://user:geheim@b/x", tmp_path / "o", "--model", model), "Credentials"),
    ]:
        code, _, err = call(monkeypatch, capsys, "segment", *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
        assert "geheim" not in err
    assert not (tmp_path / "o").exists()


def test_places_that_take_no_output_end_with_one_line_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("important")
    model = make_model()
    for output, words in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "is a file"),
        ("/proc/x.zarr", "takes no files"),
        (tmp_path / ("n" * 300), "more than 255 bytes"),
        ("", "Output is ''"),
        ("~nosuchuser/x", "home directory"),
        (model / "out", "and model .* lie inside each other"),
    ]:
        code, _, err = call(monkeypatch, capsys, "segment", "no-image.zarr", output, "--model", model)
        assert (code, err.count("\n")) == (2, 1)
        assert re.search(words, err), err
    for command in ("status", "demo"):
        code, _, err = call(monkeypatch, capsys, command, tmp_path / "file")
        assert (code, err.count("\n")) == (2, 1)
    assert (tmp_path / "file").read_text() == "important"


def test_what_listens_but_is_no_scheduler_is_told_before_the_output_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 1)
    common = ("segment", make_image((40, 50)), tmp_path / "out", "--model", make_model(), "--cluster")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        code, _, err = call(monkeypatch, capsys, *common, address)
        assert (code, err.count("\n")) == (2, 1)
        assert f"No scheduler answers at {address} (timed out)" in err

        def greet() -> None:
            for _ in range(2):
                server.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        code, _, err = call(monkeypatch, capsys, *common, address)
        assert (code, err.count("\n")) == (2, 1)
        assert f"What listens at {address} is no dask scheduler" in err
    assert not (tmp_path / "out").exists()


def test_a_prefect_server_that_is_not_there_is_told_before_anything_is_written(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    began = time.monotonic()
    done = command(
        "segment", make_image((40, 50)), tmp_path / "out", "--model", make_model(), PREFECT_API_URL="http://127.0.0.1:9/api"
    )
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert "The Prefect server at http://127.0.0.1:9/api does not answer" in done.stderr
    assert "unset PREFECT_API_URL" in done.stderr
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out").exists()


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``unet ARGUMENTS`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)],
        env=os.environ | {"PREFECT_API_URL": ""} | environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_json_ends_with_an_object_for_errors_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    for arguments in (("--model", "nope"), ("--devise", "cpu")):
        code, out, err = call(monkeypatch, capsys, "segment", "no.zarr", tmp_path / "o", *arguments, "--json")
        said = json.loads(out.splitlines()[-1])
        assert (code, said["status"], said["exit_code"]) == (2, "error", 2)
        assert err == f"unet: {said['error']}\n"


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, {"d": -float("inf")})})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1, {"d": None}]}


def test_the_demonstration_refuses_before_it_makes_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = call(monkeypatch, capsys, "demo", "--workers", "0", tmp_path / "demo")
    assert (code, err) == (2, "unet: workers is 0; at least 1 is needed.\n")
    assert not (tmp_path / "demo").exists()


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m flows.cli models | head -n 0"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("columns", ["1", "0", "-3", "x", "39"])
def test_help_ends_on_a_terminal_of_any_width(columns: str) -> None:
    done = command("segment", "--help", COLUMNS=columns)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--model" in done.stdout


def test_failed_blocks_end_with_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    values = textured((40, 90)).astype(np.float32)
    values[5, 85] = np.inf
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(40, 90))
    code, out, _ = call(
        monkeypatch, capsys, "segment", tmp_path / "a.zarr", tmp_path / "o", "--model", make_model(), "--cluster", "serial",
        "--block-shape", "16,16",
    )  # fmt: skip
    assert code == 3
    assert "partial" in out
    assert "failed: segment block" in out


def test_models_and_model_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(monkeypatch, capsys, "models", "--json")
    assert (code, {row["name"] for row in json.loads(out.splitlines()[-1])}) == (0, {"nuclei-he", "nuclei-fluorescence"})
    code, out, _ = call(monkeypatch, capsys, "model", "info", "nuclei-he", "--json")
    facts: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert code == 0
    assert facts["margin"] == "(44, 44) before, (44, 44) after"
    assert facts["stride"] == [8, 8]


def test_model_info_is_lines_for_people_and_values_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nuclei-he", "nuclei-fluorescence"):
        code, out, _ = call(monkeypatch, capsys, "model", "info", name, "--json")
        *lines, last = out.splitlines()
        assert code == 0
        assert not [line for line in lines if set(line) & set("{}[]'")]
        assert json.loads(last)["classes"][1] == {"value": 1, "name": "nucleus", "color": json.loads(last)["classes"][1]["color"]}
    code, out, _ = call(monkeypatch, capsys, "model", "info", "nuclei-he")
    assert "  network  unet: in_channels 3, classes 2, base 16, levels 4, batch_norm yes, dropout 0.1\n" in out
    assert "  classes  0 background (#000000), 1 nucleus (#12b312)\n" in out
    assert "red: (value - 172.777) / 32.022, green:" in out
    assert "\n                  scores: images 17, iou_pooled 0.7701," in out


def test_plain_values_become_lines() -> None:
    assert readable({}) == ["none"]
    assert readable([1, 2.5, True, None]) == ["1, 2.5, yes, none"]
    assert readable({"a": {"b": {"c": 1}, "d": [2]}, "e": "x\x1b[2Jy"}) == ["a.b: c 1", "a.d: 2", "e x [2Jy"]
    assert readable([{"kind": "fixed", "of": [1, 2]}]) == ["kind fixed, of 1, 2"]
    assert readable(list(range(20)))[0].endswith("10, 11 and 8 more")


def test_a_region_of_a_plan_tells_how_many_blocks_are_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    options = ("--model", make_model(), "--block-shape", "32,32", "--roi", "30:40,0:10", "--roi", "0:5,0:5", "--json")
    code, out, _ = call(monkeypatch, capsys, "plan", make_image((90, 70)), tmp_path / "out", *options)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["blocks"] == "9 of (32, 32) voxels; 2 wanted, those that touch --roi"
    (tmp_path / "boxes.txt").write_text("# of cells\n30:40, 0:10\n\n0:5,0:5\n")
    options = (*options[:4], "--roi", tmp_path / "boxes.txt", "--roi", "80:81,60:61", "--json")
    code, out, _ = call(monkeypatch, capsys, "plan", make_image((90, 70)), tmp_path / "o", *options)
    assert json.loads(out.splitlines()[-1])["blocks"] == "9 of (32, 32) voxels; 3 wanted, those that touch --roi"
    (tmp_path / "empty.txt").write_text("# none\n")
    for name, words in (("empty.txt", "holds no box"), ("nowhere.txt", "cannot be read (No such file or directory)")):
        code, _, err = call(
            monkeypatch, capsys, "plan", make_image((90, 70)), tmp_path / "o", *options[:4], "--roi", tmp_path / name
        )
        assert (code, words in err) == (2, True), err
    code, out, _ = call(monkeypatch, capsys, "plan", "--help")
    assert "Whole blocks are computed" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((40, 50), "2", "channel 2 of .*: it has one, number 0; leave the choice of channels"),
        ((40, 50), "0,1", "channels 0, 1 of .*: it has one, number 0"),
        ((40, 50, 3), "3", "channel 3 of .* does not exist; it has channels 0 to 2"),
        ((40, 50, 3), "2,1", "model wants 1 channel .*, --channels names 2 of the image: .*; name 1"),
        ((40, 50, 3), None, "model wants 1 channel .*, image has 3: .*; choose which with --channels, e.g. --channels 0"),
    ],
)
def test_channels_that_are_not_there_are_told_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    tmp_path: Path,
    shape: tuple[int, ...],
    channels: str | None,
    message: str,
) -> None:
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "image.png")
    chosen = ("--channels", channels) if channels else ()
    code, _, err = call(monkeypatch, capsys, "plan", tmp_path / "image.png", tmp_path / "out", "--model", make_model(), *chosen)
    assert code == 2
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1


def test_without_a_prefect_api_prefect_is_not_imported(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    code = (
        "import sys; from flows.run import segment_on_cluster; from unet_core.job import make_job\n"
        "job = make_job(image=sys.argv[1], output=sys.argv[2], model=sys.argv[3])\n"
        "assert segment_on_cluster(job, 'serial').status == 'complete'; assert 'prefect' not in sys.modules"
    )
    arguments = [str(make_image((40, 50))), str(tmp_path / "o"), str(make_model())]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)


def test_help_answers_at_once() -> None:
    best = 9.0
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "--help"], check=True, cwd=ROOT, capture_output=True, env=dict(os.environ)
        )
        best = min(best, time.monotonic() - began)
    assert best < 5  # a hang or a heavy import; the figure itself is no test


def test_model_info_warns_of_a_network_that_reads_much_more_than_it_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path]
) -> None:
    deep = make_model(network="vnet", dims=3, base=1)
    code, out, _ = call(monkeypatch, capsys, "model", "info", deep)
    assert code == 0
    assert "even the largest usual block reads 19.3 times what it writes" in out
    assert "runs  strip by strip" in out
    code, out, _ = call(monkeypatch, capsys, "model", "info", make_model(levels=2, padding="same"))
    assert "warning" not in out
    assert "runs  in whole blocks" in out


def test_one_time_point_is_taken_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    zarr.create_array(tmp_path / "t", data=textured((3, 1, 1, 20, 30)), dimension_names=[*"tczyx"])
    segment = ("segment", tmp_path / "t", tmp_path / "out", "--model", make_model())
    for command_ in (segment, ("convert", tmp_path / "t", tmp_path / "out")):
        code, _, err = call(monkeypatch, capsys, *command_)
        assert (code, err.count("\n")) == (2, 1)
        assert "has 3 time points; choose one with --time 0 to 2; each gets an output of its own." in err
        code, _, err = call(monkeypatch, capsys, *command_, "--time", "all")
        assert (code, err.count("\n")) == (2, 1)
        assert "'all' is no whole number; one time point is taken at a time, 0 the first: run the command for each" in err
    assert not (tmp_path / "out").exists()


def test_convert_writes_an_image_that_segment_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, target = make_image((90, 70)), tmp_path / "a.zarr"
    code, out, _ = call(monkeypatch, capsys, "convert", image, target, "--voxel-size", "0.5,0.25", "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["status"], summary["scale"], summary["computed"]) == (0, "complete", [0.5, 0.25], 1)
    assert "yx uint8, voxels of 0.5 x 0.25 micrometer" in out
    code, _, err = call(monkeypatch, capsys, "convert", image, target)
    assert (code, err.count("\n")) == (2, 1)
    assert "was begun with another scale: [0.5, 0.25] then, [1.0, 1.0] now" in err
    code, _, _ = call(monkeypatch, capsys, "segment", target, tmp_path / "out", "--model", make_model(), "--cluster", "serial")
    assert code == 0


def test_a_summary_shows_no_codes_of_a_foreign_model(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "a\x1b[2Jb"
    summary = RunSummary(
        "partial", "out", "0" * 64, 2, 1, 3, None, 1.0, {bad: 3}, None, "um^2", {bad: 1},
        failures=[bad], failed=1, models=[bad], passes=2, warnings=[bad],
    )  # fmt: skip
    cli._print_summary(summary.as_json())
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("a [2Jb") == 5
