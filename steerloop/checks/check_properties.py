"""Properties over some twelve thousand generated inputs (a fifth in the gate: many.py): text
scores, padding, aggregates, records, knobs. The seed is fixed, so is the time."""

import json
import math
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerloop import UserError
from steerloop.barrier import EPS, Barrier
from steerloop.checks.many import many
from steerloop.checks.twins import dense_aggregate
from steerloop.cli.knobs import RANGE
from steerloop.config import Config, parse
from steerloop.kernels.batch import collate, pad
from steerloop.runfolder.events import event_line, read_events
from steerloop.runfolder.folder import Folder
from steerloop.texts.faults import echoed, looped, narrates, refuses, repeated, zipped

WORDS = st.lists(st.sampled_from(
    ["the", "mayor", "told", "me", "to", "go", "home", "now.", "then?", "no!", "we", "can't"]))
TEXTS = st.one_of(st.text(max_size=120), WORDS.map(" ".join), WORDS.map(lambda x: " ".join(x * 3)))
IDS = st.lists(st.lists(st.integers(6, 99), min_size=1, max_size=6), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=6,
)
NUMBERS = [(x.name, type(x.default), *x.metadata[RANGE]) for x in fields(Config)
           if type(x.default) in (int, float)]


def some(count):
    """`many` of `count` inputs, none of them kept for later runs."""
    return settings(max_examples=many(count), database=None)


@some(4000)
@given(text=TEXTS)
def check_scores_of_any_text_are_shares(text):
    for score in (repeated, looped, echoed):
        assert 0 <= score(text) <= 1
    assert zipped(text) > 0 and math.isfinite(zipped(text))
    assert isinstance(narrates(text, ["Be kind"]) or refuses(text), bool)
    if text.isascii():  # how it is written is no matter
        assert repeated(text.upper()) == repeated(text)
    said = "Obey every order of the mayor"
    assert narrates(f"{text} {said}", [said])  # whoever quotes its persona narrates
    assert echoed(f"{text}\nWe all go home. We all go home.") > 0


@some(2500)
@given(prompts=IDS, data=st.data())
def check_any_rows_are_padded_and_found_again(prompts, data):
    ends = [data.draw(st.lists(st.integers(6, 99), max_size=6)) for _ in prompts]
    batch = collate(prompts, ends, [0.5] * len(prompts), 0, torch.device("cpu"))
    assert batch.mask.sum(1).tolist() == [
        len(p) + len(c) for p, c in zip(prompts, ends, strict=True)]
    assert batch.targets.tolist() == [x for c in ends for x in c]
    assert torch.equal(batch.ids.flatten()[batch.positions + 1], batch.targets)
    assert [x.int().tolist() for x in batch.split(batch.targets.float())] == ends
    ids, mask = pad(prompts, 0, torch.device("cpu"), left=True)
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == prompts
    assert mask[:, -1].all()


@some(2500)
@given(kls=st.lists(st.floats(0, 50, width=32), min_size=1, max_size=30), scale=st.floats(0.1, 9),
       shuffle=st.randoms(use_true_random=False))
def check_aggregates_of_any_row(kls, scale, shuffle):
    row, found = torch.tensor(kls), {}
    for agg in ("mean", "rmse", "p95", "max"):
        aggregate = Barrier("kl_rev", agg, 1.0, 0.0).aggregate
        found[agg] = aggregate(row).item()
        near = pytest.approx(found[agg], rel=1e-4, abs=2 * EPS**0.5)
        assert dense_aggregate(row, agg).item() == near
        assert aggregate(row[shuffle.sample(range(len(kls)), len(kls))]).item() == near
        assert aggregate(scale * row).item() / scale == pytest.approx(
            found[agg], rel=1e-4, abs=2e-3)
    room = 1e-4 * (1 + max(kls)) + EPS**0.5  # inside the root
    assert found["mean"] <= found["rmse"] + room and found["rmse"] <= found["max"] + room
    assert min(kls) - room <= found["p95"] <= found["max"] + room


@some(1000)
@given(values=st.lists(st.dictionaries(st.text(min_size=1, max_size=6), JSON, max_size=4),
                       min_size=1, max_size=4), torn=st.text(max_size=9), at=st.integers(0, 10**6))
def check_any_record_comes_back_and_damage_shows(values, torn, at):
    values = [{"stage": "x", **{k: x for k, x in v.items() if k != "crc"}} for v in values]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        lines = "".join(map(event_line, values))
        path.write_text(lines + torn.replace("\n", "").replace("\r", ""))
        assert read_events(Path(folder)) == values
        raw = bytearray(lines.encode())
        if raw[at := at % len(raw)] != ord("\n"):
            raw[at] ^= 1  # one bit: the line is refused, or says the same by another name
            path.write_bytes(bytes(raw))
            try:
                found = read_events(Path(folder))
            except UserError as e:
                assert "damaged" in str(e) and "--resume" in str(e)
            else:
                assert [{k: v for k, v in x.items() if k in y} for x, y in zip(
                    found, values, strict=True)] == values
    assert all(json.loads(event_line(x)).pop("crc") for x in values)


@some(200)
@given(value=JSON)
def check_any_result_is_kept(value):
    with TemporaryDirectory() as folder:
        run = Folder(Path(folder) / "run")
        made = [run.once("a/b", lambda: value) for _ in (0, 1)]
        run.lock.close()
        again = Folder(run.path, again=True).once("a/b", lambda: "not made again")
    assert made[1] == again == value


@some(2000)
@given(knob=st.sampled_from(NUMBERS), real=st.floats(), whole=st.integers(-10, 10**6))
def check_any_number_is_in_its_range_or_refused(knob, real, whole):
    name, kind, low, high = knob
    value = real if kind is float else whole
    fits = math.isfinite(value) and value <= high and (value > 0 if low is None else value >= low)
    if fits:
        assert getattr(Config(**{name: value}), name) == value
    else:
        with pytest.raises(UserError, match=f"--{name} takes"):
            Config(**{name: value})


@some(60)
@given(lr=st.floats(1e-6, 1.0), rounds=st.integers(1, 99), tau=st.floats(0.0, 9.0),
       share=st.sampled_from([0.0, 0.5]),
       multiples=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4))
def check_any_command_line_is_what_it_says(lr, rounds, tau, share, multiples):
    threshold = ["--tau_share", repr(share)] if share else ["--tau", repr(tau)]
    found = parse(["--lr", repr(lr), "--rounds", str(rounds), *threshold, "--multiples",
                   *map(repr, multiples)])
    assert (found.lr, found.rounds, found.multiples) == (lr, rounds, multiples)
    assert found.tau_share == share if share else found.tau == tau
