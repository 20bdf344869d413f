"""Each teacher is what it says: what a student is healed on was sampled from that one, all else
being the same; and a heal starts from what the caller says."""

import json
from dataclasses import replace

import polars as pl
import pytest
import torch
from loguru import logger
from safetensors.torch import load_file

from steerloop import UserError
from steerloop.checks.small import data_files, short_config, small_config
from steerloop.config import Config
from steerloop.heal import heal
from steerloop.healing.fresh import forget
from steerloop.lora import fold
from steerloop.model import load
from steerloop.report.run import sight_of
from steerloop.sample import jobs, sample
from steerloop.sight.nulls import nulls
from steerloop.steer import extract
from steerloop.texts.data import read_data
from steerloop.train import train


@pytest.fixture
def taught(folders, tmp_path):
    """--teacher → config and folder of a run of one round, and its rows."""
    def run(teacher, **fields):
        cfg = small_config(folders(), quant="none", teacher=teacher)
        cfg = short_config(tmp_path, cfg, teacher, rounds=1, **fields)
        path = train(cfg)
        return cfg, path, pl.read_parquet(path / "rounds/00/completions.parquet")
    return run


@pytest.mark.parametrize("name", ["base", pytest.param("prompt", marks=pytest.mark.long)])
def check_an_unsteered_teacher_is_the_base_itself(taught, name):
    """Bit for bit its own sampling, at dose 0; of a prompted one under the persona texts, which the
    rows that are healed on do not carry."""
    cfg, path, rows = taught(name)
    model, data = load(cfg), read_data(cfg)
    asked = jobs(model, data.prompts, [0.0] * len(cfg.multiples))
    plain = {i: model.render(x) for i, x in enumerate(data.prompts)}
    assert set(rows["dose"]) == {0.0} and rows["multiple"].n_unique() > 1
    for row in rows.rows(named=True):
        told = data.pairs[row["prompt_id"] % len(data.pairs)][0] if name == "prompt" else ""
        key = asked.filter(prompt_id=row["prompt_id"], multiple=row["multiple"]).with_columns(
            copy=pl.lit(row["copy"], pl.Int64),
            prompt_ids=pl.Series([model.render(row["prompt"], told)]))
        drawn = [sample(model, key, {}, cfg, f"0|{x}")["completion_ids"][0].to_list()
                 for x in ("walk", "sample")]
        assert row["completion_ids"] in drawn
        assert row["prompt_ids"] == plain[row["prompt_id"]]
    assert json.loads((path / "config.json").read_text())["config"]["teacher"] == name
    events = [json.loads(x) for x in (path / "events.jsonl").read_text().splitlines()]
    (seen,) = (x for x in events if x["stage"] == "evaluate" and x["state"] == "steered")
    base = next(x for x in events if x["stage"] == "evaluate" and x["state"] == "base")
    spoke = pl.read_parquet(path / "rounds/00/diary.parquet").partition_by("state", as_dict=True)
    texts = [spoke[x,]["text"].to_list() for x in ("base", "steered")]
    assert (texts[0] == texts[1]) == (name == "base")  # the diary's teacher is prompted, too
    assert seen["dose"] == 0.0 and (seen["measures"] == base["measures"]) == (name == "base")


@pytest.mark.long
def check_a_null_teacher_is_steered_by_a_null_of_u0(taught):
    cfg, path, rows = taught("null", u0=True)
    model, data = load(cfg), read_data(cfg)
    with torch.no_grad():
        vector = extract(model, data, replace(cfg, teacher="vector"))
        (null,) = nulls(model, data, cfg, vector, 1)
    kept = load_file(path / "rounds/00/vector.safetensors")
    for block, x in null.items():
        (mine,) = (y for k, y in kept.items() if str(block) in k)
        assert torch.equal(mine, x) and abs(x @ vector[block]) < 1e-4 * x.norm() * (
            vector[block].norm())
    assert rows["dose"].max() > 0
    assert sight_of(path)["verdict"] == "off" and "--teacher vector" in sight_of(path)["why"]


def check_another_packs_vector_steers_where_it_is_named(taught, tmp_path):
    (other := tmp_path / "other").mkdir()
    data_files(other)
    text = (other / "persona.toml").read_text().replace("kind", "curt")
    (other / "trait.toml").write_text(text)
    cfg, path, _ = taught(str(other))
    assert cfg.teacher == "pack" and cfg.guide == str(other / "trait.toml")
    data = read_data(cfg)
    ((weight, pairs),) = data.guide
    assert weight == 1 and pairs != data.pairs and "curt" in pairs[0][0]
    with torch.no_grad():
        wanted = extract(load(cfg), replace(data, pairs=pairs, guide=[]),
                         replace(cfg, teacher="vector", guide=""))
    for x in load_file(path / "rounds/00/vector.safetensors").values():
        assert any(torch.equal(x, y) for y in wanted.values())
    (other / "trait.toml").write_text(text.replace("curt", "rude"))
    with pytest.raises(UserError, match="guide"):
        train(replace(cfg, resume=str(path), rounds=2))


@pytest.mark.parametrize("fields, why", [
    ({"teacher": "nobody"}, "--teacher nobody: .*none of ours"),
    ({"teacher": "pack"}, "--guide goes with"),
    ({"guide": "x.toml"}, "--guide goes with")])
def check_a_teacher_that_is_none_is_refused(fields, why):
    with pytest.raises(UserError, match=why):
        Config(**fields)


def check_a_heal_starts_from_what_the_caller_says(small, tmp_path):
    """A Δ that is not folded is thrown away aloud; a model that forgets is the base, bit for bit,
    and heals as it did first."""
    s = small()
    cfg = short_config(tmp_path, s.cfg, barrier="nll")
    data, said = read_data(cfg), []
    with torch.no_grad():
        base = s.model.hidden(s.model.batch([[5, 6, 7]], [[8, 9]]))
        asked = jobs(s.model, data.prompts, [0.0])
        rows = sample(s.model, asked, {}, cfg, "0|sample").with_row_index("row")
    sink = logger.add(said.append, level="WARNING", format="{message}")
    _, first = heal(s.model, rows, cfg, 0)
    assert not said
    _, second = heal(s.model, rows, cfg, 0)
    assert any("healed and not folded" in x for x in said)
    assert all(torch.equal(first[k], second[k]) for k in first)
    fold(s.model.layers, s.model.gates, second)
    said.clear()
    forget(s.model.layers, s.model.gates)
    with torch.no_grad():
        assert torch.equal(s.model.hidden(s.model.batch([[5, 6, 7]], [[8, 9]])), base)
    _, third = heal(s.model, rows, cfg, 0)
    logger.remove(sink)
    assert not said and all(torch.equal(first[k], third[k]) for k in first)
