"""Words that differ between the answers of base, steered and healed, as completions.html marks them
in a real browser."""

import re

import polars as pl
import pytest

from steerloop.checks.browsed import NASTY, SEEN, browsed, driven


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return browsed(tmp_path_factory.mktemp("words") / "runs/one")


TOKEN = re.compile(r"\w+|\S")


def common(a, b):
    """Length of the longest common subsequence of words."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row[:]
        for j, y in enumerate(b):
            row[j + 1] = last[j] + 1 if x == y else max(last[j + 1], row[j])
    return row[-1]


def check_words_that_differ_are_marked(run):
    """What is not added is the old text, what is not left out the new one, and what is neither is
    as long as it can be; of each prompt, round and kind of marks."""
    said, _ = driven(run, """
    const box = document.getElementById("same"), said = [];
    const pick = (name, value) => {
      box.querySelector(`[name=${name}]`).value = value;
      box.dispatchEvent(new Event("input"));
    };
    const keys = [...box.querySelectorAll("[name=prompt] option")].map((x) => x.value);
    for (const key of keys) for (const at of ["1", "2"]) for (const marks of ["", "base", "none"]) {
      pick("prompt", key), pick("at", at), pick("marks", marks);
      const pieces = all(".three .said").map((x) => [...x.childNodes].map(
        (y) => [y.nodeName, y.textContent]));
      said.push({ key, at, marks, pieces, asked: document.getElementById("asked").textContent,
        kind: all("#kinds span").filter((x) => !x.hidden).map((x) => x.dataset.kind) });
    }
    const many = (n, by) => Array.from({ length: n }, (_, i) => "w" + (i * by) % 701).join(" ");
    const long = differences(many(2000, 7), many(2000, 13));
    const kept = (kind) => long.filter((x) => x[0] !== kind).length;
    say({ said, long: [kept("ins"), kept("del")], huge: differences(many(5000, 7), many(5000, 13)),
      alike: differences("a  b", "a b"), none: differences("", "x y") });""")
    assert said["long"] == [2000, 2000] and said["huge"] is None
    assert {x[0] for x in said["alike"]} == {"same"} and {x[0] for x in said["none"]} == {"ins"}
    known = told(run)
    assert len(said["said"]) == (2 + 3) * 2 * 3 and len(known) == 5
    for one in said["said"]:
        prompt, kind, texts = known[one["key"]]
        assert one["asked"] == prompt and one["kind"] == [kind]
        was = [texts[1, "base"], texts[int(one["at"]), "steered"], texts[int(one["at"]), "healed"]]
        against = {"": (None, 0, 1), "base": (None, None, 0), "none": (None,) * 3}[one["marks"]]
        for new, old, pieces in zip(was, against, one["pieces"], strict=True):
            cut = [x for x in pieces if x == ["SPAN", " […]"]]
            assert bool(cut) is (one["key"] == "diary-1")
            pieces = [x for x in pieces if x not in cut]
            sides = [TOKEN.findall("".join(text for tag, text in pieces if tag != without))
                     for without in ("INS", "DEL")]
            before, after = TOKEN.findall(was[old] if old is not None else new), TOKEN.findall(new)
            assert sides == [before, after]
            same = [x for tag, text in pieces if tag == "#text" for x in TOKEN.findall(text)]
            assert len(same) == common(before, after)


def told(run):
    """Key → prompt, kind, (round, state) → text, as a page shows it."""
    known = {}
    for kind, name in (("diary", "diary"), ("held", None)):
        for round in (0, 1):
            for state in ("base", "steered", "healed"):
                path = run / f"rounds/{round:02d}/{name or f'{state}.said'}.parquet"
                rows = pl.read_parquet(path) if path.exists() else pl.DataFrame()
                rows = rows.filter(state=state) if name else rows
                for i, x in enumerate(rows.iter_rows(named=True)):
                    said = x["text"].replace(NASTY, SEEN)
                    one = known.setdefault(f"{kind}-{i + 1}", (
                        x["prompt"].replace(NASTY, SEEN), x.get("kind", "held"), {}))
                    one[2][round + 1, state] = said
    return known
