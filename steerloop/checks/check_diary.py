"""What people read is what the models say: the diary's answers by a slow twin, each under its own
gates, and nothing else of the run disturbed."""

import polars as pl
import torch

from steerloop.checks.small import Small, data_files, small_config
from steerloop.checks.twins import row_logits
from steerloop.evidence.diary import diary
from steerloop.texts.data import read_data

M = 4  # tokens of an answer


def greedy(hf, prompt, stops, m, additions=None):
    """The most probable answer, one token and one whole forward pass at a time."""
    said = []
    while len(said) < m and not (said and said[-1] in stops):
        said.append(int(row_logits(hf, prompt + said, additions)[-1].argmax()))
    return said


@torch.no_grad()
def check_the_diary_is_what_each_model_says(folders, tmp_path):
    s = Small(small_config(folders(), quant="none", **data_files(tmp_path), max_new_tokens=M))
    data = read_data(s.cfg)
    bare, vector = s.bare(), s.vector(size=2.0)
    for round in (0, 1):
        s.stir(seed=round)
        s.fold()
        before = torch.get_rng_state()
        rows = diary(s.model, data, s.cfg, vector, 0.5 + round, round)
        assert torch.equal(before, torch.get_rng_state()) and s.model.gates.value is None
        states = ["base"] * (round == 0) + ["steered", "healed"]
        asked = [*data.prompts[:3], data.mundane["prompt"][0]]
        assert rows["state"].to_list() == [x for x in states for _ in asked]
        assert rows["prompt"].to_list() == asked * len(states)
        assert rows["kind"].to_list() == ["loop", "loop", "loop", "ordinary"] * len(states)
        for row in rows.iter_rows(named=True):
            assert row["dose"] == (0.5 + round if row["state"] == "steered" else 0)
            gates = {"base": s.model.gates.before(0), "steered": s.model.gates.before(round),
                     "healed": None}[row["state"]]
            hf = bare if row["state"] == "base" else s.model.hf
            added = {b: row["dose"] * v for b, v in vector.items()}
            with s.model.gates(gates):
                wanted = greedy(hf, s.model.render(row["prompt"]), s.model.stop_ids, M,
                                added if row["dose"] else None)
            assert row["text"] == s.model.to_text(wanted)
            assert row["cut"] is (wanted[-1] not in s.model.stop_ids)
        texts = rows.group_by("state").agg(pl.col("text").sort())
        assert texts["text"].n_unique() == len(states), "states that cannot be told apart"
