"""The Prefect flow that reads an output and compares it with its ledger, such as every week. The work is in unet_core."""

# No `from __future__ import annotations` here: Prefect resolves the parameters of served flows at run time.

from dataclasses import asdict

from flows import settings

settings.apply_defaults()  # Prefect reads the environment when it is imported

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from flows.claims import flow_claim
from unet_core.errors import LedgerError
from unet_core.verify import verify
from unet_core.wording import counted

_LISTED = 1000  # faults of the table


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
    artifact = create_progress_artifact(0.0, key="verification-progress", description=f"reading {output}")

    def show(done: int, total: int) -> None:
        update_progress_artifact(artifact, 100 * done / total, description=f"{done} of {total} units read")

    found = verify(output, repair, show, flow_claim(runtime.flow_run.id, get_run_logger().info))
    if found.faults:
        rows = [{"fault": text} for text in found.faults[:_LISTED]]
        create_table_artifact(rows, key="verification-faults", description=f"{counted(len(found.faults), 'fault')} of {output}")
    done, wanted = found.units
    get_run_logger().info("%s: %s of %s units, %s objects read", found.state, done, wanted, found.objects)
    if found.state != "intact":
        what = found.faults[0] if found.faults else f"{done} of {wanted} units are done, and it is not marked complete"
        taken = f"; {counted(len(found.again), 'unit')} taken back" if repair and found.faults else ""
        raise LedgerError(f"{output} is {found.state}: {what}{taken}. Run the same segmentation again.")
    return asdict(found)
