"""Count the core's lines of code: `python -m steerloop.checks.lines [FILE or FOLDER ...]`.

A line counts when it holds at least one token of code; blank lines, comments and docstrings do not.
Without arguments it counts the core, the modules directly under steerloop/, and fails above LIMIT.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

CORE = Path(__file__).parents[1]
LIMIT = 660
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(source: str) -> set[int]:
    """Numbers of the lines that docstrings fill."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def code_lines(source: str) -> int:
    """Lines of code in a Python source."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - docstring_lines(source))


def count(paths: list[Path]) -> dict[Path, int]:
    """Lines of code of each file, folders searched recursively."""
    files = [f for p in paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    return {file: code_lines(file.read_text()) for file in files}


def core() -> dict[Path, int]:
    """Lines of code of each module of the core."""
    return count(sorted(CORE.glob("*.py")))


def main(argv: list[str]) -> None:
    """Print a table. Exits with one line when the core is over its budget."""
    found = count([Path(x) for x in argv]) if argv else core()
    for file, lines in found.items():
        print(f"{lines:6d}  {file.relative_to(CORE.parent) if not argv else file}")
    total = sum(found.values())
    print(f"{total:6d}  total")
    if not argv and total > LIMIT:
        sys.exit(f"error: the core has {total} lines of code, {LIMIT} are allowed")


if __name__ == "__main__":
    main(sys.argv[1:])
