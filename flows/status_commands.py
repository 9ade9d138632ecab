"""The command ``unet status``: how far a run, an archive or a training is, once or as it goes on. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter, validators

from flows.archive_commands import show_archive
from flows.options import Flag
from flows.printing import print_json, visible

_INTERRUPTED = 130  # as shells count
_MOST_FAILURES = 10


def status(
    output: str,
    *,
    watch: Flag = False,
    every: Annotated[float, Parameter(validator=validators.Number(gte=0.2))] = 2.0,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Tell how far a run, an archive, or a training, is, from its output alone.

    Args:
        output: Of unet segment, archive or train.
        watch: Look again and again until it is complete; needs no server. Ends with Ctrl-C, which the run does not notice.
        every: Seconds between looks; more where a look takes long.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    if watch:
        from flows.status_watch import watch_output

        try:
            facts, code = watch_output(output, every)
        except KeyboardInterrupt:
            print("No longer watched; the run itself was not stopped.")
            return _INTERRUPTED
    else:
        facts, code = _show(output), 0
    if json:
        print_json(facts)
    return code


def _show(output: str) -> dict[str, Any]:
    from dataclasses import asdict

    from unet_core.training_folder import find_training

    training = find_training(output)
    if training:
        print(f"{'complete' if training.is_complete else 'unfinished'}: {training.sentence()}")
        return asdict(training) | {"state": "complete" if training.is_complete else "unfinished"}
    states = show_archive(output)
    if states is not None:
        return states
    from unet_core.attempts import read_quarantined
    from unet_core.following import Follower
    from unet_core.lease import find_holder
    from unet_core.stages import title_of
    from unet_core.store import open_store

    found = Follower(output).look()
    print(f"{found.state}: {output} (plan {found.plan[:12]}, model {visible(found.model)})")
    for name, (done, wanted) in found.stages.items():
        print(f"  {title_of(name)}: {done:,} of {wanted:,}")
    for text in found.failures[:_MOST_FAILURES]:
        print(f"  failed: {visible(text)}")
    holder = find_holder(open_store(output))
    if holder is not None:
        print(f"  held by {visible(holder.sentence())}")
    quarantined = [attempts.sentence() for attempts in read_quarantined(open_store(output))]
    for text in quarantined[:_MOST_FAILURES] if not found.failures else ():
        print(f"  failed: {visible(text)}")
    if len(quarantined) > _MOST_FAILURES:
        print(f"  and {len(quarantined) - _MOST_FAILURES:,} more")
    facts = asdict(found) | {"quarantined": quarantined, "holder": holder and holder.model_dump(mode="json", by_alias=True)}
    return {
        name: facts[name]
        for name in ("state", "plan", "model", "stages", "skipped", "hardware", "failures", "quarantined", "holder")
    }
