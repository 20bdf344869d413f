"""Count code: `python -m steerloop.checks.lines [FILE or FOLDER ...]`.

A line counts when it holds at least one token of code; blank lines, comments and docstrings do not.
Beside the lines stand their tokens: many tokens a line is code that is packed to meet a budget. An
f-string is one token, whatever the Python.

Without arguments it counts the core, the modules directly under steerloop/, and fails above LIMIT
lines or PACKED tokens a line. config.py, a table of one knob a line, is counted apart.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

CORE = Path(__file__).parents[1]
APART = "config.py"
LIMIT, PACKED = 660, 10.5
LONGEST = 250  # lines of any file outside of checks/ and tinyworld/
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
OPENS, CLOSES = (getattr(tokenize, f"FSTRING_{x}", None) for x in ("START", "END"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Count(NamedTuple):
    """Lines of code, and tokens on them."""

    lines: int
    tokens: int

    @property
    def packed(self) -> float:
        """Tokens a line."""
        return self.tokens / max(1, self.lines)


def docstring_lines(source: str) -> set[int]:
    """Numbers of the lines that docstrings fill."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count(source: str) -> Count:
    """Code of a Python source."""
    lines: set[int] = set()
    starts, inside = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in NO_CODE:
            continue
        lines.update(range(token.start[0], token.end[0] + 1))
        if inside == 0:
            starts.append(token.start[0])
        inside += (token.type == OPENS) - (token.type == CLOSES)
    lines -= docstring_lines(source)
    return Count(len(lines), sum(x in lines for x in starts))


def count_files(paths: list[Path]) -> dict[Path, Count]:
    """Code of each file, folders searched recursively."""
    files = [f for p in paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    return {file: count(file.read_text()) for file in files}


def total(counts: list[Count]) -> Count:
    """The sum."""
    return Count(sum(x.lines for x in counts), sum(x.tokens for x in counts))


def core() -> dict[Path, Count]:
    """Code of each module of the core, config.py left out."""
    return count_files([x for x in sorted(CORE.glob("*.py")) if x.name != APART])


def show(name: str, found: Count) -> None:
    """One line of the table."""
    print(f"{found.lines:6d} lines {found.packed:5.1f} tokens a line  {name}")


def main(argv: list[str]) -> None:
    """Print a table. Exits with one line when the core is over its budget."""
    counts = count_files([Path(x) for x in argv]) if argv else core()
    for file, found in counts.items():
        show(str(file if argv else file.relative_to(CORE.parent)), found)
    whole = total(list(counts.values()))
    show("total", whole)
    if argv:
        return
    show(f"{APART}, a table", count((CORE / APART).read_text()))
    if whole.lines > LIMIT or whole.packed > PACKED:
        sys.exit(f"error: the core has {whole.lines} lines of code at {whole.packed:.2f} tokens, "
                 f"{LIMIT} and {PACKED} are allowed: what does not fit is not method")


if __name__ == "__main__":
    main(sys.argv[1:])
