"""What a bundle says, computed again: from its own tables, and on the model that is here.

Each part is a line of `verify`. What cannot be computed from what is there differs, whatever the
reason: a bundle is other people's input, so it may hold anything. What no part computes is listed
as TRUSTED.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import polars as pl
import torch
from safetensors import SafetensorError, safe_open

from steerloop import UserError, report
from steerloop.config import Config
from steerloop.evidence.bounds import floor_of
from steerloop.export.student import Student, config_of, finished_rounds, read_vector, records
from steerloop.export.unpack import said
from steerloop.kernels.spectral import cosine
from steerloop.readouts.contrast import contrast
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.mundane import mundane
from steerloop.readouts.probes import long
from steerloop.readouts.reasons import reasons
from steerloop.report.diary import write_diary
from steerloop.report.run import axis_of, frames_of, states
from steerloop.report.sight import judged, verdict
from steerloop.report.summary import summarise
from steerloop.report.trait import unasked
from steerloop.report.verdicts import verdicts, write_verdicts
from steerloop.runfolder import layout
from steerloop.runfolder.events import read_events
from steerloop.runfolder.files import (
    checksums,
    read_config,
    read_document,
    read_table,
    table_size,
    unsealed,
)
from steerloop.runfolder.inputs import by_file
from steerloop.steer import extract
from steerloop.texts.data import Data
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.packs import SIDES

NEAR = {"float32": 1e-3, "bfloat16": 5e-2}  # probability, nats a token, 1 - cosine of a vector
EQUAL = 1e-6  # relative, of numbers that follow from tables: other versions sum in another order
WORK = 5 * 10**6  # resamples × vignettes: 5,000 vignettes under the default of 1,000
ROWS, THOUGHT, TEXT = 48, 4096, 2**15  # most rows of a batch, tokens of a thought, a text's letters
CELLS = 10**7  # of a table, by its header
TRUSTED = {
    "what models wrote": "completions, their worst tokens and histogram of KL, planted.parquet, "
                         "diary tables, rollouts, and how the filter judged them",
    "states beside the loop": "tables of steered, matched and baseline states; of all states the "
                              "free answers, the values of probes, and what came of tasks",
    "how it was trained": "adapters, c* and its curve, κ, heal and drift records, steps",
    "settings": "config.json, seed, package versions, and that the run ended by itself",
}
FAULTS = (UserError, ArithmeticError, AttributeError, LookupError, MemoryError, OSError,
          RuntimeError, StopIteration, TypeError, ValueError, SafetensorError,
          pl.exceptions.PolarsError, pl.exceptions.PanicException)


class Compared(NamedTuple):
    """One line of a comparison. `same` None: a difference that explains, but does not count."""

    part: str
    same: bool | None
    said: str


def part(name: str, compute: Callable[..., Compared], *args: Any) -> Compared:
    """A comparison; one that cannot be made differs, and says why in one line."""
    try:
        return compute(name, *args)
    except FAULTS as e:
        return Compared(name, False, f"cannot be computed from it: {said(e)}")


def unlike(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values differ, by the path to it; numbers are alike within EQUAL."""
    if isinstance(a, dict) and isinstance(b, dict):
        for k in sorted(a.keys() | b.keys()):
            if k in a and k in b:
                yield from unlike(a[k], b[k], f"{at}/{k}")
            else:
                yield f"{at}/{k}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from unlike(x, y, f"{at}/{i}")
    elif type(a) in (int, float) and type(b) in (int, float):
        if not math.isclose(a, b, rel_tol=EQUAL, abs_tol=1e-9):
            yield at
    elif type(a) is not type(b) or a != b:
        yield at


def told(name: str, wrong: list[str], fine: str) -> Compared:
    """The first few differences, or what is `fine`."""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Compared(name, not wrong, ", ".join(wrong[:3]) + more or fine)


def fits(hint: Any, x: Any) -> bool:
    """Whether a value read from JSON is of a knob's type."""
    if get_origin(hint) is Literal:
        return type(x) is str and x in get_args(hint)
    if get_origin(hint) is list:
        return type(x) is list and all(fits(get_args(hint)[0], y) for y in x)
    return type(x) in (int, float) if hint is float else type(x) is hint


def bounded(folder: Path) -> Config:
    """The config of an unpacked bundle, whose numbers are within what the bundle itself holds: they
    say how much is allocated. Raises UserError naming the knob."""
    document, kinds = read_document(folder), get_type_hints(Config)
    if not isinstance(document["config"], dict):
        raise UserError(f"its {layout.CONFIG} has no settings")
    for name, x in document["config"].items():
        if name in kinds and not fits(kinds[name], x):
            raise UserError(f"its {layout.CONFIG} has {name} {json.dumps(x)[:40]}, which no run "
                            "can have")
    for path in folder.glob("**/*.parquet"):
        small_table(path)
    cfg, there = config_of(folder), finished_rounds(folder)
    vignettes = len(read_table(layout.rows(folder, 0, layout.BASE)))
    for round in range(there):
        with safe_open(layout.adapter(folder, round), "pt") as file:
            ranks = {file.get_slice(k).get_shape()[0] for k in file.keys()  # noqa: SIM118
                     if k.endswith(".A")}
        if ranks != {cfg.r}:
            raise UserError(f"its {layout.CONFIG} says r {cfg.r}, its adapters {sorted(ranks)}")
    if not 0 < there <= cfg.rounds:
        raise UserError(f"its {layout.CONFIG} says {cfg.rounds} rounds, and it holds {there}")
    for name, most in (("bootstrap", WORK // max(1, vignettes)), ("think_tokens", THOUGHT)):
        if getattr(cfg, name) > most:
            raise UserError(f"its {layout.CONFIG} asks for {name} {getattr(cfg, name)}, and {most} "
                            "is the most that is done for a bundle of its size")
    return cfg


def small_table(path: Path) -> None:
    """Raise UserError for a table whose header promises more than CELLS."""
    rows, columns = table_size(path)
    if rows * columns > CELLS:
        raise UserError(f"{path} holds {rows} rows, more than such a table can")


def restated(folder: Path, cfg: Config, into: Path) -> Config:
    """A run folder `into` with the rounds of an unpacked one and a config of ours: a slot a round
    that it has, batches of this program's choice, on the device and the threads that there are."""
    here = replace(cfg, rounds=finished_rounds(folder), threads=0, device="auto", decode="auto",
                   batch_rows=min(cfg.batch_rows or ROWS, ROWS), probes=[], eval="own", resume="")
    known = {k: x for k, x in read_document(folder).items() if k in ("schema", "inputs")}
    into.mkdir()
    (into / "rounds").symlink_to(folder / "rounds", target_is_directory=True)
    text = json.dumps(known | {"config": asdict(here)})
    (into / layout.CONFIG).write_text(text, encoding="utf-8")
    return here


def check_record(name: str, folder: Path, manifest: dict[str, Any], data: dict[str, str]
                 ) -> Compared:
    """Do manifest, config, checksums and records say the same of the same things? `data`: knob →
    hash of the packed file. Raises UserError for records that no run writes."""
    document, wrong = read_document(folder), []
    same = {"seed": document["config"]["seed"], "made_with": document.get("code", "")}
    wrong += [f"{k} in the manifest" for k, x in same.items() if x != manifest[k]]
    wrong += [f"{k} in {layout.SUMS}" for k, x in checksums(folder).items()
              if manifest["files"].get(k, x) != x]
    inputs = document.get("inputs", {})
    if inputs.get("model", {}).get("sha256", manifest["weights"]) != manifest["weights"]:
        wrong.append(f"the model in {layout.CONFIG}")
    wrong += [f"{k} in {layout.CONFIG}" for k, x in data.items() if by_file(inputs).get(k, x) != x]

    def kept(stem: str) -> Any:
        value = json.loads((folder / f"{stem}.json").read_text("utf-8"))
        if value.keys() != {"schema", "value"} or value["schema"] != 1:
            wrong.append(f"{stem}.json is no result of a stage")
        return value["value"]

    first, seen = read_vector(folder, 1, torch.device("cpu")), []
    for event in read_events(folder):
        found: dict[str, Any] = {}
        stage, round = event["stage"], event.get("round", 0)
        if type(round) is not int or stage not in layout.RECORDS:
            raise UserError(f"a record of {stage} in round {json.dumps(round)} is none of a run's")
        seen.append((round, stage))
        if stage == "start":
            found = {"floor": floor_of(config_of(folder)), "ppl_limit": kept(layout.LIMIT)}
        elif stage == layout.U0:
            found = sight(folder)
        elif stage in (layout.HEAL, layout.DRIFT):
            found = kept(layout.of_round(round, stage))
        elif stage == "sample":
            table = read_table(layout.completions(folder, round))
            curve = read_table(folder / layout.of_round(round, f"{layout.CURVE}.parquet"))
            vector = read_vector(folder, round + 1, torch.device("cpu"))
            found = {"c_star": kept(layout.of_round(round, layout.DOSE)),
                     "kappa": kept(layout.of_round(round, layout.KAPPA)),
                     "curve": curve.to_dicts(), "survival": report.survival(table),
                     "cos_first": cosine(vector, first)}
        known = {k: x for k, x in event.items() if k not in ("stage", "round")}
        wrong += [f"{stage} of round {round + 1}: {x[1:]}" for x in unlike(known, found)
                  if stage in ("start", layout.U0, "sample", layout.HEAL, layout.DRIFT)]
    needed = {(k, x) for k in range(finished_rounds(folder))
              for x in ("sample", layout.HEAL, layout.DRIFT)} | {(0, "start")}
    wrong += [f"no record, or several, of {stage} of round {round + 1}"
              for round, stage in sorted(needed) if seen.count((round, stage)) != 1]
    return told(name, wrong, "manifest, config, checksums and records agree")


def sight(folder: Path) -> dict[str, Any]:
    """Gate U0, as its kept answers have it."""
    base, axis = frames_of(folder, 0, layout.BASE), axis_of(folder)
    answers = folder / layout.of_round(0, f"{layout.U0}.parquet")
    if not answers.is_file():
        return unasked(base, axis, read_config(folder)["u0"])
    return verdict(judged(base, read_table(answers), axis))


def check_tables(name: str, folder: Path) -> Compared:
    """Do the recorded measures follow from the saved rows, and is every state there?"""
    wrong, seen, cfg = [], set(), read_config(folder)
    base = frames_of(folder, 0, layout.BASE)
    for event in records(folder, "evaluate"):
        at = event["round"], event["state"]
        again = report.measures(frames_of(folder, *at), base, cfg["ppl_factor"])
        wrong += [f"{at[1]} of round {at[0] + 1}: {x[1:]}"
                  for x in unlike(event["measures"], again)]
        seen.add(at)
    needed = {(0, layout.BASE), *((k, layout.HEALED) for k in range(finished_rounds(folder)))}
    wrong += [f"no record of {state} of round {k + 1}" for k, state in sorted(needed - seen)]
    return told(name, wrong, f"the measures of {len(seen)} states follow from their rows")


def check_summary(name: str, folder: Path, run: str) -> Compared:
    """Does summary.json follow from tables and records?"""
    path = folder / layout.SUMMARY
    if not path.is_file():
        return Compared(name, None, "there is none: the run was cut short")
    known, measured = unsealed(path.read_text("utf-8")), states(folder)
    again = summarise(folder, verdicts(folder, measured), measured)
    again |= {"run": run, "ended": known["ended"]}
    wrong = unlike(known, json.loads(json.dumps(again)))
    return told(name, [x[1:] for x in wrong], "it follows from tables and records")


def check_words(name: str, folder: Path, alike: bool) -> Compared:
    """Are verdicts.md and diary.md what is written of such tables? Where versions are not `alike`
    they may put it otherwise."""
    paths = [folder / x for x in (layout.VERDICTS, layout.DIARY) if (folder / x).is_file()]
    before = [x.read_bytes() for x in paths]
    measured = states(folder)
    write_verdicts(folder, measured)
    write_diary(folder, measured)
    wrong = [x.name for x, was in zip(paths, before, strict=True) if x.read_bytes() != was]
    found = told(name, wrong, f"{', '.join(x.name for x in paths)}: word by word")
    return found if alike or found.same else found._replace(same=None)


def check_texts(data: Data) -> None:
    """Raise UserError for a text that no bundle of ours holds."""
    texts = [*data.contexts, *data.personas, *data.vignettes["text"],
             *data.mundane["prompt"], *data.mundane["text"], *data.contrast["prompt"],
             *(x for side in SIDES for answers in data.contrast[side] for x in answers),
             *(x for one in data.reasons for some in one.reasons.values() for x in some)]
    if long := [x for x in texts if len(x) > TEXT]:
        raise UserError(f"a text of {len(long[0])} letters is in its data, {TEXT} are the most")


@torch.no_grad()
def check_answers(name: str, student: Student, data: Data, round: int, state: str) -> Compared:
    """Forced choice, ordinary text, reasons and contrasted answers of the base (0 rounds heard) or
    of the student after a round, computed anew, against the saved rows."""
    model, cfg = student.model, student.cfg
    heard = 0 if state == layout.BASE else round + 1
    saved = read_table(layout.rows(student.run, round, state)).sort("vignette")
    with model.gates(model.gates.before(heard)):
        now = choices(model, data.vignettes, cfg, free=False).sort("vignette")
        again = long({"mundane_nll": mundane(model, data, cfg)} | contrast(model, data, cfg)
                     | reasons(model, data, cfg, [data.up, data.down]))
    items = read_table(layout.items(student.run, round, state)).filter(
        pl.col("measure").is_in(again["measure"].unique().implode()))
    key, label = ["measure", "item"], ["vignette", "foundation"]
    items, again = items.sort(key), again.sort(key)
    pairs = (items.select(key), again.select(key)), (saved.select(label), now.select(label))
    if not all(a.equals(b) for a, b in pairs):
        return Compared(name, False, "other vignettes or texts")
    chosen = [*(f"p_{f}" for f in FOUNDATIONS), "p_ans_any", "scaffold_nll"] * (len(now) > 0)
    gaps = [abs(a.to_numpy() - b.to_numpy()).max(initial=0) for a, b in (
        (items.select("value"), again.select("value")), (saved.select(chosen), now.select(chosen)))]
    return Compared(name, bool(max(gaps) < NEAR[cfg.dtype]),
                    f"{len(now)} vignettes and {len(again)} values of texts, largest difference "
                    f"{max(gaps):.1e}")


@torch.no_grad()
def check_vector(name: str, student: Student, data: Data, round: int) -> Compared:
    """A round's vector (from 0), extracted anew from the student before it: direction and size."""
    model, cfg = student.model, student.cfg
    saved = read_vector(student.run, round + 1, model.device)
    with model.gates(model.gates.before(round)):
        now = extract(model, data, replace(cfg, steer_blocks=sorted(saved)))
    gap = 1 - cosine(saved, now)
    sizes = [(saved[b].norm() / now[b].norm()).item() for b in saved]
    far = max(abs(x - 1) for x in sizes)
    near = NEAR[cfg.dtype]
    return Compared(name, gap < near and far < 2 * near**0.5,
                    f"1 - cosine {gap:.1e}, sizes within {far:.1e}")
