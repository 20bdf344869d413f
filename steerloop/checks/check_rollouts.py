"""Long rollouts and their KL token by token are those of a slow twin, each under its own gates, and
spend no draw of the run; the steps of a heal can be looked at while it goes on."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from steerloop.checks.small import Small, completions, data_files, small_config
from steerloop.checks.twins import dense_kl, row_logits
from steerloop.evidence import live
from steerloop.evidence.live import Live
from steerloop.evidence.rollouts import PROMPTS, TIMES, rollouts
from steerloop.heal import heal
from steerloop.healing.course import STEPS
from steerloop.loading.fit import positions
from steerloop.runfolder import layout
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.recorder import Recorder
from steerloop.texts.data import read_data
from steerloop.texts.faults import alive


@pytest.fixture
def student(folders, tmp_path):
    """A student of two rounds, and its data."""
    cfg = small_config(folders(), quant="none", **data_files(tmp_path), dose_tokens=4)
    s = Small(cfg)
    for seed in (0, 1):
        s.stir(seed)
        s.fold()
    return s, read_data(cfg)


def logits_of(hf, prompt, said, added=None):
    """At the tokens of a completion (n, v), log-probabilities."""
    whole = row_logits(hf, prompt + said, added)
    return whole[len(prompt) - 1 : len(prompt) + len(said) - 1].log_softmax(-1)


@torch.no_grad()
def check_rollouts_are_those_of_a_slow_twin(student):
    s, data = student
    bare, vector, c_star = s.bare(), s.vector(size=2.0), 0.5
    before = torch.get_rng_state()
    table = rollouts(s.model, data, s.cfg, vector, c_star, 1)
    assert torch.equal(before, torch.get_rng_state()) and s.model.gates.value is None
    asked = data.prompts[:PROMPTS]
    assert table["state"].to_list() == ["steered"] * len(TIMES) * len(asked) + [
        "healed"] * len(asked)
    assert table["prompt"].to_list() == asked * (len(TIMES) + 1)
    assert table["dose"].to_list() == [x * c_star for x in (*TIMES, 0) for _ in asked]
    assert table["times"].to_list() == [x for x in (*TIMES, None) for _ in asked]
    assert table["alive"].to_list() == alive(table["text"], s.cfg)
    for row in table.iter_rows(named=True):
        prompt, said = s.model.render(row["prompt"]), row["completion_ids"]
        assert row["cut"] is (said[-1] not in s.model.stop_ids) and len(said) <= 8
        assert not row["cut"] or len(said) == 8
        assert row["text"] == s.model.to_text(said)
        if row["state"] == "healed":
            one, other = logits_of(s.model.hf, prompt, said), logits_of(bare, prompt, said)
        else:  # as it was before the round that was folded last
            added = {b: row["dose"] * v for b, v in vector.items()}
            with s.model.gates(s.model.gates.before(1)):
                one = logits_of(s.model.hf, prompt, said, added)
                other = logits_of(s.model.hf, prompt, said)
        assert row["kl"] == pytest.approx(dense_kl(one, other).tolist(), rel=1e-3, abs=1e-5)
        assert min(row["kl"]) > 1e-4
    texts = table.group_by("state", "dose").agg(pl.col("text"))
    assert texts["text"].n_unique() == len(TIMES) + 1, "states that cannot be told apart"


def check_rollouts_fit_positions_and_memory(student, monkeypatch):
    """Of a model with few positions they are as long as these allow; of more tokens at once than a
    completion has, fewer rows go through."""
    s, data = student
    sizes = []
    longest = max(len(s.model.render(x)) for x in data.prompts[:PROMPTS])
    cfg = replace(s.cfg, dose_tokens=20, max_new_tokens=30, batch_rows=6)
    assert positions(s.model.hf) > longest + 40
    monkeypatch.setattr("steerloop.evidence.rollouts.sample", lambda model, table, v, c, key: (
        sizes.append((c.max_new_tokens, c.batch_rows)) or table.with_columns(
            completion_ids=pl.lit([7]), text=pl.lit("so"))))
    rollouts(s.model, data, cfg, s.vector(), 0.5, 1)
    s.model.hf.config.max_position_embeddings = longest + 35
    rollouts(s.model, data, cfg, s.vector(), 0.5, 1)
    assert sizes == [(40, 4)] * 2 + [(35, 5)] * 2


class Watching(Recorder):
    """Keeps a heal as a run does, and notes what could be looked at on its way."""

    def __init__(self, path):
        self.folder = Folder(path, again=path.exists())
        self.seen = []
        self.live = Live(self.folder, self.look)

    def look(self):
        name = f"{layout.steps_so_far(0)}.parquet"
        self.seen.append(pl.read_parquet(self.folder.path / name))

    def step(self, row):
        self.live.step(row)

    def save(self, name, tensors, **note):
        self.live.write()
        self.folder.tensors(f"{layout.work(0)}/{name}", tensors, **note)

    def saved(self, name):
        return self.folder.latest(f"{layout.work(0)}/{name}")

    def steps(self, table):
        self.course = table


@pytest.mark.parametrize(("pace", "looks"), [(0.0, [1]), (4.0, [1, 4, 7])])
def check_a_heal_is_seen_while_it_goes_on(small, tmp_path, monkeypatch, pace, looks):
    """After its first step and then once in a while; also of one that was cut off: what it goes on
    from is there to see again, and no more, whatever time a step took before."""
    fields = {"epochs": 3, "step_rows": 2, "batch": 2, "lr": 1e-2}
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    s, run = small(**fields), Watching(tmp_path / "run")
    step = run.step

    def ticking(row):
        step(row)
        clock[0] += 4.0

    run.step = ticking
    run.live.begin(0)
    heal(s.model, completions(8), s.cfg, 0, run)
    assert [len(x) for x in run.seen] == [1, 4, 7, 10] and len(run.course) == 12
    for table in run.seen:
        assert table.equals(run.course.head(len(table))) and table.schema == STEPS

    cut, s = Watching(tmp_path / "cut"), small(**fields)

    def stopping(row):
        cut.live.step(row)
        clock[0] += pace
        if row["step"] == 6:
            raise KeyboardInterrupt

    cut.step = stopping
    cut.live.begin(0)
    with pytest.raises(KeyboardInterrupt):
        heal(s.model, completions(8), s.cfg, 0, cut)
    assert [len(x) for x in cut.seen] == looks
    cut.folder.close()
    again = Watching(tmp_path / "cut")
    again.live.begin(0)
    heal(s.model, completions(8), s.cfg, 0, again)
    assert [len(x) for x in again.seen] == [max(4, looks[-1])]  # an epoch has 4 steps
    assert again.seen[0].equals(run.course.head(len(again.seen[0])))
    assert again.course.equals(run.course)


def check_another_rank_writes_no_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "own", lambda: 1)
    one = Live(Folder(tmp_path / "run"), lambda: pytest.fail("nobody looks there"))
    one.begin(0)
    one.step(dict.fromkeys(STEPS, 0))
    one.write()
    assert not list(tmp_path.rglob("*.parquet"))
