"""The command ``unet``. Heavy imports wait until a command needs them.

Exit codes: 0 complete, 1 failed, 2 bad input or usage, 3 partial.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from cyclopts import App, CycloptsError

from flows import settings
from flows.options import Flag, RunOptions, Whole
from unet_core import __version__

app = App(
    name="unet",
    version=__version__,
    help="Segment whole slides and EM volumes with U-Nets: exact under any cut, resumable, Zarr to Zarr.",
    suppress_keyboard_interrupt=False,  # `_run` says how to go on
)
model_app = App(name="model", help="Look at one model.")
app.command(model_app)

_PARTIAL, _FAILED, _BAD_INPUT = 3, 1, 2
_SIGNALLED = 128  # and the number of the signal, as shells count
_LONGEST_ERROR = 2000  # letters


@app.command
def segment(image: str, output: str, options: RunOptions) -> int:
    """Segment an image; run it again to resume.

    Args:
        image: Slide, TIFF, PNG, Zarr array or OME-Zarr image; a path or s3:// URL.
        output: Where the OME-Zarr result goes.
    """
    as_flow = options.flow or settings.prefect_api_url() is not None
    return _segment(options.job(image, output), options.cluster, options.workers, as_flow, options.json)


def _segment(job: Any, cluster: str, workers: int, as_flow: bool, as_json: bool) -> int:
    summary = _run_flow(job, cluster, workers) if as_flow else _run_plain(job, cluster, workers)
    _print_summary(summary)
    if as_json:
        _print_json(summary)
    return _PARTIAL if summary["failures"] else 0


def _run_plain(job: Any, cluster: str, workers: int) -> dict[str, Any]:
    from flows.progress import terminal_progress
    from flows.run import segment_on_cluster

    show, close = terminal_progress()
    try:
        return segment_on_cluster(job, cluster, workers, show).as_json()
    finally:
        close()


def _run_flow(job: Any, cluster: str, workers: int, ephemeral_home: Path | None = None) -> dict[str, Any]:
    from flows.prefect_server import check_prefect, start_ephemeral
    from flows.run import check_job

    api_url = settings.prefect_api_url()
    if api_url is not None:
        check_prefect(api_url)
    check_job(job, cluster, workers)  # bad input is told in one line, before a server starts
    if api_url is None and ephemeral_home is not None:
        settings.use_ephemeral_prefect(ephemeral_home)
    settings.apply_defaults()
    if api_url is None:
        start_ephemeral()
    from flows.segment import PartialRunError, segment_volume

    try:
        summary: dict[str, Any] = segment_volume(job, cluster, workers)
    except PartialRunError as error:
        return error.summary.as_json()
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['status']}: {summary['output']}")
    print(f"  {summary['computed']} of {summary['blocks']} blocks computed in {summary['seconds']:.1f} s, ", end="")
    print(f"{summary['voxels_per_second'] / 1e6:.2f} Mvoxel/s" if summary["computed"] else "the others were there already")
    for name, count in summary["label_voxels"].items():
        size = f", {summary['area_um'][name]:,.0f} {summary['area_unit']}" if summary["area_um"] else ""
        print(f"  {name}: {count:,} voxels{size}")
    for text in summary["warnings"]:
        print(f"  note: {text}")
    for text in summary["failures"][:10]:
        print(f"  failed: {text}")


@app.command
def plan(image: str, output: str, options: RunOptions) -> int:
    """Show what `segment` with the same arguments would do; runs and writes nothing.

    Args:
        image: Slide, TIFF, PNG, Zarr array or OME-Zarr image; a path or s3:// URL.
        output: Where the OME-Zarr result would go.
    """
    from flows.run import check_job

    facts = check_job(options.job(image, output), options.cluster, options.workers).facts()
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):>16}  {value}")
    if options.json:
        _print_json(facts)
    return 0


@app.command
def status(output: str, *, json: Flag = False, debug: Flag = False) -> int:
    """Tell how far a run is, from its output alone."""
    from dataclasses import asdict

    from unet_core.segment import read_status

    found = read_status(output)
    print(f"{found.state}: {output} (plan {found.plan[:12]}, model {found.model})")
    for name, (done, wanted) in found.stages.items():
        print(f"  {name}: {done} of {wanted} units")
    if json:
        _print_json(asdict(found))
    return 0


@app.command
def train(
    data: Path,
    out: Path,
    *,
    modality: Literal["brightfield_stained", "fluorescence"],
    steps: Whole = 1200,
    seed: Whole = 0,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Train a nucleus model from a folder like that of the 2018 Data Science Bowl.

    Args:
        data: Folder with index.json, images/NAME.png and labels/NAME.tif (instance ids).
        out: Where the model package goes.
        modality: Which images of the index to train on.
        steps: Of the optimiser.
        seed: Of split, weights, crops and augmentation.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.training.nuclei import train_nuclei

    scores = train_nuclei(data, modality, out, steps, seed, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"model written to {out}; held out: IoU {scores['iou_pooled']} over {scores['images']} images")
    if json:
        _print_json(scores)
    return 0


@app.command
def models(*, json: Flag = False, debug: Flag = False) -> int:
    """List the models that are installed with this program."""
    from unet_core.model_package import bundled_models, read_description

    rows = []
    for name, folder in bundled_models().items():
        description, weights = read_description(str(folder))
        classes = ", ".join(entry.name for entry in description.classes)
        score = description.provenance.get("scores", {})
        rows.append(
            {
                "name": name,
                "channels": description.input_channels,
                "classes": classes,
                "bytes": weights.size_bytes,
                "scores": score,
            }
        )
        held_out = f"; held-out IoU {score['iou_pooled']} on {score['images']} images" if score else ""
        print(f"{name}: {len(description.input_channels)} channels -> {classes}{held_out}")
    if json:
        _print_json(rows)
    return 0


@app.command
def networks(*, json: Flag = False, debug: Flag = False) -> int:
    """Count the parameters of every network as published, beside what is published; and its margin and stride."""
    from dataclasses import asdict

    from unet_core.networks.published import count_all

    rows = count_all()
    print(f"{'network':15} {'configuration':34} {'channels':>9} {'counted':>13} {'published':>13}  margin, stride")
    for row in rows:
        geometry = f"{row.margin[0]}+{row.margin[1]}, {row.stride}"
        print(f"{row.network:15} {row.configuration:34} {row.channels:>9} {row.counted:>13,} {row.published:>13}  {geometry}")
        if row.remark:
            print(f"{'':15} {row.remark}")
    if json:
        _print_json([asdict(row) for row in rows])
    return 0


@model_app.command
def info(model: str, *, json: Flag = False, debug: Flag = False) -> int:
    """Show a model's network, margin, legal sizes, cost, classes and where it comes from."""
    from math import prod

    from unet_core.cost import operations
    from unet_core.geometry import Box
    from unet_core.model_package import load_model
    from unet_core.plan import fit_block_shape
    from unet_core.planning import BLOCK_SIZES
    from unet_core.rules import trace

    package = load_model(model)
    description, geometry = package.description, package.footprint
    smallest = geometry.legal_shape((1,) * package.dims)
    largest = (BLOCK_SIZES[package.dims][0],) * package.dims
    block = fit_block_shape(largest, largest, geometry.stride)
    read = geometry.read_box(Box.from_shape(block)).shape
    mflop = operations(trace(package.network), (len(description.input_channels), *read)) / 1e6 / prod(block)
    facts = {
        "name": description.name,
        "folder": package.url,
        "network": f"{description.network.name} {description.network.arguments}",
        "parameters": sum(parameter.numel() for parameter in package.network.parameters()),
        "dims": package.dims,
        "margin": f"{geometry.before} before, {geometry.after} after",
        "stride": geometry.stride,
        "phase": geometry.phase,
        "receptive field": tuple(a + b + 1 for a, b in zip(*geometry.support, strict=True)),
        "legal sizes": ", ".join(f"{size} + n x {step}" for size, step in zip(smallest, geometry.stride, strict=True)),
        "cost": f"{mflop:.3g} MFLOP a voxel in blocks of {block}, which read {prod(read) / prod(block):.2f} x what they write",
        "input channels": description.input_channels,
        "voxel size": description.voxel_size_um,
        "normalisation": description.normalisation.model_dump(mode="json"),
        "classes": [entry.model_dump() for entry in description.classes],
        "exact": "yes, padded: blocks read until padding shows no more" if geometry.is_padded else "yes, unpadded",
        "sha256": package.sha256,
        "provenance": description.provenance,
    }
    for name, value in facts.items():
        print(f"{name:>16}  {value}")
    if json:
        _print_json(facts)
    return 0


@app.command
def demo(output: Path = Path("unet-demo"), *, workers: Whole = 2, json: Flag = False, debug: Flag = False) -> int:
    """Segment the nuclei of a bundled whole slide with a bundled model, as a Prefect flow on local workers.

    Args:
        output: Folder for the result and its picture; run it again to resume.
        workers: Processes.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.demo import prepare_demo, show_demo

    job = prepare_demo(output)
    summary = _run_flow(job, "local", workers, ephemeral_home=output.resolve() / "prefect")
    _print_summary(summary)
    facts = show_demo(job, output)
    for line in facts["lines"]:
        print(line)
    if json:
        _print_json(summary | {"picture": facts["picture"]})
    return _PARTIAL if summary["failures"] else 0


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Terminated(KeyboardInterrupt):
    """SIGTERM, told apart from Ctrl-C by the exit code only."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> None:
    """Entry point: one line and an exit code instead of a traceback, unless ``--debug``."""
    signal.signal(signal.SIGTERM, _terminate)
    settings.widen_terminal()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as in `unet models | head -n 1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _SIGNALLED + signal.SIGPIPE
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except CycloptsError as error:
        return _fail(error, _BAD_INPUT)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        return _fail("stopped; run the same command again to resume.", _SIGNALLED + number)
    except BrokenPipeError:
        raise
    except Exception as error:  # the last resort of a command line: one line, and the traceback on request
        from unet_core.errors import InputError

        return _fail(error, _BAD_INPUT if isinstance(error, InputError) else _FAILED)


def _fail(error: Exception | str, code: int) -> int:
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would list what was under way when the run ended
    if "--debug" in sys.argv:
        traceback.print_exc()
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())[:_LONGEST_ERROR]
    text = text or type(error).__name__
    print(f"unet: {text}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"status": "error", "exit_code": code, "error": text}))
    return code


if __name__ == "__main__":
    main()
