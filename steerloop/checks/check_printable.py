"""What models and strangers wrote is shown as text: no hidden character, no markup, no script."""

import re
import unicodedata
from html.parser import HTMLParser
from random import Random
from shutil import copytree

import polars as pl
import pytest

from steerloop.checks.browser import visit
from steerloop.checks.synthetic import judged, tilted, write_run
from steerloop.report import finish
from steerloop.report.pages.frame import page, shared_script
from steerloop.report.pages.markup import from_markdown
from steerloop.report.text import code, inline, markdown
from steerloop.texts.printable import printable

HIDDEN = [
    *"\x00\x07\x1b\x7f\x85\x9b\r\x0b\x0c\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c",
    *"\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2065\u2066\u2067\u2068\u2069\u206a\u206f\ufeff",
    *"\u00ad\u180e\u034f\u115f\u3164\uffa0\ufff9\U000e0001\U000e0041\U000e007f\U000e0fff\U0001d173",
    *"\ud800\udfff\u200d\u200c\ufe0f\U000e0101"]
REAL = [
    "Plain text, line\nby line\twith tabs.", "naïve café Ω ± ½ – “quoted” … €", "é",
    "日本語の文章です。한국어", "می‌خواهم کتاب‌ها را ببینم", "क्‍ष श्री न्‍याय", "അവന്‍ പറഞ്ഞു",
    "ශ්‍රී ලංකා", "১০ র‍্যাব", "ক্‌ষ", "עברית ועוד", "العربية ١٢٣ \u0601\u0661",
    "👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 ❤️‍🔥 👩🏽‍🚀 ☀️ 1️⃣", "🙂‍↔️", "葛\U000e0100飾区", "Zażółć gęślą jaźń",
    "ไทย ລາວ မြန်မာ ភាសាខ្មែរ"]
MARKUP = [
    "<script>", "<img src=x onerror=alert(1)>", "[a](javascript:x)", "![i](http://x)", "| x |", "|",
    "**b**", "__b__", "`c`", "\n# h\n", "\n---\n", "\n- l", "&lt;", "\\", "\\*", "</pre>", "$x$",
    "~~s~~", "@all", "http://x.y", "www.x.y", "<http://x>", "\n[r]: http://x\n", "[^1]", "*", "_",
    "a_b", "\n```\n", "\n\n    code\n", "](", " ", "\n", "x", "PASS"]


def texts(count, seed):
    """`count` texts of pieces that are hidden, real, markup, or any character there is."""
    rng = Random(seed)
    for _ in range(count):
        kinds = (HIDDEN, REAL, MARKUP, MARKUP, [chr(rng.randrange(0x110000))])
        yield "".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(7)))


@pytest.mark.parametrize("char", HIDDEN)
def check_what_cannot_be_seen_is_shown(char):
    for text in (char, f"a{char}b", f" {char}", f"\n{char}"):
        if char in "\ufe0f\U000e0101" and text.startswith("a"):
            continue  # after a letter one may stand
        assert printable(text) == text.replace(char, "\ufffd")
    assert printable(f"x{char}{char}y").count("\ufffd") >= 1  # never two of them


@pytest.mark.parametrize("text", REAL)
def check_real_text_stays(text):
    assert printable(text) == text


def check_any_text_is_printable_piece_by_piece():
    """One for one; nothing in it moves a cursor, turns the writing or breaks an encoding; shown as
    it comes it is the same."""
    for text, more in zip(texts(3000, 0), texts(3000, 1), strict=True):
        seen = printable(text)
        assert len(seen) == len(text) and printable(seen) == seen
        assert printable(text + more).startswith(seen)
        seen.encode()
        for x in seen:
            assert x in "\n\t" or unicodedata.category(x) not in ("Cc", "Cs", "Zl", "Zp")
            assert unicodedata.bidirectional(x) not in TURNS and x != "\ufeff"
        assert not re.search("[\u200c\u200d][\u200c\u200d]|[\ufe00-\ufe0f]{2}", seen)


TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class Tags(HTMLParser):
    """The elements and the text of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def unescaped(text):
    """As a Markdown renderer reads a line."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


LIVE = re.compile(  # what a renderer makes something of, unless a backslash is before it
    r"(?<!\\)(?:\\\\)*(?:[<`*&|~$@]|\]\(|\]\[|\]:|://|www\.)", re.IGNORECASE)


def check_any_text_is_one_harmless_line_of_markdown():
    for text in texts(2500, 2):
        line = inline(text)
        assert "\n" not in line and not LIVE.search(line), line
        assert unescaped(line) == printable(" ".join(text.split()))
        shown = Tags(from_markdown(f"# Verdicts on x {line}.\n\n- **a**: {line}."))
        assert shown.tags == ["h2", "ul", "li", "b"]
        assert shown.text.count(f" {unescaped(line)}.") >= 2


def check_any_text_is_a_cell_and_any_text_is_code():
    cells = ["div", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "tr", "td", "td"]
    for a, b in zip(texts(500, 3), texts(500, 4), strict=True):
        table = markdown([{f"k{a}": a, "other": b}, {f"k{a}": b, "other": "end"}])
        assert len(table.split("\n")) == 4 and Tags(from_markdown(table)).tags == cells
        for line in table.split("\n"):
            parts = re.split(r"(?<!\\)\|", line)
            assert len(parts) == 4 and not any(map(LIVE.search, parts))
    for text in texts(1000, 5):
        quoted = code(text)
        assert all(x.startswith("    ") for x in quoted.split("\n"))
        assert quoted.count("\n") == text.replace("\r\n", "\n").count("\n")
        assert Tags(from_markdown(quoted)).tags == ["pre"]


NOTE = ("<script>alert(1)</script>\n# heading\n| a | b |\n[x](javascript:alert(1)) \x1b[2J\u202e"
        "\u200b **bold** `code` <img src=x onerror=alert(1)>")


def check_notes_names_and_paths_are_text_in_every_page(tmp_path):
    """A labelled note, the name of the run's folder and of its model, and completions, hostile all
    of them: in verdicts.md, diary.md and both pages nothing of them is live, or hidden."""
    name = "run <b>x<b> `c` &lt; \u202e"
    audit = judged().with_columns(kind=pl.when(pl.col("source") == "labelled").then(
        pl.lit(NOTE)).otherwise(pl.col("kind")), text=pl.lit(NOTE), prompt=pl.lit(NOTE),
        keep=(pl.col("source") == "labelled") ^ pl.col("keep"))
    run = write_run(tmp_path / "runs" / name, [tilted({"authority": -0.9})], [tilted({})],
                    planted=audit, model=NOTE)
    finish(run)
    for file in ("verdicts.md", "diary.md"):
        text = (run / file).read_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028]", text)
        free = "\n".join(x for x in text.splitlines() if not x.startswith("    "))
        assert "<" not in free.replace("\\<", "") and not re.search(r"(?<!\\)\]\(", free)
        assert not re.search(r"^# heading", text, re.M) and "**bold" not in free
    assert "alert(1)" in (run / "verdicts.md").read_text()  # it is there, as text
    seen, console = visit(copytree(run, tmp_path / "runs/plain") / "report.html")
    assert console == [] and not seen.find("img")
    assert "alert" not in "".join(seen.find("script")[1:2]) and any(
        "alert(1)" in x for x in seen.find("td"))


def check_only_the_scripts_a_page_was_written_with_run(tmp_path):
    """A sibling script, an inline one and a handler, put into the page by somebody: none runs, and
    the page still draws. Its own policy has neither file: nor 'unsafe-inline' for scripts."""
    (tmp_path / "one").mkdir()
    path, mark = tmp_path / "one/x.html", 'document.body.dataset.sibling = "ran"'
    (tmp_path / "one/sibling.js").write_text(mark)
    (tmp_path / "near.js").write_text(mark)
    figure = {"figures": {"map": {"data": [{"type": "scatter", "x": [0, 1], "y": [0, 1],
                                            "mode": "markers"}], "layout": {}}}}
    script = f"../{shared_script(tmp_path)}"
    place = '<div class="plot" id="map"></div>'
    bad = ('<script src="sibling.js"></script><script src="../near.js"></script>'
           f'<script src="../near.js" nonce="x"></script><script>{mark}</script>'
           f'<img src="data:x" onerror=\'{mark}\'><a href="javascript:{mark}">x</a>'
           '<base href="http://x/"><object data="sibling.js"></object>')
    for address, kind in ((script, "nonce-"), (None, "sha256-")):
        text = page("t", place, figure, ["charts.js"], address)
        policy = re.search(r'script-src ([^;]*);', text)[1]
        assert "file:" not in policy and "unsafe" not in policy and "self" not in policy
        assert policy.count("'") == 6 and kind in policy and "*" not in policy
        path.write_text(text.replace(place, place + bad))
        seen, console = visit(path)
        assert not any("data-sibling" in a for _, a, _ in seen.elements)
        assert len(seen.find("path", "point")) == 2 and len(console) >= 5  # each is refused aloud
    texts = [page("t", place + x, figure, ["charts.js"], script) for x in ("", "a", "b", "")]
    nonces = [re.search("nonce-([^']*)", x)[1] for x in texts]
    assert len(set(nonces)) == 3 and nonces[0] == nonces[3]  # a page cannot know its own


def check_a_changed_chart_script_is_written_anew(tmp_path):
    name = shared_script(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_text('document.title = "pwned"')
    assert shared_script(tmp_path) == name and (tmp_path / name).read_bytes() == whole
