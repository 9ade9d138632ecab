"""The command ``unet verify``. Imports nothing heavy."""

from __future__ import annotations

from flows.options import Flag
from flows.printing import print_json, visible

_SHOWN = 10
EXIT_CODES = {"intact": 0, "damaged": 1, "unfinished": 3}


def verify(output: str, *, repair: Flag = False, json: Flag = False, debug: Flag = False) -> int:
    """Read everything that a run has stored and compare it with the ledger, by sha256; ends with 0 if intact, 1 damaged, 3 unfinished.

    Args:
        output: Result of `unet segment`, finished or not.
        repair: Take back what is damaged, so that the same `unet segment` computes it again, and nothing else.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from dataclasses import asdict

    from flows.claims import terminal_claim
    from flows.progress import terminal_count
    from unet_core.verify import verify as look

    found = look(output, repair, terminal_count("reading", "units"), terminal_claim())
    done, wanted = found.units
    print(f"{found.state}: {output}")
    print(f"  {done} of {wanted} units, {found.objects:,} objects, {found.size_bytes / 2**20:,.1f} MiB read")
    for text in found.faults[:_SHOWN]:
        print(f"  fault: {visible(text)}")
    if len(found.faults) > _SHOWN:
        print(f"  and {len(found.faults) - _SHOWN:,} more")
    if repair and found.faults:
        units = f"{', '.join(found.again[:_SHOWN])}{' ..' if len(found.again) > _SHOWN else ''}"
        print(f"  repaired as far as bytes tell; the same unet segment computes {units or 'what is not there'} again")
    elif found.faults:
        print("  --repair takes back what is damaged; then the same unet segment computes it again, and nothing else")
    elif found.state == "unfinished":
        print("  what is there is sound; the same unet segment goes on")
    if json:
        print_json(asdict(found))
    return EXIT_CODES[found.state]
