"""One measurement in a process of its own: ``python -m tests.benchmarks.child FOLDER CONTENDER``; prints one line of JSON."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.cases import Work
from tests.benchmarks.meter import Meter
from tests.benchmarks.table import CONTENDERS, REFERENCE


def main(folder: Path, name: str) -> None:
    contender = CONTENDERS[name]
    module, _, attribute = contender.run.partition(":")
    work, meter = Work(folder), Meter()
    shutil.rmtree(work.output, ignore_errors=True)
    getattr(import_module(f"tests.benchmarks.{module}"), attribute)(work, meter, **contender.arguments(work.case))
    found = meter.result()
    if not contender.is_probe:
        found["useful_operations"] = work.useful_operations()
        found["labels_equal"] = work.compare_labels(is_reference=name == REFERENCE)
        shutil.rmtree(work.output)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
