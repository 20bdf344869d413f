"""docs/results.md: tables at the places that the page keeps for them, between words of people.

What stands between two such lines is written anew:

    <!-- table: frontier embedded test dirty -->             sweep, model, split, regime: its tables
    <!-- end -->
    <!-- table: frontier embedded test dirty coherence -->   the tables of some measures alone
    <!-- end -->

Tables that have no place are written at the end, under "Not placed yet"; once there is a place for
them above, they move there.
"""

import re
from collections.abc import Collection
from pathlib import Path

from steerloop import UserError
from steerloop.runfolder.files import write_whole
from steerloop.sweep.arms import SWEEPS
from steerloop.sweep.paired import NONE
from steerloop.sweep.tables import Block, blocks
from steerloop.texts.reader import read_text

OPEN, END = re.compile(r"^<!-- table: (.+) -->$", re.MULTILINE), "\n<!-- end -->"
MARKER = "<!-- written by python -m steerloop.sweep: do not edit below -->"
HEADING = "## Not placed yet"


def marked(name: str, text: str) -> str:
    """A place and what is in it."""
    return f"<!-- table: {name} -->\n\n{text}\n{END}"


def asked(place: str, by_name: dict[str, Block]) -> tuple[str, Collection[str]]:
    """What a place is for: the name of a block and its measures, all of them if none is by_name."""
    sweep, *words = place.split()
    if sweep not in SWEEPS or len(words) < 3:
        raise UserError(f"'<!-- table: {place} -->' is no place: name a sweep "
                        f"({', '.join(SWEEPS)}), a model, a split and a regime, then measures")
    name, measures = " ".join([sweep, *words[:3]]), words[3:]
    there = by_name[name].tables if name in by_name else {}
    if there and (wrong := [x for x in measures if x not in there]):
        raise UserError(f"'<!-- table: {place} -->': no table of {', '.join(wrong)}; "
                        f"there are {', '.join(there)}")
    return name, measures or there


def fill(page: str, by_name: dict[str, Block]) -> tuple[str, dict[str, list[str]]]:
    """The page with each place filled; and what has no place, name → measures."""
    words, *parts = OPEN.split(page)
    left = {name: list(block.tables) for name, block in by_name.items()}
    texts = [words]
    for place, rest in zip(parts[::2], parts[1::2], strict=True):
        _, end, words = rest.partition(END)
        if not end:
            raise UserError(f"'<!-- table: {place} -->' has no '<!-- end -->' on a line of its own")
        name, measures = asked(place, by_name)
        text = by_name[name].text(measures) if name in by_name else NONE
        left[name] = [x for x in left.get(name, []) if x not in measures]
        texts += [marked(place, text), words]
    if any(END in f"\n{x}" for x in texts[::2]):
        raise UserError("the page has an '<!-- end -->' without its '<!-- table: … -->'")
    return "".join(texts), {name: measures for name, measures in left.items() if measures}


def write_results(folder: Path, path: Path) -> dict[str, list[str]]:
    """Fill the places of the page from the points so far; what has none goes to its end, and is
    returned. Raises UserError for places that cannot be read; the page stays as it was."""
    page = read_text(path).replace("\r\n", "\n") if path.is_file() else "# Results\n"
    head = page.partition(MARKER)[0]
    by_name = blocks(folder)
    text, left = fill(head, by_name)
    parts = [text.rstrip()]
    if left:
        parts += [MARKER, HEADING]
    for name, measures in left.items():
        whole = measures == list(by_name[name].tables)
        place = name if whole else " ".join([name, *measures])
        parts.append(marked(place, by_name[name].text(measures)))
    page = "\n\n".join(parts) + "\n"
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))
    return left
