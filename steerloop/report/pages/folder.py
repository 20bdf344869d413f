"""All pages of a run, made from its folder alone and rewritten after every round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerloop.report.diary import write_diary
from steerloop.report.pages.browser import write_browser
from steerloop.report.pages.frame import REFRESHES, shared_script
from steerloop.report.pages.judgement import write_judgement
from steerloop.report.pages.overview import write_overview
from steerloop.report.pages.prompts import write_prompts
from steerloop.report.pages.site import GOING, Status, halted
from steerloop.report.pages.training import write_training
from steerloop.report.run import states
from steerloop.runfolder import layout
from steerloop.runfolder.files import write_whole


def halt_pages(run: Path) -> None:
    """Let the pages as they are say that their run goes on no more, and look for no newer ones. No
    table is read for it: this is done where a process has to end."""
    for path in (run / x for x in layout.PAGES):
        if path.is_file() and GOING in (text := path.read_text(encoding="utf-8")):
            still = halted(text.replace(REFRESHES, "", 1), run)
            write_whole(path, lambda part, still=still: part.write_text(still, encoding="utf-8"))


def write_pages(
    run: Path, status: Status, single: bool = False,
    measured: list[dict[str, Any]] | None = None, beside: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the pages and diary.md of a run with at least one measured state; `measured` are its
    `states`, if known, and those `beside` them were measured elsewhere.

    Those of a run that is running look for newer ones. `single`: plotly's script goes into each
    page with its charts, which can then be sent alone; else they load the one beside the runs.
    """
    measured = measured or states(run)
    shared = None if single else shared_script(run.parent)
    write_diary(run, measured)
    write_prompts(run, measured, status)
    write_judgement(run, status)
    write_browser(run, status)
    write_overview(run, [*measured, *beside], shared and f"../{shared}", status)
    write_training(run, status)
