"""The rows that go through a model at once: what is counted of the memory is what is held, the
numbers hang on its size alone, are kept with the run, and leave the gradient as it is."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from steerloop import lora
from steerloop.barrier import Barrier
from steerloop.checks.check_bench import Peak
from steerloop.checks.families import DENSE, HYBRID, save_family
from steerloop.checks.small import Small, short_config, short_run, small_config, token_batch
from steerloop.config import Config, parse
from steerloop.heal import step_loss
from steerloop.kernels.batch import Row
from steerloop.loading import room
from steerloop.loading.room import Need, activations, fitting, needs, saved
from steerloop.runfolder.events import event_line, read_events
from steerloop.runfolder.files import FREE, read_config, read_recorded, sealed
from steerloop.score import bare

GB = 10**9
LEFT = {"batch": 0, "batch_rows": 0}  # to the memory


SAMPLE = [("gemma3", "auto"), ("gemma3", "eager"), ("qwen3.5", "auto")]
COUNTED = [pytest.param(*x, marks=[pytest.mark.long] * (x not in SAMPLE))
           for x in product([*DENSE, *HYBRID], ["auto", "eager"])]


@pytest.mark.parametrize(("family", "attn"), COUNTED)
def check_kept_activations_are_counted_whatever_the_rows(tmp_path, family, attn):
    """From short passes, for many rows of many tokens. Windows and blocks of linear attention make
    it go in steps, so that a little less may be kept."""
    s = Small(small_config(save_family(tmp_path, family), quant="none", attn=attn))
    whole, row = activations(s.model.hf, 320)
    assert row > 0
    assert 0.98 < (whole + 3 * row) / saved(s.model.hf, 3, 320) < 1.08
    assert not any(x.grad is not None for x in s.live())


def check_an_optimiser_step_takes_what_a_row_of_its_micro_batch_is_counted_at(folders):
    """The most that is alive, at 6 rows at once less that at 2."""
    s = Small(small_config(folders(), quant="none"))
    lora.open_round(s.model.layers, s.model.gates, 0)
    prompt, completion = token_batch(1, 100)[0].tolist(), token_batch(1, 4)[0].tolist()
    rows = [Row(prompt, completion, None, i) for i in range(6)]
    peaks = []
    for size in (2, 6):
        with torch.enable_grad(), Peak() as peak:
            step_loss(s.model, rows, Barrier("nll", "rmse", 0.0, 0.0), size)
        peaks.append(peak.most)
    _, row = activations(s.model.hf, 104)
    assert 0.8 < (peaks[1] - peaks[0]) / (4 * row) < 1.3


def check_what_is_held_whatever_the_rows_is_counted(folders):
    for quant in ("none", "nf4"):
        s = Small(cfg := small_config(folders(), quant=quant))
        heal, sample = needs(s.model.hf, s.model.layers, cfg, 24 * GB)
        held = {x.data_ptr(): x.nbytes for x in s.model.hf.state_dict().values()}
        live = sum(x.nbytes for x in s.live())
        counted = sum(heal.whole[x] for x in ("base", "folded stack")) + live
        assert counted == pytest.approx(sum(held.values()), rel=0.02)
        assert heal.whole["live factors, gradients, Adam"] == 4 * live
        assert (heal.whole["weights unpacked to train"] > 0) is (quant == "nf4")
        assert sample.whole["base"] == heal.whole["base"]
        tokens = room.PROMPT + cfg.max_new_tokens
        cache = 2 * 4 * tokens * s.model.hf.config.num_key_value_heads * s.model.hf.config.head_dim
        assert sample.row["key-value cache"] == cache * (s.model.hf.config.num_hidden_layers + 1)


def check_checkpointing_leaves_room_for_more_rows(folders):
    s = Small(cfg := small_config(folders(), quant="none"))
    counts = [needs(s.model.hf, s.model.layers, replace(cfg, checkpointing=x), GB)[0]
              for x in (False, True)]
    assert sum(counts[1].row.values()) < 0.5 * sum(counts[0].row.values())


def check_a_step_is_cut_evenly_into_what_fits():
    def fits(heal, step_rows=6, gpu=True):
        need = Need({"base": 4 * GB}, {"activations": GB})
        used = room.USED_GPU if gpu else room.USED
        return fitting((need, need), step_rows, round((4 + heal) * GB / used) + 9, gpu)[0]

    assert [fits(x) for x in (0.1, 1, 2, 3, 4, 5, 6, 9)] == [1, 1, 2, 3, 3, 3, 6, 6]
    assert fits(5, 12) == 4 and fits(5, 12, gpu=False) == 4 and fits(100, 2) == 2


def check_rows_of_a_batch_are_those_that_fit_up_to_a_limit():
    need = Need({}, {"cache": GB})
    sizes = [fitting((need, need), 6, x * GB, gpu)[1] for gpu in (False, True)
             for x in (1, 40, 1000)]
    assert sizes == [1, 20, room.MOST, 1, 30, room.MOST_GPU]


def check_what_is_left_open_is_set_when_a_model_is_loaded(folders, monkeypatch):
    """By the size of the memory alone; a number that was given stays."""
    found = {}
    for size in (0.0005, 64, 64):
        monkeypatch.setattr(room, "memory", lambda device, size=size: int(size * GB))
        s = Small(small_config(folders(), quant="none", **LEFT))
        found.setdefault(size, []).append((s.cfg.batch, s.cfg.batch_rows))
    assert found == {0.0005: [(1, 1)], 64: [(6, room.MOST)] * 2}
    given = Small(small_config(folders(), quant="none", batch=2, batch_rows=0)).cfg
    assert (given.batch, given.batch_rows) == (2, room.MOST)
    assert Config().batch == Config().batch_rows == 0, "the defaults"
    bare(cfg := small_config(folders(), quant="none", **LEFT))
    assert cfg.batch_rows == room.MOST


def check_a_run_keeps_its_numbers_where_it_goes_on(folders, tmp_path, monkeypatch):
    cfg = small_config(folders(), quant="none")
    short = short_config(tmp_path, cfg)
    run = short_run(tmp_path, cfg, step_rows=2, rounds=1, **LEFT)
    kept = json.loads((run / "config.json").read_text())["config"]
    assert (kept["batch"], kept["batch_rows"], kept["step_rows"]) == (2, room.MOST, 2)
    monkeypatch.setattr(room, "memory", lambda device: GB // 2000)
    elsewhere = Small(parse(["--resume", str(run)])).cfg
    assert (elsewhere.batch, elsewhere.batch_rows) == (2, room.MOST)
    assert short.batch == 3


@pytest.mark.long
def check_a_config_that_counted_micro_batches_is_read(folders, tmp_path):
    """Their number times their rows was an optimiser step."""
    run = short_run(tmp_path, small_config(folders(), quant="none"), rounds=1)

    def aged(document):
        del document["config"]["step_rows"]
        document["config"] |= {"batch": 2, "accumulate": 5}
        document.pop("crc", None)
        return document

    known = aged(json.loads((run / "config.json").read_text()))
    (run / "config.json").write_text(sealed(known))
    events = read_events(run)
    for x in events:
        if x["stage"] == "config":
            aged(x["document"])
    (run / "events.jsonl").write_text("".join(map(event_line, events)))
    cfg, read = parse(["--resume", str(run)]), read_config(run)
    assert (cfg.batch, cfg.step_rows) == (read["batch"], read["step_rows"]) == (2, 10)
    assert "accumulate" not in read and read == read_recorded(run)["config"] | {
        k: read[k] for k in FREE}
