"""One rule for people's files: UTF-8 whatever the locale, two line ends, JSON lines typed line by
line; what breaks it is one line that names the file and the place. Some eight thousand generated
files are read beside slow twins."""

import codecs
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import polars as pl
import pytest

from steerloop import UserError
from steerloop.checks.small import Small, data_files, small_config
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.readouts import probes
from steerloop.readouts.mundane import mundane
from steerloop.report.text import interval
from steerloop.texts import data as texts
from steerloop.texts.data import FEWEST, labelled, lines, persona, read, read_data, vignettes
from steerloop.texts.foundations import FOUNDATIONS, H
from steerloop.texts.reader import decoded, numbered

ODD = ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\r", "\u00a0", "\u200b"]
LETTERS = ["a", "B", " ", "#", "{", '"', "\\", "é", "ß", "Δ", "中", "😀", "\t", *ODD]
BLANKS = {" ", "\t", *ODD}
WORDS = ["der Bürger", "l'été", "Δ care", "中文", "naïve 😀", "plain"]


def refusal(parse, *args):
    """The one line with which this is refused."""
    with pytest.raises((UserError, ValueError)) as refused:
        parse(*args)
    said = str(refused.value)
    assert said and "\n" not in said
    return said


# bytes


def check_any_bytes_are_their_text_or_refused_at_the_byte():
    rng, kept = Random(0), 0
    for _ in range(3000):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(9)))
        raw = bytearray(text.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig"])))
        for _ in range(rng.choice([0, 0, 1, 2])):
            raw.insert(rng.randrange(len(raw) + 1), rng.choice([0, 0x80, 0xC3, 0xE9, 0xFF, 0x41]))
        raw = bytes(raw)
        try:  # the mark is a character of the text here, so that bytes count as in the file
            wanted, at = raw.decode("utf-8").removeprefix("\ufeff"), None
        except UnicodeDecodeError as e:
            wanted, at = "", e.start
        if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            assert "mark of UTF-" in refusal(decoded, raw)
        elif 0 in raw:
            assert f"byte {raw.index(0)} is NUL" in refusal(decoded, raw)
        elif at is not None:
            assert f"byte {at} (0x{raw[at]:02x}) is not UTF-8" in refusal(decoded, raw)
        else:
            assert decoded(raw) == wanted
            kept += 1
    assert 1000 < kept < 2500


@pytest.mark.parametrize(("encoding", "says"), [
    ("utf-16", "mark of UTF-16"), ("utf-32", "mark of UTF-32"),
    ("utf-16-le", "byte 1 is NUL"), ("utf-16-be", "byte 0 is NUL"),
    ("utf-32-be", "byte 0 is NUL"), ("latin-1", "byte 5 (0xfc) is not UTF-8"),
    ("cp1252", "byte 5 (0xfc) is not UTF-8"), ("cp437", "byte 5 (0x81) is not UTF-8"),
])
@pytest.mark.parametrize("field", ["prompts", "contexts", "persona", "vignettes", "mundane",
                                   "labelled"])
def check_another_encoding_is_named_for_every_file(tmp_path, field, encoding, says):
    path = tmp_path / "file.txt"
    path.write_bytes("der Bürger\n".encode(encoding))
    files = data_files(tmp_path) | {field: str(path)}
    said = refusal(read_data, small_config(tmp_path, **files))
    assert str(path) in said and says in said and "UTF-8" in said


def check_big_marks_are_named():
    for mark, name in ((codecs.BOM_UTF16_BE, "UTF-16"), (codecs.BOM_UTF32_BE, "UTF-32"),
                       (codecs.BOM_UTF32_LE, "UTF-32")):
        assert f"mark of {name}:" in refusal(decoded, mark + b"text")


def check_a_byte_order_mark_is_no_text(tmp_path):
    """At the start of any file it is not there; at the start of a later line it is refused."""
    files = data_files(tmp_path)
    plain = read_data(small_config(tmp_path, **files))
    for path in files.values():
        Path(path).write_bytes(codecs.BOM_UTF8 + Path(path).read_bytes())
    marked = read_data(small_config(tmp_path, **files))
    assert (marked.pairs, marked.contexts, marked.prompts) == (
        plain.pairs, plain.contexts, plain.prompts)
    assert marked.vignettes.equals(plain.vignettes) and marked.mundane.equals(plain.mundane)
    joined = codecs.BOM_UTF8 + "é one\n".encode() + codecs.BOM_UTF8 + b"two\n"
    assert "at byte 10 a line begins with a byte-order mark" in refusal(decoded, joined)
    assert decoded("a\ufeffb".encode()) == "a\ufeffb"  # inside of a line it is a character


# lines


def twin_lines(text):
    """The texts of a file, letter by letter."""
    found, line, at = [], "", 0
    while at <= len(text):
        if at == len(text) or text[at] == "\n":
            found.append(line[:-1] if at < len(text) and line.endswith("\r") else line)
            line = ""
        else:
            line += text[at]
        at += 1
    stripped = [x.strip() for x in found]
    return [x for x in stripped if any(c not in BLANKS for c in x) and x[0] != "#"]


def check_any_text_is_split_at_its_two_line_ends():
    rng, many = Random(1), 0
    for _ in range(2500):
        rows = ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 9)))
                for _ in range(rng.randrange(1, 6))]
        text = "".join(x + rng.choice(["\n", "\r\n"]) for x in rows)
        if rng.random() < 0.5:  # no end at the end
            text = text.removesuffix("\n")
        assert [x for _, x in numbered(text)] == [
            x.removesuffix("\r") if ended else x for x, ended in
            zip(text.split("\n"), [True] * text.count("\n") + [False], strict=True)]
        wanted = twin_lines(text)
        plain = {" ".join(x.split()) for x in wanted}
        if len(plain) < len(wanted):
            assert "says the same as line" in refusal(lines, text)
        else:
            assert lines(text) == wanted
            many += any(c in x for x in wanted for c in ODD)
    assert many > 1000


def check_comments_may_be_indented_and_odd_separators_stay():
    notes = "# one\n  # two\n\t# three\n\u00a0# four\n"
    prompts = ["What # is it?", "A\u2028B\x0cC\x85D\rE"]
    assert lines(notes + "\n".join(prompts) + "\n\n \u200b\n") == prompts
    assert "line 4 says the same as line 2" in refusal(lines, "# x\na  b?\n\na b?\n")


@pytest.mark.parametrize("field", ["prompts", "contexts"])
def check_json_lines_of_prompts_have_a_named_column(tmp_path, field):
    path = tmp_path / "own.JSONL"
    rows = [{"id": 1, "prompt": "Two\nlines?"}, {"prompt": "# none", "id": "b"}]
    path.write_text("\n".join(json.dumps(x) for x in rows), encoding="utf-8")
    files = data_files(tmp_path) | {field: str(path)}
    assert getattr(read_data(small_config(tmp_path, **files)), field) == ["Two\nlines?", "# none"]
    path.write_text('{"prompt": "a"}\n\n{"text": "b"}\n')
    said = refusal(read_data, small_config(tmp_path, **files))
    assert str(path) in said and "line 3: every line needs prompt" in said
    path = path.rename(tmp_path / "own.txt")
    said = refusal(read_data, small_config(tmp_path, **(files | {field: str(path)})))
    assert "line 1 is a JSON object" in said and ".jsonl" in said


@pytest.mark.parametrize(
    "end", [".csv", ".TSV", ".parquet", ".json", ".xlsx", ".jsonl.gz", ".toml"])
def check_files_of_texts_of_another_kind_are_refused_with_the_remedy(tmp_path, end):
    path = tmp_path / f"prompts{end}"
    path.write_text("prompt\nWhy?\n")
    files = data_files(tmp_path) | {"prompts": str(path)}
    said = refusal(read_data, small_config(tmp_path, **files))
    assert str(path) in said and ".txt" in said and ".jsonl" in said and "'prompt'" in said


def check_what_is_no_file_is_said(tmp_path):
    assert "it is no file" in refusal(read, str(tmp_path), lines)
    os.mkfifo(tmp_path / "pipe")
    assert "it is no file" in refusal(read, str(tmp_path / "pipe"), lines)  # and nobody waits
    assert "No such file" in refusal(read, str(tmp_path / "no.txt"), lines)
    assert "nothing in it" in refusal(read, data_files(tmp_path)["prompts"], lambda _: [])


def check_split_is_filled_in_for_every_file(tmp_path):
    files = {x: name.replace(".", ".{split}.") for x, name in data_files(tmp_path).items()}
    for name in data_files(tmp_path).values():
        os.rename(name, name.replace(".", ".dev."))
    cfg = small_config(tmp_path, **files, split="dev")
    assert read_data(cfg).prompts and all(x.is_file() for x in texts.data_files(cfg).values())


# JSON lines


def spelt(rng, foundation):
    """A foundation as published files spell it."""
    return rng.choice([foundation, foundation.title(), foundation.title().replace(" ", "")])


def drawn(rng, at):
    """A row of a vignette file as people write them: ids of any type, ratings or none."""
    row = {"text": f"{rng.choice(WORDS)} {rng.choice(ODD)} {at}"}
    row["foundation_coarse"] = spelt(rng, rng.choice(FOUNDATIONS))
    row["id"] = rng.choice([at, f"v{at}", at + 0.5, None, [at], {"a": at}, True, 2**70])
    style = rng.choice(["none", "null", "whole", "real", "some"])
    for f in FOUNDATIONS if style != "none" else ():
        value = {"null": None, "whole": rng.randrange(100), "real": round(rng.uniform(0, 9), 2),
                 "some": rng.choice([None, 0, 66.7])}[style]
        row[f"human_{spelt(rng, f)}"] = value
    items = list(row.items())
    rng.shuffle(items)
    return dict(items)


FAULTS = {  # of a line: what it becomes, and what is said
    "negative": (lambda x: x | {"human_Care": -1}, "human_Care is -1"),
    "absurd": (lambda x: x | {"human_Care": 10**400}, "ratings are from 0 to"),
    "boolean": (lambda x: x | {"human_Care": True}, "human_Care is a boolean"),
    "word": (lambda x: x | {"human_Care": "66.7"}, "human_Care is text"),
    "object": (lambda x: x | {"text": {"a": 1}}, "needs text, as text; here it is an object"),
    "number": (lambda x: x | {"text": 5}, "needs text, as text; here it is a number"),
    "blank": (lambda x: x | {"text": " \u200b\n"}, "needs text, as text; here it is blank"),
    "null": (lambda x: x | {"foundation_coarse": None}, "needs foundation_coarse"),
    "half": (lambda x: x | {"text": "a\ud800"}, "half of a surrogate pair"),
    "NUL": (lambda x: x | {"text": "a\0"}, "a NUL in it"),
    "unknown": (lambda x: x | {"foundation_coarse": "Honour"}, "'Honour' is none"),
    "nobody": (lambda x: x | {"human_Honour": 1}, "'Honour' is none"),
    "nan": (lambda x: x | {"id": float("nan")}, "NaN is no number"),
    "infinite": (lambda x: x | {"more": [float("-inf")]}, "-Infinity is no number"),
}
BROKEN = {  # the same of its text
    "no JSON": (lambda x: x[:-1], "is no JSON"),
    "list": (lambda x: f"[{x}]", "it is a list"),
    "twice": (lambda x: '{"text": "a", ' + x[1:], "the key 'text' is there twice"),
    "within": (lambda x: '{"x": {"y": 1, "y": 1}, ' + x[1:], "the key 'y' is there twice"),
    "overflow": (lambda x: '{"x": 1e999, ' + x[1:], "1e999 is no number"),
    "deep": (lambda x: '{"x": ' + "[" * 100000 + "}", "nested too deeply"),
}


def twin_vignettes(rows):
    """Labels and shares, row by row and number by number."""
    labels, people = [], []
    for row in rows:
        said = {}
        for key, value in row.items():
            if key.startswith("human_") and value:
                said[key[6:].lower().replace(" ", "")] = value
        total = sum(said.values())
        people.append([said.get(f.replace(" ", ""), 0) / total if total else 0.0
                       for f in FOUNDATIONS])
        coarse = row["foundation_coarse"].lower().replace(" ", "")
        label = next(f for f in FOUNDATIONS if f.replace(" ", "") == coarse)
        for f, x in zip(FOUNDATIONS, people[-1], strict=True):
            if total and x == max(people[-1]):
                label = f
                break
        labels.append(label)
    return labels, people


def check_any_json_lines_are_what_each_line_says():
    rng, faults = Random(2), 0
    for number in range(2500):
        size = 120 if number % 500 == 0 else rng.randrange(1, 5)
        rows = [drawn(rng, i) for i in range(size)]
        written = [json.dumps(x, ensure_ascii=rng.random() < 0.5) for x in rows]
        bad, says = rng.randrange(size), ""
        if rng.random() < 0.4:
            change, says = FAULTS[rng.choice([*FAULTS])]
            plain = {k: x for k, x in rows[bad].items() if not k.startswith("human_")}
            written[bad] = json.dumps(change(plain))
        elif rng.random() < 0.2:
            change, says = BROKEN[rng.choice([*BROKEN])]
            written[bad] = change(written[bad])
        text, at = "", {}
        for i, line in enumerate(written):
            text += rng.choice(["", "", "\n", " \r\n", "\t\n"])
            at[i] = text.count("\n") + 1
            text += line + rng.choice(["\n", "\r\n"])
        text = decoded(text.encode(rng.choice(["utf-8", "utf-8-sig"])))
        if says:
            said = refusal(vignettes, text)
            assert said.startswith(f"line {at[bad]}: ") and says in said, said
            faults += 1
            continue
        frame, (labels, people) = vignettes(text), twin_vignettes(rows)
        assert frame["text"].to_list() == [x["text"] for x in rows]
        assert frame["label"].to_list() == labels
        if any(any(x) for x in people):
            assert frame.select(H).rows() == [pytest.approx(x) for x in people]
        else:
            assert frame.columns == ["text", "label"]
    assert 700 < faults < 1800


def check_ratings_that_begin_late_are_not_lost():
    rows = [{"id": i, "text": f"Act {i}.", "foundation_coarse": "Care"} for i in range(150)]
    rows[140] |= {"id": "late"} | {f"human_{f}": 0.0 for f in FOUNDATIONS} | {
        "human_authority": 66.7}
    found = vignettes("\n".join(map(json.dumps, rows)))
    assert found["label"].to_list() == ["care"] * 140 + ["authority"] + ["care"] * 9
    assert found["h_authority"].to_list() == [0.0] * 140 + [1.0] + [0.0] * 9
    assert found["h_care"].dtype == pl.Float64


def check_a_rating_spelt_twice_or_of_no_foundation_is_refused():
    row = {"text": "A", "foundation_coarse": "Care"} | {f"human_{f}": 1 for f in FOUNDATIONS}
    assert "line 1: human_SocialNorms is there twice" in refusal(
        vignettes, json.dumps(row | {"human_SocialNorms": 1}))
    assert "human ratings lack h_liberty" in refusal(
        vignettes, json.dumps({k: x for k, x in row.items() if k != "human_liberty"}))


@pytest.mark.parametrize(("field", "line", "says"), [
    ("mundane", {"prompt": "Why?", "text": ""}, "needs text, as text; here it is blank"),
    ("mundane", {"prompt": " ", "text": "So."}, "needs prompt, as text; here it is blank"),
    ("mundane", {"prompt": "1 + 1?", "text": "It is 2."}, "says the same as line 1"),
    ("mundane", {"prompt": "Why?", "text": ["So."]}, "here it is a list"),
    ("vignettes", {"text": "You see a  blow.", "foundation_coarse": "loyalty"},
     "says the same as line 1"),
    ("vignettes", {"text": "You see.", "foundation_coarse": ""}, "foundation_coarse"),
    ("labelled", {"prompt": "A", "text": "B", "label": "brokn", "note": ""}, "not 'brokn'"),
    ("labelled", {"prompt": "A", "text": "B", "label": "Coherent", "note": ""}, "not 'Coherent'"),
    ("labelled", {"prompt": "A", "text": "B", "label": None, "note": ""}, "here it is null"),
    ("labelled", {"prompt": "A", "text": "B", "label": "coherent"}, "needs note"),
    ("labelled", {"prompt": "A", "text": "Good.", "label": "incoherent", "note": "no"},
     "says the same as line 1"),
    ("labelled", {"prompt": "A", "text": "", "label": "incoherent", "note": ""}, "it is blank"),
])
def check_a_bad_line_is_named_before_anything_runs(tmp_path, field, line, says):
    good = {"labelled": {"prompt": "A", "text": "Good.", "label": "coherent", "note": ""}}
    files = data_files(tmp_path)
    path = tmp_path / f"{field}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else [json.dumps(good[field])]
    path.write_text("\n".join([*lines, "", json.dumps(line)]))
    said = refusal(read_data, small_config(tmp_path, **(files | {field: str(path)})))
    assert str(path) in said and f"line {len(lines) + 2}" in said and says in said


def check_completions_judged_by_hand_are_read():
    rows = [{"prompt": "A", "text": x, "label": y, "note": ""}
            for x, y in (("a", "coherent"), ("b", "incoherent"))]
    assert labelled("\n".join(map(json.dumps, rows)))["label"].to_list() == [
        "coherent", "incoherent"]
    assert labelled("").columns == ["prompt", "text", "label", "note"]


# TOML

AXIS = 'positive = ["Be kind."]\nnegative = ["Obey."]\n'


@pytest.mark.parametrize(("text", "says"), [
    (AXIS + 'up = ["care"]', "'up' is a list"),
    (AXIS + "up = 3", "'up' is a number"),
    (AXIS + "down = true", "'down' is a boolean"),
    (AXIS + "up = 1979-05-27", "'up' is a date"),
    (AXIS + 'up = ""', "'up' is blank"),
    (AXIS + 'upp = "fairness"', "no key 'upp'"),
    (AXIS + '[axis]\nup = "fairness"', "no key 'axis'"),
    (AXIS + 'up = "fairness"', "'up' is named alone"),
    (AXIS + 'up = "care"\nup = "care"\n', "line 4"),
    ('positive = ["Be kind.", " "]\nnegative = ["Obey.", "Do."]', "text 2 of 'positive' is blank"),
    ('positive = ["Be kind."]\nnegative = [3]', "text 1 of 'negative' is a number"),
    ('positive = ["Be kind."]\nnegative = {a = 1}', "'negative' is an object"),
    ('positive = ["Be."]\nnegative = ["Be."]', "pair 1 says the same at both poles"),
    ('positive = ["a", "b", "a"]\nnegative = ["c", "d", "c"]', "pair 3 says the same as pair 1"),
    ('positive = ["a"]\nNegative = ["b"]', "no key 'Negative'"),
    ("positive = " + "[" * 100000, "nested too deeply"),
    ('positive = ["a\\u0000"]\nnegative = ["b"]', "a NUL in it"),
])
def check_a_persona_file_of_another_shape_is_one_line(tmp_path, text, says):
    (tmp_path / "own.toml").write_text(text)
    said = refusal(read, str(tmp_path / "own.toml"), persona)
    assert "own.toml" in said and says in said


def check_a_persona_file_names_both_ends_of_its_axis_or_none():
    assert persona(AXIS)[1:] == ("care", "authority")
    assert persona(AXIS + 'name = "x"\nup = "Liberty"\ndown = "care"')[1:] == ("liberty", "care")


# what gives no number


@pytest.mark.parametrize("field", ["vignettes", "mundane"])
def check_fewer_items_than_give_an_interval_are_refused(tmp_path, field):
    files = data_files(tmp_path)
    path = tmp_path / f"{field}.jsonl"
    rows = path.read_text().splitlines()
    for few in range(1, FEWEST):
        path.write_text("\n".join(rows[:few]))
        said = refusal(read_data, small_config(tmp_path, **files))
        assert str(path) in said and f"{few} items" in said and "needs 3 at least" in said
    path.write_text("\n".join(rows[:FEWEST]))
    assert len(getattr(read_data(small_config(tmp_path, **files)), field)) == FEWEST
    if field == "vignettes":
        assert "with --every 2" in refusal(read_data, small_config(tmp_path, **files, every=2))


def check_an_interval_without_width_is_not_shown():
    assert interval([0.5, 0.25, 0.75]) == "+0.50 [+0.25, +0.75]"
    assert interval([0.0, 0.0, 0.0]) == interval([-0.0] * 3) == "+0.00"
    assert interval([1.0, 0.5, 2.0], ".3f") == "1.000 [0.500, 2.000]"
    assert "--bootstrap takes" in refusal(lambda: Config(bootstrap=1))  # has no width, either


def check_ordinary_text_without_tokens_is_named(folders, tmp_path, monkeypatch):
    s = Small(small_config(folders(), **data_files(tmp_path)))
    data = read_data(s.cfg)
    with monkeypatch.context() as m:
        to_ids = s.model.to_ids
        m.setattr(s.model, "to_ids", lambda x: [] if x == "It is 3." else to_ids(x))
        said = refusal(evaluate, s.model, data, s.cfg)
    assert s.cfg.mundane in said and "'1 + 2?'" in said and "no tokens" in said
    s.model.head.weight.data.fill_(float("nan"))
    said = refusal(mundane, s.model, data, s.cfg)
    assert s.cfg.mundane in said and "loss of nan" in said


FOUND = {}


def other(model, cfg):
    """Another one."""
    return {"twice": [1.0]}


def probe(model, cfg):
    """A probe, which --probes names."""
    return FOUND["it"]


@pytest.mark.parametrize(("found", "says"), [
    ({"x": [1.0, float("nan")]}, "gives x the value nan (item 1)"),
    ({"x": [float("inf")]}, "the value inf"),
    ({"x": [1e300, 1e308]}, "the value 1e+300"),
    ({"x": [None]}, "the value None"),
    ({"x": ["1"]}, "the value '1'"),
    ({"x": []}, "no list of values for 'x'"),
    ({"x": 1.0}, "no list of values for 'x'"),
    ({1: [1.0]}, "no list of values for 1"),
    ([1.0], "returns list"),
    (None, "returns NoneType"),
])
def check_a_probe_gives_numbers_or_one_line(found, says):
    said = refusal(probes.numbers, "my:probe", found)
    assert "my:probe" in said and says in said


@pytest.mark.parametrize(("found", "says"), [
    ({"x": [1.0, float("nan")]}, "gives x the value nan (item 1)"),
    ({"coherence": [1.0]}, "'coherence', which there is already"),
    ({"care_nats": [1.0]}, "'care_nats', which there is already"),
    ({"twice": [1.0]}, "'twice', which there is already"),
])
def check_a_probe_is_refused_before_anything_else_is_measured(
        world, monkeypatch, found, says):
    cfg = replace(world.cfg, probes=[f"{__name__}:other", f"{__name__}:probe"])
    monkeypatch.setitem(FOUND, "it", found)
    for late in ("evaluate.choices", "evaluate.said", *(
            f"readouts.items.{x}" for x in ("mundane", "contrast", "reasons"))):
        monkeypatch.setattr(f"steerloop.{late}", lambda *_: pytest.fail("too late"))
    said = refusal(evaluate, world.model, world.data, cfg)
    assert f"{__name__}:probe" in said and says in said


def check_probes_are_functions_and_their_values_floats(tmp_path):
    for name in ("os", "os:sep", "no.such:thing", "os:nothing", ":", "a b:c"):
        assert name in refusal(probes.resolve, name)
    found = probes.numbers("p", {"x": pl.Series([1, 2]).to_numpy(), "y": (True, 0.5)})
    assert found == {"x": [1.0, 2.0], "y": [1.0, 0.5]}
    assert all(type(x) is float for values in found.values() for x in values)


# locales

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*argv, **env):
    """A process in an ASCII locale."""
    return subprocess.run(
        [sys.executable, "-X", "utf8=0", "-X", "warn_default_encoding", *argv],
        capture_output=True, env=os.environ | ASCII | env)


def check_texts_are_read_as_utf_8_in_an_ascii_locale(tmp_path):
    (tmp_path / "p.txt").write_bytes("Wäre Δ böse?\n".encode())
    program = ("import sys, locale; from steerloop.texts.data import lines, read; "
               "assert locale.getpreferredencoding(False).lower() in ('ansi_x3.4-1968', "
               "'us-ascii', 'ascii'), locale.getpreferredencoding(False); "
               "print(ascii(read(sys.argv[1], lines)))")
    done = command("-c", program, str(tmp_path / "p.txt"))
    assert done.stdout.decode("ascii").strip() == ascii(["Wäre Δ böse?"]), done.stderr


@pytest.mark.long
def check_a_run_in_an_ascii_locale_comes_to_its_end(tmp_path):
    """With names and texts that it cannot show; nothing of ours asks the locale how to write."""
    prompts = ["Mon maître m'a dit de mentir. Que faire ?", "中文?", "He told me to 😀. Well?"]
    (tmp_path / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
    done = command("-m", "steerloop.train", "--tiny", "--device", "cpu", "--no_filter",
                   "--prompts", str(tmp_path / "p.txt"), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    warned = [x for x in done.stderr.decode("utf-8", "replace").split("\n")
              if "EncodingWarning" in x and "/steerloop/" in x]
    assert not warned
    (run,) = (x.parent for x in (tmp_path / "runs").glob("*/summary.json"))
    for name in ("diary.md", "verdicts.md", "map.html", "report.html", "log.txt"):
        assert (run / name).read_bytes().decode("utf-8")
    assert "maître" in (run / "diary.md").read_text(encoding="utf-8")
    assert "Δauthority" in (run / "log.txt").read_text(encoding="utf-8")
