"""The path that real runs take, through the command line, with types checked."""

import json
import subprocess

import polars as pl
import pytest

from steerloop.checks.fast_dev_run import command
from steerloop.checks.small import WINDOW, save_small

LESS = ("--max_contexts", "4", "--dose_prompts", "2", "--n_prompts", "2", "--n_keep", "4",
        "--walk_rows", "2", "--max_new_tokens", "12", "--every", "25", "--said_pairs", "2",
        "--said_prompts", "3", "--said_tokens", "8")  # fmt: skip


@pytest.mark.long
def check_two_rounds_along_the_path_of_real_runs(tmp_path):
    model = save_small(tmp_path / "gemma-3-random", depth=8)
    runs = tmp_path / "runs"
    ended = subprocess.run(command(model, ["--runs", str(runs), *LESS]), capture_output=True,
                           text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    (run,) = (x for x in runs.iterdir() if (x / "config.json").is_file())
    cfg = json.loads((run / "config.json").read_text())["config"]
    assert (cfg["tiny"], cfg["quant"], cfg["attn"]) == (True, "nf4", "auto")
    assert cfg["think_tokens"] > WINDOW and json.loads((run / "summary.json").read_text())["ended"]
    rows = pl.read_parquet(run / "rounds/01/completions.parquet")
    assert rows["prompt_ids"].list.len().min() > WINDOW
