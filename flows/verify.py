"""The Prefect flow that reads an output and compares it with its ledger, such as every week. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from dataclasses import asdict
from uuid import UUID

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime

from flows.claims import flow_claim
from flows.live_artifacts import Content, Live, LiveArtifacts, Shown
from unet_core.errors import LedgerError
from unet_core.verify import verify
from unet_core.wording import counted

_LISTED = 1000  # faults of the table
_EVERY_SECONDS = 2.0  # between updates of an artifact


@flow(
    name="verify-output",
    description="Read all that a run stored and compare it with its ledger, by sha256; fails unless the output is intact.",
    flow_run_name="{output}",
)
def verify_output(output: str, repair: bool = False) -> dict:
    """Verify one output.

    Args:
        output: Result of a segmentation, a path or s3:// URL.
        repair: Take back what is damaged, so that the next segmentation into this output computes it again, and nothing else.
    """
    progress, table = Shown(Content(0.0, f"reading {output}")), Shown()

    def show(done: int, total: int) -> None:
        progress.content = Content(100 * done / total, f"{done} of {total} units read")

    lives = [
        Live("verification-progress", "progress", _EVERY_SECONDS, progress),
        Live("verification-faults", "table", _EVERY_SECONDS, table),
    ]
    logger = get_run_logger()
    with LiveArtifacts(UUID(str(runtime.flow_run.id)), lives, logger):
        found = verify(output, repair, show, flow_claim(runtime.flow_run.id, logger.info))
        if found.faults:
            rows = [{"fault": text} for text in found.faults[:_LISTED]]
            table.content = Content(rows, f"{counted(len(found.faults), 'fault')} of {output}")
    done, wanted = found.units
    logger.info("%s: %s of %s units, %s objects read", found.state, done, wanted, found.objects)
    if found.state != "intact":
        what = found.faults[0] if found.faults else f"{done} of {wanted} units are done, and it is not marked complete"
        taken = f"; {counted(len(found.again), 'unit')} taken back" if repair and found.faults else ""
        raise LedgerError(f"{output} is {found.state}: {what}{taken}. Run the same segmentation again.")
    return asdict(found)
