"""The command ``unet``. Heavy imports wait until a command needs them.

Exit codes: 0 complete, 1 failed, 2 bad input or usage, 3 partial.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, CycloptsError

from flows import settings
from flows.options import Flag, RunOptions
from unet_core import __version__

app = App(
    name="unet",
    version=__version__,
    help="Segment whole slides and EM volumes with U-Nets: exact under any cut, resumable, Zarr to Zarr.",
)
model_app = App(name="model", help="Look at one model.")
app.command(model_app)

_PARTIAL, _FAILED, _BAD_INPUT = 3, 1, 2


@app.command
def segment(image: str, output: str, options: RunOptions) -> int:
    """Segment an image; run it again to resume.

    Args:
        image: Slide, TIFF, PNG, Zarr array or OME-Zarr image; a path or s3:// URL.
        output: Where the OME-Zarr result goes.
    """
    as_flow = options.flow or settings.prefect_api_is_configured()
    return _segment(options.job(image, output), options.cluster, options.workers, as_flow, options.json)


def _segment(job: Any, cluster: str, workers: int, as_flow: bool, as_json: bool) -> int:
    summary = _run_flow(job, cluster, workers) if as_flow else _run_plain(job, cluster, workers)
    _print_summary(summary)
    if as_json:
        print(json.dumps(summary))
    return _PARTIAL if summary["failures"] else 0


def _run_plain(job: Any, cluster: str, workers: int) -> dict[str, Any]:
    from flows.progress import terminal_progress
    from flows.run import segment_on_cluster

    show, close = terminal_progress()
    try:
        return segment_on_cluster(job, cluster, workers, show).as_json()
    finally:
        close()


def _run_flow(job: Any, cluster: str, workers: int) -> dict[str, Any]:
    from flows.run import check_job

    check_job(job, cluster, workers)  # bad input is told in one line, before a server starts
    settings.apply_defaults()
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
    steps: int = 1200,
    seed: int = 0,
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


@model_app.command
def info(model: str, *, json: Flag = False, debug: Flag = False) -> int:
    """Show a model's network, margin, legal sizes, classes and where it comes from."""
    from unet_core.model_package import load_model

    package = load_model(model)
    description, geometry = package.description, package.footprint
    smallest = geometry.legal_shape((1,) * package.dims)
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
        "input channels": description.input_channels,
        "voxel size": description.voxel_size_um,
        "normalisation": description.normalisation.model_dump(mode="json"),
        "classes": [entry.model_dump() for entry in description.classes],
        "exact": True,
        "sha256": package.sha256,
        "provenance": description.provenance,
    }
    for name, value in facts.items():
        print(f"{name:>16}  {value}")
    if json:
        _print_json(facts)
    return 0


@app.command
def demo(output: Path = Path("unet-demo"), *, workers: int = 2, json: Flag = False, debug: Flag = False) -> int:
    """Segment the nuclei of a bundled whole slide with a bundled model, as a Prefect flow on local workers.

    Args:
        output: Folder for the result and its picture; run it again to resume.
        workers: Processes.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.demo import prepare_demo, show_demo

    job = prepare_demo(output)
    if not settings.prefect_api_is_configured():
        settings.use_ephemeral_prefect(output.resolve() / "prefect")
    summary = _run_flow(job, "local", workers)
    _print_summary(summary)
    facts = show_demo(job, output)
    for line in facts["lines"]:
        print(line)
    if json:
        _print_json(summary | {"picture": facts["picture"]})
    return _PARTIAL if summary["failures"] else 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=str))


def main() -> None:
    """Entry point: one line and an exit code instead of a traceback, unless ``--debug``."""
    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value") or 0
    except CycloptsError as error:
        code = _fail(error, _BAD_INPUT)
    except KeyboardInterrupt:
        print("unet: stopped; run the same command again to resume.", file=sys.stderr)
        code = 130
    except Exception as error:  # the last resort of a command line: one line, and the traceback on request
        from unet_core.errors import InputError

        code = _fail(error, _BAD_INPUT if isinstance(error, InputError) else _FAILED)
    sys.exit(code)


def _fail(error: Exception, code: int) -> int:
    if "--debug" in sys.argv:
        traceback.print_exc()
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())
    print(f"unet: {text or type(error).__name__}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
