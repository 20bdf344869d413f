"""The pages of a run in Chromium: how large they are, how long until they are drawn, and what a
key, a choice or an order takes among all completions. As the run is, and made up to many rounds of
many completions, of its own texts.

Pages come from this machine, without the policy that would refuse the script that takes the times;
that is the only change. A document is dumped when it is loaded, so an image in it is answered when
the script is through.
"""

import json
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.report.pages.folder import write_pages
from steerloop.report.run import events
from steerloop.runfolder import layout
from steerloop.runfolder.events import event_line
from steerloop.runfolder.files import read_table, write_table

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
         "--enable-precise-memory-info", "--disable-background-networking",
         "--window-size=1400,1600")
JOINED = 3  # texts of the embedded model that make one as long as those of a larger one
WAIT = 120.0  # seconds for a page
SCRIPT = (Path(__file__).parent / "pages.js").read_text(encoding="utf-8")


def run(source: Path, rounds: int, rows: int, loads: int) -> dict[str, Any]:
    """Figures of a finished run, and of the same made up to so many rounds of so many completions:
    bytes, and medians over `loads` of milliseconds from the start of a navigation."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise UserError("no Chromium on the PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        shutil.copytree(source, runs / "run")
        grown(source, runs / "large", rounds, rows)
        return {"run": figures(runs / "run", program, loads),
                f"{rounds} rounds of {rows}": figures(runs / "large", program, loads)}


def grown(source: Path, target: Path, rounds: int, rows: int) -> None:
    """A copy of a run with more rounds, each with the tables of one that there was, and `rows`
    completions."""
    shutil.copytree(source, target)
    known, there = events(source), sorted(layout.of_all_rounds(source, layout.COMPLETIONS))
    rng, pool = random.Random(0), pl.concat(
        [read_table(layout.completions(source, r)) for r in there], how="diagonal_relaxed")
    texts = pool["text"].to_list()
    for round in range(rounds):
        old, new = (x / layout.of_round(n, "") for x, n in (
            (source, there[round % len(there)]), (target, round)))
        shutil.copytree(old, new, dirs_exist_ok=True)
        table = pool.sample(rows, with_replacement=True, seed=round).with_columns(
            row=pl.int_range(rows, dtype=pl.UInt32),
            text=pl.Series([" ".join(rng.sample(texts, JOINED)) for _ in range(rows)]))
        write_table(layout.completions(target, round), table)
    once = [e for e in known if "round" not in e or e.get("state") == layout.BASE]
    of_rounds = [e | {"round": round} for round in range(rounds) for e in known
                 if e not in once and e["round"] == there[round % len(there)]]
    lines = "".join(event_line(x) for x in [*once, *of_rounds])
    (target / layout.EVENTS).write_text(lines, encoding="utf-8")


def figures(run: Path, program: str, loads: int) -> dict[str, Any]:
    """Of each page its size and times; `written_s` is for all of them."""
    start = time.perf_counter()
    write_pages(run, "ended")
    found: dict[str, Any] = {"written_s": time.perf_counter() - start}
    for name in layout.PAGES:
        times = [timed(run / name, program) for _ in range(loads)]
        found[name] = {"bytes": (run / name).stat().st_size} | {
            k: statistics.median([x for one in times for x in one[k]]) for k in times[0]}
    return found


def timed(path: Path, program: str) -> dict[str, list[float]]:
    """What the script says of one load of a page."""
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "",
                  path.read_text(encoding="utf-8"), count=1)
    page = page.replace("</body>", f"<script>{SCRIPT}</script></body>")
    with (serving(page.encode(), path.parent.parent) as address,
          tempfile.TemporaryDirectory() as profile):
        done = subprocess.run(
            [program, *FLAGS, f"--user-data-dir={profile}", f"{address}/run/{path.name}"],
            capture_output=True, text=True, timeout=WAIT)
    if not (said := re.search(r'data-said="([^"]*)"', done.stdout)):
        raise UserError(f"{path.name} was not drawn: {done.stderr[-300:]}")
    return json.loads(unescape(said[1]))


@contextmanager
def serving(page: bytes, runs: Path) -> Iterator[str]:
    """A server of one page, of the chart script beside the runs, and of an image that waits until
    /done was asked for; yields its address."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b""
            if self.path == "/done":
                done.set()
            elif self.path == "/last.png":
                done.wait(WAIT)
            elif self.path.endswith(".html"):
                body = page
            elif self.path.endswith(".js"):
                body = (runs / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
