"""A page as a person would see it: loaded and run in headless Chromium, no network allowed."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--enable-logging=stderr", "--disable-dev-shm-usage", "--disable-background-networking")
FILE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=6000")
SERVED = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",)  # that server alone
VOID = {"meta", "br", "link", "img", "input", "hr"}


def browser() -> str:
    """Where Chromium is. Skips the check elsewhere; CI on Debian installs it, and fails instead."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None and os.environ.get("CI") and shutil.which("apt-get"):
        pytest.fail("CI has no Chromium: .ci/run should have installed Debian's package")
    return found or pytest.skip("no Chromium on the PATH: apt-get install chromium")


class Document(HTMLParser):
    """The elements of a page after its scripts ran: (tag, attributes, text in it), in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = tag, {k: v or "" for k, v in attrs}, []
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def find(self, tag: str = "", kind: str = "") -> list[str]:
        """Texts of the elements of a tag that have all of these classes."""
        return ["".join(text) for name, attrs, text in self.elements
                if tag in ("", name) and set(kind.split()) <= set(attrs.get("class", "").split())]


def visit(path: Path | str, fragment: str = "", options: Sequence[str] = ()
          ) -> tuple[Document, list[str]]:
    """(document, console lines) of a page once its scripts have run; of one that is served, a URL,
    once it is loaded."""
    url, where = (path, SERVED) if isinstance(path, str) else (f"file://{path}", FILE)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [browser(), *FLAGS, *where, f"--user-data-dir={profile}", "--window-size=1280,1600",
             *options, "--dump-dom", url + fragment],
            capture_output=True, text=True, timeout=120)
    said = [x for x in done.stderr.splitlines() if re.search(r":CONSOLE[:(]", x)]
    return Document(done.stdout), said
