"""events.jsonl: one record a line, append-only, each with a checksum."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from steerloop import UserError
from steerloop.runfolder.layout import EVENTS


def crc(text: str) -> str:
    """CRC-32 of a text, as eight hex digits."""
    return f"{crc32(text.encode()):08x}"


def event_line(record: dict[str, Any]) -> str:
    """A record → its line in events.jsonl, with a checksum at its end.

    Raises ValueError on a number that is not finite.
    """
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc": "{crc(text)}"}}\n'


def read_events(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order. A last line that was cut off is not one yet.

    Raises UserError naming a line that is not what was written. (Older runs have no checksums: a
    file has them on every line, or on none.)
    """
    text = (run / EVENTS).read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")[:-1]
    bare = not any('"crc"' in x for x in lines)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            said = record.pop("crc", None)
            good = said == event_line(record)[-11:-3] or (bare and said is None)
        except (ValueError, AttributeError, TypeError, RecursionError):
            good = False
        if not good or "stage" not in record:
            raise UserError(f"{run / EVENTS}, line {number} is damaged: delete the file, "
                            f"`python -m steerloop.train --resume {run}` writes it anew")
        records.append(record)
    return records
