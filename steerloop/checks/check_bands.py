"""`--steer_band auto`: candidate bands cost one KL, are read alike, and the best one is steered."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from steerloop import UserError
from steerloop.checks.small import Small, data_files, short_config, small_config
from steerloop.config import Config, parse
from steerloop.export.student import read_vector
from steerloop.readouts.said import margins, spoken
from steerloop.report.sight import UNSPECIFIC
from steerloop.sample import jobs
from steerloop.sight import bands, settled
from steerloop.sight.bands import candidates
from steerloop.sight.nulls import top_kls
from steerloop.steer import extract
from steerloop.texts.data import read_data
from steerloop.train import train

CPU = torch.device("cpu")
AUTO = {"steer_blocks": [], "steer_band": []}


def check_auto_is_a_band_of_its_own():
    assert parse(["--steer_band", "auto"]).steer_band == []
    assert parse(["--steer_band", "auto"]).steer_blocks == [], "it beats the preset's list"
    for argv in (["--steer_band", "auto", ".5"], ["--steer_band", "automatic"],
                 ["--lora_band", "auto"], ["--steer_band", "auto", "--steer_blocks", "1"]):
        with pytest.raises((SystemExit, UserError)):
            parse(argv)


def check_candidates_of_any_depth():
    """Each once, within the model, and none that training cannot reach."""
    for depth in range(3, 90):
        for lora in ([0.2, 0.8], [0.5, 0.9]):
            found = candidates(Config(lora_band=lora), depth)
            least = min(i for i in range(depth) if lora[0] <= i / depth <= lora[1])
            assert found and len(found) == len({tuple(x) for x in found})
            assert all(set(x) <= set(range(depth)) and max(x) >= least for x in found)


@torch.no_grad()
def check_bands_cost_the_same_and_are_what_each_alone_comes_to(folders, tmp_path):
    cfg = small_config(folders(depth=10), **data_files(tmp_path), quant="none", said_tokens=6,
                       target_kl=0.02, **AUTO)
    s, data = Small(cfg), read_data(cfg)
    table = bands(s.model, data, cfg)
    assert len(table) > 3 and table["response"].is_sorted(descending=True)
    assert settled(cfg, table).steer_blocks == table["blocks"][0].to_list()
    asked = jobs(s.model, data.prompts, [0.0])
    with pytest.raises(UserError, match="settled by a run"):
        extract(s.model, data, cfg)
    assert [1] not in table["blocks"].to_list(), "there the persona is out of sight"
    for blocks, dose, kl, response in table.select("blocks", "dose", "kl", "response").rows():
        vector = extract(s.model, data, replace(cfg, steer_blocks=blocks))
        reached = top_kls(s.model, asked, cfg, [vector], [dose])
        assert reached[0] == pytest.approx(kl, rel=0.02)
        assert cfg.target_kl / 2 <= kl <= 2 * cfg.target_kl
        sides = []
        for sign in (1, -1):
            rows = jobs(s.model, data.prompts, [sign * dose])
            answers = spoken(s.model, rows, vector, cfg)
            sides.append(pl.Series(margins(s.model, answers, data.pairs, cfg)))
        assert response == pytest.approx((sides[0] - sides[1]).mean() / 2, abs=2e-3)


@pytest.mark.long
def check_a_run_settles_its_band_once(folders, tmp_path, monkeypatch):
    """The best band is steered from the first round on, and a run that goes on asks no more."""
    cfg = short_config(tmp_path, small_config(folders(depth=10), quant="none", said_tokens=6),
                       **AUTO)
    run = train(replace(cfg, rounds=1))
    table = pl.read_parquet(run / "rounds/00/bands.parquet")
    monkeypatch.setattr("steerloop.evidence.journal.bands", lambda *_: pytest.fail("asked again"))
    train(replace(cfg, resume=str(run)))
    for round in (1, 2):
        assert list(read_vector(run, round, CPU)) == table["blocks"][0].to_list()
    assert "Candidate bands at one KL" in (run / "verdicts.md").read_text()


def check_unspecific_is_not_said_before_other_bands_were_tried(folders, tmp_path, monkeypatch):
    cfg = short_config(tmp_path, small_config(folders(), quant="none", said_tokens=6),
                       rounds=1, u0=True)
    found = {"verdict": UNSPECIFIC, "headline": "", "why": "noise", "readouts": []}
    monkeypatch.setattr("steerloop.evidence.journal.verdict", lambda *_: found)
    run = train(cfg)
    assert "Candidate bands at one KL" in (run / "verdicts.md").read_text()
