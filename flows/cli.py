"""The command ``unet``. Heavy imports wait until a command needs them.

Exit codes: 0 complete, 1 failed, 2 bad input or usage, 3 partial.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from cyclopts import App, CycloptsError

from flows import settings
from flows.archive_commands import archive
from flows.clean_commands import clean
from flows.cluster_commands import certificates
from flows.convert_commands import convert
from flows.costs_commands import costs
from flows.evaluate_commands import evaluate
from flows.export_commands import export_result
from flows.foreign_commands import export, import_, import_torchscript
from flows.measure_commands import measure
from flows.model_commands import model_app, models, networks
from flows.options import Flag, RunOptions, Whole
from flows.plan_commands import plan
from flows.printing import print_json, visible
from flows.report_commands import report
from flows.sample_commands import sample
from flows.status_commands import status
from flows.train_commands import train
from flows.verify_commands import verify
from flows.view_commands import view
from unet_core import __version__

if TYPE_CHECKING:
    from unet_core.prices import Budget

app = App(
    name="unet",
    version=__version__,
    help="Segment whole slides and EM volumes with U-Nets: exact under any cut, resumable, Zarr to Zarr.",
    suppress_keyboard_interrupt=False,  # `_run` says how to go on
)
app.command(plan)
app.command(archive)
app.command(train)
app.command(models)
app.command(networks)
model_app.command(import_, name="import")
model_app.command(import_torchscript)
model_app.command(export)
app.command(model_app)
app.command(evaluate)
app.command(measure)
app.command(report)
app.command(sample)
app.command(convert)
app.command(export_result, name="export")
app.command(view)
app.command(verify)
app.command(certificates)
app.command(costs)
app.command(clean)
app.command(status)

_PARTIAL, _FAILED, _BAD_INPUT = 3, 1, 2
_SIGNALLED = 128  # and the number of the signal, as shells count
_LONGEST_ERROR = 2000  # letters


@app.command
def segment(image: str, output: str, options: RunOptions) -> int:
    """Segment an image; run it again to resume.

    Args:
        image: Slide (SVS, NDPI, MRXS, SCN, DICOM ..), TIFF, PNG, JPEG, OME-Zarr, Zarr, N5 or Neuroglancer precomputed: a path, or an s3:// URL
            (not of pictures, nor of slides other than SVS).
        output: Where the OME-Zarr result goes.
    """
    as_flow = options.flow or settings.prefect_api_url() is not None
    job, (budget, price) = options.job(image, output), options.prices()
    options.check_metrics()
    if as_flow:
        asked = (options.budget, str(price) if price else None, options.metrics)
        summary = _run_flow(job, options.cluster, options.workers, *asked)
    else:
        summary = _run_plain(job, options.cluster, options.workers, budget, options.metrics)
    _print_summary(summary)
    if options.json:
        print_json(summary)
    return 0 if summary["status"] == "complete" else _PARTIAL


def _run_plain(job: Any, cluster: str, workers: int | str, budget: Budget | None, metrics: str | None) -> dict[str, Any]:
    from flows.claims import terminal_claim
    from flows.progress import terminal_progress
    from flows.run import segment_on_cluster

    show, close = terminal_progress()
    try:
        return segment_on_cluster(job, cluster, workers, show, budget, terminal_claim(), metrics).as_json()
    finally:
        close()


def _run_flow(
    job: Any,
    cluster: str,
    workers: int | str,
    budget: str | None = None,
    price: str | None = None,
    metrics: str | None = None,
    ephemeral_home: Path | None = None,
) -> dict[str, Any]:
    from flows.claims import terminal_claim
    from flows.prefect_server import check_prefect, start_ephemeral
    from flows.run import check_job

    api_url = settings.prefect_api_url()
    if api_url is not None:
        check_prefect(api_url)
    check_job(job, cluster, workers, terminal_claim())  # bad input is told in one line, before a server starts
    if api_url is None and ephemeral_home is not None:
        settings.use_ephemeral_prefect(ephemeral_home)
    settings.apply_defaults()
    if api_url is None:
        start_ephemeral()
    from prefect.exceptions import CancelledRun

    from flows.segment import PartialRunError, segment_volume

    try:
        summary: dict[str, Any] = segment_volume(job, cluster, workers, budget, price, metrics)
    except PartialRunError as error:
        return error.summary.as_json()
    except CancelledRun:  # in the Prefect UI
        raise KeyboardInterrupt from None
    return summary


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['status']}: {summary['output']}")
    print(f"  {summary['computed']} of {summary['blocks']} blocks computed in {summary['seconds']:.1f} s, ", end="")
    print(_rate(summary["voxels_per_second"]) if summary["computed"] else "the others were there already")
    for text in summary["skipped"]:
        print(f"  {text}")
    for url in summary["attached"]:
        print(f"  attached: {url}")
    if summary["passes"] > 1:
        print(f"  mean of {summary['passes']} passes of {visible(', '.join(summary['models']))}")
    for name, count in summary["label_voxels"].items():
        size = f", {summary['area_um'][name]:,.0f} {summary['area_unit']}" if summary["area_um"] else ""
        print(f"  {visible(name)}: {count:,} voxels{size}")
    if summary["instances"] is not None:
        print(f"  instances: {', '.join(f'{count:,} {visible(name)}' for name, count in summary['instances'].items()) or 'none'}")
    if summary["table"] is not None:
        print(f"  measured in {summary['output'].rstrip('/')}/{summary['table']}")
    for text in summary["warnings"]:
        print(f"  note: {visible(text)}")
    _print_seams(summary["seams"])
    if summary["stopped"]:
        print(f"  stopped: {summary['stopped']}")
    for text in summary["failures"][:10]:
        print(f"  failed: {visible(text)}")


def _rate(voxels_per_second: float) -> str:
    return f"{voxels_per_second / 1e6:.2f} Mvoxel/s" if voxels_per_second >= 1e5 else f"{voxels_per_second / 1e3:.1f} kvoxel/s"


def _print_seams(seams: dict[str, Any]) -> None:
    if not seams:
        return
    from unet_core.seams import Seam

    for axis, score in seams.items():
        print(f"  seams: {Seam(**score).sentence(axis)}")


@app.command
def seams(output: str, *, json: Flag = False, debug: Flag = False) -> int:
    """Tell how much a result jumps at the faces of its tiles or blocks, compared with planes elsewhere."""
    from dataclasses import asdict

    from unet_core.seams import measure_seams, without_faces
    from unet_core.segment import read_status

    found = {axis: asdict(score) for axis, score in measure_seams(output).items()}
    print(output if found else f"{output}: {without_faces(next(iter(read_status(output).stages.values()))[0])}")
    _print_seams(found)
    if json:
        print_json(found)
    return 0


@app.command
def demo(output: Path = Path("unet-demo"), *, workers: Whole = 2, json: Flag = False, debug: Flag = False) -> int:
    """Segment the nuclei of a bundled whole slide with a bundled model, as a Prefect flow on local workers.

    Args:
        output: Folder for the result, its picture and its report; run it again to resume.
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
        print_json(summary | {"picture": facts["picture"], "report": facts["report"]})
    return _PARTIAL if summary["failures"] else 0


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
    text = visible(error)[:_LONGEST_ERROR] or type(error).__name__
    print(f"unet: {text}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):  # what to begin with, such as a file, keeps its lines
        lines = ("".join(letter for letter in line if letter.isprintable()) for line in note.splitlines())
        print("", *lines, sep="\n", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"status": "error", "exit_code": code, "error": text}))
    return code


if __name__ == "__main__":
    main()
