"""Imports point one way, the core stays within its budget of lines, and every public name of the
core says what it does."""

import ast
from pathlib import Path

import pytest

import steerloop
from steerloop.checks import lines

PACKAGE = Path(steerloop.__file__).parent
CHAIN = [
    {"config"},
    {"record", "lora", "barrier"},
    {"model"},
    {"steer"},
    {"sample"},
    {"filter", "heal"},
    {"dose", "evaluate"},
    {"train"},
]
CORE = {name: rank for rank, names in enumerate(CHAIN) for name in names}
SUBPACKAGES = {x.name for x in PACKAGE.iterdir() if x.is_dir() and any(x.glob("*.py"))}
MODULES = sorted(PACKAGE.glob("*.py"))
KERNELS = sorted((PACKAGE / "kernels").glob("*.py"))


def imports(tree):
    """Dotted names of what a module takes from this package, e.g. 'lora', 'kernels.text'."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {x.name for x in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = {f"steerloop.{x.name}" for x in node.names}
            found |= modules if node.module == "steerloop" else {node.module}
    return {x.removeprefix("steerloop.") for x in found if x.split(".")[0] == "steerloop"}


def trees(paths):
    """Module name → its syntax tree."""
    return {path.stem: ast.parse(path.read_text()) for path in paths}


def check_every_core_module_has_its_place():
    assert {x.stem for x in MODULES} - {"__init__"} == set(CORE)


@pytest.mark.parametrize("name", sorted(CORE))
def check_core_imports_point_down_the_chain(name):
    allowed = {"UserError", "kernels"} | ({"report"} if name == "train" else set())
    for found in imports(trees(MODULES)[name]):
        first = found.split(".")[0]
        if first in CORE:
            assert CORE[first] < CORE[name], f"{name} imports {found}"
        else:
            assert first in allowed, f"{name} imports {found}"


def check_kernels_import_nothing_of_the_core():
    for name, tree in trees(KERNELS).items():
        for found in imports(tree):
            assert found == "UserError" or found.startswith("kernels."), f"{name} imports {found}"


def check_report_needs_neither_torch_nor_the_core():
    for path in sorted((PACKAGE / "report").glob("*.py")):
        tree = ast.parse(path.read_text())
        outside = {x.name for n in ast.walk(tree) if isinstance(n, ast.Import) for x in n.names}
        assert not outside & {"torch", "transformers"}, path
        assert not {x.split(".")[0] for x in imports(tree)} & set(CORE), path


LATE = {("weights", "steerloop.kernels.nf4")}  # what dense runs must not import


def check_no_import_hides_in_a_function():
    for path in MODULES + KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                hidden = [x for x in ast.walk(node) if isinstance(x, ast.Import | ast.ImportFrom)
                          and (path.stem, getattr(x, "module", None)) not in LATE]
                assert not hidden, f"{path.name}: {node.name}"


def check_only_weights_imports_model_classes():
    for path in MODULES + KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "transformers":
                names = {x.name for x in node.names}
                assert path.stem == "weights" or not any(
                    x.startswith("AutoModel") or "CAUSAL" in x or x.endswith("ForCausalLM")
                    for x in names), path


def check_the_core_is_within_its_budget():
    counts = lines.core()
    assert len(counts) == len(CORE) + 1
    assert sum(counts.values()) <= lines.LIMIT, counts


def check_the_counter_counts_code():
    source = '"""Doc\nstring."""\n\n# remark\nx = [\n    1,\n\n    2,  # two\n]\n\n' \
             'def f():\n    """Doc."""\n    return """a\nb"""\n'
    assert lines.code_lines(source) == 4 + 1 + 2
    assert lines.code_lines("") == lines.code_lines('"""Only a docstring."""\n') == 0


def check_everything_public_is_documented():
    for path in MODULES + KERNELS:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
