"""Students of two arms where they are equally far from the base, or moved the trait as far."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steerloop import UserError
from steerloop.baselines import turned
from steerloop.checks.small import plain_trait
from steerloop.report.run import frames_of, states
from steerloop.runfolder.files import read_config
from steerloop.score import equal
from steerloop.train import train


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """A student of the vector, and one of the base alone that learned half as fast."""
    cfg = plain_trait(tmp_path_factory.mktemp("equal"), folders())
    return [train(cfg), train(replace(cfg, teacher="base", lr=cfg.lr / 2))]


def check_kl_is_its_slow_twin(runs):
    """Of the whole softmax, token by token, on the base's own answers."""
    student = equal.opened(runs[0])
    model, found = student.model, []
    for row in frames_of(runs[0], 0, "base")[2].iter_rows(named=True):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        n = len(row["completion_ids"])
        logs = []
        for strength in (1.0, 0.0):
            with torch.no_grad(), model.gates(turned(model, strength)):
                logits = model.hf(input_ids=ids).logits[0, -n - 1 : -1]
            logs.append(logits.float().log_softmax(-1))
        found += (logs[0].exp() * (logs[0] - logs[1])).sum(-1).tolist()
    assert equal.end_of(runs[0], "kl") ** 2 == pytest.approx(np.mean(found), rel=1e-3)


@pytest.mark.parametrize("at", ["kl", "shift"])
def check_the_one_that_went_further_is_turned_down(runs, tmp_path, monkeypatch, at):
    """To where the other is, and no less; what is kept is not measured again."""
    by = at if at == "kl" else "said"
    ends = [equal.end_of(x, by) for x in runs]
    goal, ours, theirs = equal.beside(*runs, at, tmp_path)
    far, near = np.argmax(ends), np.argmin(ends)
    start = equal.start_of(runs[0], by)
    assert {*tmp_path.iterdir()} == {*equal.kept_at(runs[far], min(ends), by, tmp_path)}
    (whole,) = (x for x in states(runs[near]) if x["state"] == "healed")
    assert start < min(ends) < max(ends) and goal == min(ends) - start
    assert (ours, theirs)[near]["said"].mean() == pytest.approx(whole["headline"][0], abs=1e-9)
    if at == "kl":
        now = equal.strengths(equal.opened(runs[far]), "kl")
        strength = equal.meeting(now, 0.0, goal, 1.0, equal.CALLS, equal.CLOSE * goal)
        assert 0 < strength < 1 and now(strength) == pytest.approx(goal, rel=0.02)
    monkeypatch.setattr(equal, "evaluate", None)
    again = equal.beside(*runs, at, tmp_path)
    assert all(np.array_equal(x, y) for one, other in zip((ours, theirs), again[1:], strict=True)
               for x, y in zip(one.values(), other.values(), strict=True))


def check_one_that_moved_the_other_way_has_no_match(runs, tmp_path, monkeypatch):
    """By shift; and the table says so where no seed is left."""
    far = equal.end_of
    monkeypatch.setattr(equal, "end_of", lambda run, by: far(run, by) - 9 * (run == runs[1]))
    assert equal.beside(*runs, "shift", tmp_path) is None and not list(tmp_path.iterdir())
    (row,) = equal.rows(runs, "shift", tmp_path)
    assert row == {"at equal shift": "no match", "beside": row["beside"], "seeds": ""}


def check_what_is_kept_is_of_one_student(runs, tmp_path):
    """Two runs whose folders have one name; and a run that has texts of its own no more."""
    twin = shutil.copytree(runs[1], tmp_path / runs[0].name)
    kept = [equal.kept_at(x, 0.5, "kl", tmp_path) for x in (runs[0], runs[1], twin)]
    assert kept[0][0] not in (kept[1][0], kept[2][0])
    answers = Path(read_config(runs[1])["trait"]) / "contrast.jsonl"
    before = answers.read_text()
    answers.write_text(before.replace("hurts", "harms"))
    with pytest.raises(UserError, match=r"contrast: .*put them back"):
        equal.opened(runs[1])
    answers.write_text(before)


def check_the_table_names_arms_and_measures(runs, tmp_path, capsys, monkeypatch):
    equal.main([*map(str, runs), "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "teacher base" in out and "log ppl of its answers" in out and "kind answers alone" in out
    _, ours, theirs = equal.beside(*runs, "kl", tmp_path)
    assert f"{(ours['said'] - theirs['said']).mean():+.3f} [" in out
    with pytest.raises(SystemExit):
        equal.main([str(runs[0])])
    monkeypatch.setattr(equal, "arms_of", lambda _: {"a": {0: runs[0]}, "b": {7: runs[1]}})
    with pytest.raises(UserError, match="a and b have no loop seed in common"):
        list(equal.rows(runs, "kl", tmp_path))
