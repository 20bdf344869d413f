"""The README's library example runs as it is printed, and every public function says what it
takes, gives and raises."""

import ast
import re
from pathlib import Path

import pytest
import torch

from steerloop.checks.conftest import ROOT

PACKAGES = ("", "export", "chat", "score")
MODULES = [x for p in PACKAGES for x in sorted((ROOT / "steerloop" / p).glob("*.py"))]


def check_the_readme_example_runs_verbatim():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([x for x in code.splitlines() if x.strip()]) <= 22
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["c_star"] > 0 and names["rows"]["train"].sum() == names["cfg"].n_keep
    assert names["model"].gates.live == 1
    assert all(torch.isfinite(x).all() and x.any() for x in names["delta"].values())


def raises(function: ast.FunctionDef) -> bool:
    """Whether it raises what a caller can meet; a name with _ stays inside of its module."""
    found = [ast.unparse(x.exc) for x in ast.walk(function) if isinstance(x, ast.Raise) and x.exc]
    return any(not x.startswith("_") for x in found)


@pytest.mark.parametrize("path", MODULES, ids=lambda x: str(Path(x).relative_to(ROOT)))
def check_public_functions_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            said = ast.get_docstring(node)
            assert said, f"{path.name}: {node.name}"
            if isinstance(node, ast.FunctionDef) and raises(node):
                assert re.search(r"[Rr]aise", said), f"{path.name}: {node.name} raises, unsaid"
                annotated = [x for x in node.args.args if x.annotation is None]
                assert not annotated, f"{path.name}: {node.name}"
