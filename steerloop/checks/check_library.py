"""The README's library example runs as it is printed, and every public function says what it
takes, gives and raises."""

import ast
import re
from pathlib import Path

import pytest
import torch

from steerloop import train
from steerloop.checks.conftest import ROOT

PACKAGES = ("", "export", "chat", "score")
MODULES = [x for p in PACKAGES for x in sorted((ROOT / "steerloop" / p).glob("*.py"))]


def check_the_readme_example_runs_verbatim():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([x for x in code.splitlines() if x.strip()]) <= 22
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["c_star"] > 0 and names["rows"]["train"].sum() == names["cfg"].n_keep
    assert set(names["seen"]) == {x.__name__ for x in train.STAGES}
    assert names["model"].gates.live == 1
    assert all(torch.isfinite(x).all() and x.any() for x in names["delta"].values())


def raises(function: ast.FunctionDef) -> bool:
    """Whether it raises what a caller can meet; a name with _ stays inside of its module."""
    found = [ast.unparse(x.exc) for x in ast.walk(function) if isinstance(x, ast.Raise) and x.exc]
    return any(not x.startswith("_") for x in found)


UNIT = re.compile(r"nats|tokens?\b|share|unit|perplexit|multiple|probabilit|logit|cosine|scale|"
                  r"ratio|gate|temperature|dose|rows|norm")
SHAPE = re.compile(r"\(\w+(,? [\w·+]+)*\)|per row")


def public(tree: ast.Module) -> list[ast.FunctionDef]:
    """Public functions, and public methods of public classes."""
    found = [x for x in tree.body if not getattr(x, "name", "_").startswith("_")]
    inside = [y for x in found if isinstance(x, ast.ClassDef) for y in x.body]
    return [x for x in found + inside if isinstance(x, ast.FunctionDef)
            and not x.name.startswith("_")]


def lacks(node: ast.FunctionDef) -> list[str]:
    """What a caller has to guess: shapes of bare tensors, units of numbers."""
    said = ast.get_docstring(node) or ""
    kinds = [x.annotation for x in node.args.args + node.args.kwonlyargs] + [node.returns]
    kinds = [ast.unparse(x) for x in kinds if x is not None]
    tensors = [x for x in kinds if "Tensor" in x and not re.search(r"(Float|Int|Bool)\[", x)]
    numbers = [x for x in kinds if re.search(r"\bfloat\b", x)]
    return (["shape"] * bool(tensors and not SHAPE.search(said))
            + ["unit"] * bool(numbers and not UNIT.search(said)))


def check_what_is_guessed_is_found():
    for text, wanted in (
        ('def f(x: Tensor) -> None:\n    "Does it."', ["shape"]),
        ('def f(x: Tensor) -> None:\n    "Of x (n, d)."', []),
        ("def f(x: Float[Tensor, 'n']) -> None:\n    'Does it.'", []),
        ('def f(x: list[float]) -> float:\n    "Does it."', ["unit"]),
        ('def f(x: list[float]) -> float:\n    "KL, nats."', []),
    ):
        assert lacks(ast.parse(text).body[0]) == wanted, text


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
    guessed = {x.name: lacks(x) for x in public(tree) if lacks(x)}
    assert not guessed, f"{path.name}: say shapes and units of {guessed}"


def check_every_kind_of_fault_has_its_check_or_is_open():
    """docs/faults.md: all 42 kinds, and every check that it names is there."""
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    rows = [x.split("|")[1:-1] for x in text.split("\n") if re.match(r"\| \d", x)]
    assert [int(x[0]) for x in rows] == list(range(1, 43))
    files = {x.stem: x.read_text(encoding="utf-8") for x in Path(__file__).parent.glob("*.py")}
    for number, _, checked, now in rows:
        if not checked.strip():
            assert now.strip().startswith("open"), number
            continue
        for file, names in re.findall(r"`(check_\w+)`(?:, of it|:)? ?([^`;]*)", checked):
            for name in re.findall(r"\w{6,}", names.replace("(long)", "")):
                assert f"def check_{name}(" in files[file], f"kind {number}: {file}, {name}"
