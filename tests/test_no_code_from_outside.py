"""Nothing that is read can run code: calls that could are looked for in the source, with the few that are meant to listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNS_CODE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load",
    "shelve.open", "marshal.loads", "eval", "exec", "compile", "yaml.unsafe_load", "yaml.full_load", "os.system", "torch.jit.load",
    "torch.hub.load", "tarfile.open", "zipfile.ZipFile.extractall",
}  # fmt: skip
# Asked for by name, after the user said that the code in the file may run (--trust-model).
MEANT = {("unet_core/foreign/opaque_network.py", "torch.jit.load")}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    """What of a source could run code that it reads: calls by name, and options that allow it."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, options = name_of(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        unsafe = (
            name in RUNS_CODE
            or name.endswith(".extractall")
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False")
            or (name == "yaml.load" and options.get("Loader", "_Loader") != "_Loader")
            or options.get("shell") == "True"
        )
        if unsafe:
            found.append(name)
    return found


def test_no_call_in_the_source_runs_what_it_reads() -> None:
    files = [*(ROOT / "unet_core").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    assert len(files) > 200
    found = {(str(path.relative_to(ROOT)), name) for path in files for name in dangers(path.read_text())}
    assert found == MEANT


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_what_would_run_code_is_seen(source: str) -> None:
    assert dangers(source)
