"""Imports go down only; heavy ones wait; the environment is read in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = (
    "geometry",
    "store",
    "job",
    "plan",
    "ledger",
    "lease",
    "output",
    "normalisation",
    "pictures",
    "volumes",
    "metrics",
    "postprocess",
    "evaluation",
    "tables",
    "regions",
    "object_summary",
    "conversion",
    "exports",
)


def imports(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_core_knows_neither_prefect_nor_distributed_nor_the_flows() -> None:
    files = list((ROOT / "unet_core").rglob("*.py"))
    assert len(files) > 30
    for path in files:
        roots = {name.split(".")[0] for name in imports(path, top_level_only=False)}
        assert not roots & {"prefect", "distributed", "flows"}, path


def test_geometry_needs_the_standard_library_only() -> None:
    roots = {name.split(".")[0] for name in imports(ROOT / "unet_core/geometry.py", top_level_only=False)}
    assert roots - {"unet_core"} <= set(sys.stdlib_module_names) | {"__future__"}


def test_images_plans_and_ledger_do_without_torch() -> None:
    modules = ", ".join(f"unet_core.{name}" for name in WITHOUT_TORCH)
    code = f"import sys, {modules}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print([n for n in ('torch', 'prefect', 'distributed', 'zarr', 'dask', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_model_does_not_load_torchs_compiler(make_model: Callable[..., Path]) -> None:
    """It takes a second, in every worker process."""
    code = "import sys; from unet_core.model_package import load_model; load_model(sys.argv[1]); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(make_model())], check=True, cwd=ROOT)


def test_the_environment_is_read_in_one_place() -> None:
    for path in [*(ROOT / "unet_core").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        if path.name != "settings.py":
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path
