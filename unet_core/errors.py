"""The errors this package raises; a message says what, with both values, why it matters and what to do.

UnetCoreError
├── InputError          what the user typed or pointed at cannot be used (exit code 2)
│   ├── JobError            an option of the job
│   ├── GridError           boxes, blocks and sizes that do not fit the network or the storage
│   ├── VolumeError         an image that cannot be opened or is not what the model needs
│   │   └── ChunkError          one stored chunk is missing, damaged or unreadable
│   ├── ModelPackageError   a model package that is damaged or does not fit
│   ├── FootprintError      a network whose result would depend on how the image is cut
│   ├── MemoryBudgetError   the plan needs more memory than there is
│   └── ResumeError         the output belongs to another plan, or to nobody we know
│       └── LeaseHeldError      another run holds the output now
├── LeaseLostError      another run has taken over the output from this one
├── LedgerError         what is stored is not what the ledger says
├── GroupError          the ranks of a training cannot reach each other
└── BlockError          one block failed while it was computed (exit code 1)
"""


class UnetCoreError(Exception):
    """Root of every error raised on purpose."""


class InputError(UnetCoreError):
    """What the user gave cannot be used; raised before any work, nothing has been written."""


class JobError(InputError):
    """An option of the job has no meaning here."""


class GridError(InputError):
    """A box, block or size does not fit the network or the storage."""


class VolumeError(InputError):
    """An image cannot be opened, or is not what was asked for."""


class ChunkError(VolumeError):
    """A stored chunk is missing, damaged or unreadable; the message names array and key."""


class ModelPackageError(InputError):
    """A model package is damaged or does not fit."""


class FootprintError(InputError):
    """No exact footprint can be derived for a network; the message names the layer."""


class MemoryBudgetError(InputError):
    """A plan needs more memory than the worker has."""


class ResumeError(InputError):
    """An output exists that this job must not continue; the message names the field that differs."""


class LeaseHeldError(ResumeError):
    """Another run that is alive holds the output; the message names it."""


class LeaseLostError(UnetCoreError):
    """Another run has taken over the output from this one; the message names it."""


class LedgerError(UnetCoreError):
    """Stored objects and ledger records disagree."""


class GroupError(UnetCoreError):
    """Ranks of a training did not meet, or one ended or hangs; the message names the rank that noticed it, and when."""


class BlockError(UnetCoreError):
    """A block failed while it was computed; the message names the block and its box.

    Attributes:
        unit: stage and index, where they are known.
    """

    unit: tuple[str, int] | None = None
