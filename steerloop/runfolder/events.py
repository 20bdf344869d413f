"""events.jsonl: one record a line, append-only, each with a checksum."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from steerloop import UserError
from steerloop.runfolder.layout import EVENTS


def event_line(record: dict[str, Any]) -> str:
    """A record → its line in events.jsonl, with a checksum at its end.

    Raises ValueError on a number that is not finite.
    """
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc": "{crc32(text.encode()):08x}"}}\n'


def read_events(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order. A last line that was cut off is not one yet.

    Raises UserError naming a line that is not what was written.
    """
    records, text = [], (run / EVENTS).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            good = record.pop("crc", None) in (None, event_line(record)[-11:-3])
        except (ValueError, AttributeError):
            good = False
        if not good:
            raise UserError(f"{run / EVENTS}, line {number} is damaged: delete the file, "
                            f"`python -m steerloop.train --resume {run}` writes it anew")
        records.append(record)
    return records
