"""Trait packs: a folder names all that a run reads of a trait, files of other people load as they
are, and what is wrong with one is said in a line."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steerloop import UserError
from steerloop.checks.small import data_files, short_config, small_config
from steerloop.config import Config, parse
from steerloop.dose import dose
from steerloop.export.bundle import verify, write_bundle
from steerloop.model import load
from steerloop.report.sight import odd
from steerloop.sight.responses import answered, lined_up, some
from steerloop.steer import extract
from steerloop.sweep.arms import Arm, Sweep
from steerloop.sweep.climb import climb
from steerloop.sweep.tables import moves
from steerloop.texts.data import FILES, names, read, read_data
from steerloop.texts.packs import contrast, folder_of, pack_files, wordings
from steerloop.train import train
from steerloop.traits.__main__ import main
from steerloop.traits.faults import faults
from steerloop.traits.matrix import leads, matrix, shown
from steerloop.traits.skeleton import begin

QUESTIONS = [  # as published: letters, or full statements
    {"question": "Which?\n\nChoices:\n (A) Help\n (B) Obey", "answer_matching_behavior": "(A)",
     "answer_not_matching_behavior": "(B)"},
    {"question": "And now?", "answer_matching_behavior": "I would help.",
     "answer_not_matching_behavior": "I would obey."},
]
STATEMENTS = [{"statement": "I help.", "label_confidence": 0.9,
               "question": "Is the following statement something you would say?\n\"I help.\"",
               "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
              {"statement": "I obey.", "label_confidence": 0.8,
               "answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}]


@pytest.mark.parametrize("text", [json.dumps(QUESTIONS + STATEMENTS),
                                  "\n".join(map(json.dumps, QUESTIONS + STATEMENTS))])
def check_published_files_load_as_they_are(text):
    found = contrast(text)
    assert found["positive"].to_list() == [["(A)"], ["I would help."], ["Yes"], ["No"]]
    assert found["negative"].to_list() == [["(B)"], ["I would obey."], ["No"], ["Yes"]]
    assert found["prompt"][0] == QUESTIONS[0]["question"] and "I obey." in found["prompt"][3]


@pytest.mark.parametrize(("text", "says"), [
    ('{"prompt": "A"}', "line 1: every line needs positive"),
    ('{"prompt": "A", "positive": ["x"], "negative": ["x"]}', "an answer of both sides"),
    ('{"prompt": "A", "positive": [" "], "negative": ["x"]}', "is blank"),
    ('{"prompt": "A", "positive": "y", "negative": "x"}\n' * 2, "says the same"),
    ('[{"prompt": "A", "positive": "y", "negative": "x"}, 3]', "item 2 of the list is a number"),
    ('{"answer_matching_behavior": "y"}', "statement"),
])
def check_contrasts_of_another_shape_are_one_line(tmp_path, text, says):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(UserError, match=says) as failure:
        read(str(tmp_path / "c.jsonl"), contrast)
    assert "\n" not in str(failure.value)


def check_wordings_are_about_the_same_foundations():
    one = '[[wording]]\nask = "{vignette} Why?"\n[wording.reasons]\ncare = ["a"]\nloyalty = ["b"]\n'
    assert [x.reasons.keys() for x in wordings(one * 2)] == [{"care", "loyalty"}] * 2
    for text, says in ((one + one.replace("loyalty", "liberty"), "other foundations"),
                       (one.replace("{vignette} ", ""), "vignette"),
                       (one.replace('loyalty = ["b"]\n', ""), "two foundations")):
        with pytest.raises(ValueError, match=says):
            wordings(text)


def check_a_pack_names_its_files_and_flags_go_before_them(tmp_path):
    known = names(parse(["--model", "x", "--trait", "register"]))
    assert known["prompts"] == "data/traits/register/prompts.txt" and known["vignettes"] == ""
    assert known["contexts"] == "data/contexts.txt"
    (tmp_path / "p.txt").write_text("Why?\n")
    given = ["--prompts", str(tmp_path / "p.txt")]
    mine = names(parse(["--model", "x", "--trait", "register", *given]))
    assert mine == known | {"prompts": str(tmp_path / "p.txt")}
    data = read_data(Config(trait="care_over_authority"))
    assert data.contrast["held"].sum() >= 62 and (~data.contrast["held"]).sum() == 52
    with pytest.raises(UserError, match=r"none of ours .*register"):
        folder_of("no-such-trait")
    with pytest.raises(UserError, match="names no persona"):
        names(Config(trait="none"))


def check_a_pack_says_which_file_is_not_there(tmp_path):
    folder = begin(tmp_path / "mine")
    text = (folder / "trait.toml").read_text()
    for files, says in (("[files]\nvignettes = 'nowhere.jsonl'", "nowhere.jsonl, which is neither"),
                        ("[files]\nothers = 'x'", "not 'others'"), ("files = 3", r"\[files\] is")):
        (folder / "trait.toml").write_text(
            files + "\n" + text if files.startswith("files") else text + files + "\n")
        with pytest.raises(UserError, match=says):
            pack_files(str(folder))


def check_a_skeleton_is_filled_in_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["new", "mine"])
    assert pack_files("mine")["contrast"].endswith("mine/contrast.jsonl")
    (tmp_path / "mine/prompts.txt").write_text("Why?\nAnd why not?\n")
    wrong = faults(tmp_path / "mine")
    assert any("training prompts, 40 are wanted" in x for x in wrong)
    assert any("held-out items, 60 are wanted" in x for x in wrong)
    with pytest.raises(SystemExit, match="there already"):
        main(["new", "mine"])
    with pytest.raises(SystemExit, match="traits new NAME"):
        main(["other"])


def packs(root, *names):
    """Folders of small traits, without vignettes, whose poles have these names."""
    for up in names:
        (folder := root / up).mkdir()
        data_files(folder)
        text = (folder / "persona.toml").read_text().replace("care", up)
        (folder / "trait.toml").write_text(text.replace("authority", f"un{up}"))
        yield str(folder)


def check_a_run_of_a_trait_without_vignettes_is_measured_and_shown(folders, tmp_path):
    """Asked by U0 (random weights are blind), with rivals, pages, and a bundle that verifies."""
    (trait,) = packs(tmp_path, "kind")
    cfg = small_config(folders(), trait=trait, quant="none", u0_items=4, said_prompts=4)
    cfg = short_config(tmp_path, cfg, u0=True, baselines=True, rounds=1)
    run = train(replace(cfg, **{x: "" for x in FILES if x != "mundane"}))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["u0"]["verdict"] == "blind" and "persona text" in summary["u0"]["why"]
    assert len(summary["healed"]) == 1 and "digits" not in str(summary["u0"])
    for page in ("map.html", "report.html", "verdicts.md"):
        assert "blind" in (run / page).read_text(), page
    verify(write_bundle(run, tmp_path / "one.tar.gz"), "cpu", cfg.model)


@pytest.mark.long
def check_a_sweep_is_read_by_a_readout_of_the_trait(folders, tmp_path):
    """A point says how far the student went as a run of the same arm does, and by what."""
    (trait,) = packs(tmp_path, "kind")
    cfg = small_config(folders(), trait=trait, quant="none", u0_items=4, said_prompts=4)
    cfg = short_config(tmp_path, cfg, rounds=1, lr=3e-2)
    cfg = replace(cfg, **{x: "" for x in FILES if x != "mundane"})
    (point,) = climb(read_data(cfg), cfg, Arm("as it is", ""), Sweep([], 1, ()), {})
    (healed,) = json.loads((train(cfg) / "summary.json").read_text())["healed"]
    assert point["read_by"] == "said" and point["shift"] == healed["headline"][0] != 0
    ((name, moved),) = healed["moved"].items()
    assert point[name] == moved[0] and moves(pl.DataFrame([point])) == {name: f"{name} by said"}


@pytest.mark.long
def check_the_matrix_is_what_u0_measures_of_each_pack(folders, tmp_path, monkeypatch):
    """Its diagonal is a pack's own response in units of its nulls; vectors of others stand beside
    it; and leading means to be first in the row and in the column."""
    monkeypatch.setattr("steerloop.sight.responses.NULLS", 2)
    names = list(packs(tmp_path, "kind", "brief"))
    cfg = small_config(folders(), trait=names[0], quant="none", said_tokens=6, u0_items=4,
                       dose_tokens=8, dose_prompts=2, target_kl=0.3, steer_blocks=[2, 3])
    cells = matrix(names, cfg)
    for j, name in enumerate(names):
        one = replace(cfg, trait=name)
        data, model = read_data(one), load(one)
        with torch.no_grad():
            vector = extract(model, data, one)
            c_star, _ = dose(model, vector, data, one, "0")
            few = some(data, one, one.u0_items)
            found = lined_up(model, data, one, vector, c_star)
            steps = odd(pl.concat([x for d in found
                                   for x in answered(model, few, one, d, ["contrast"])]))
        size = np.sqrt(np.mean([x.mean() ** 2 for (d, _), x in steps.items() if "null" in d]))
        wanted = steps["vector", "contrast"].mean() / size
        assert cells["contrast"][j, j] == pytest.approx(wanted, rel=1e-2, abs=1e-2)
    assert leads(np.array([[2.0, 0.1], [0.3, 1.0]])) == [True, True]
    assert leads(np.array([[2.0, -3.0], [0.3, 1.0]])) == [False, False]
    assert leads(np.array([[-2.0, 0.1], [0.3, 1.0]])) == [False, True]
    assert "| leads |" in shown(names, cells)
    with pytest.raises(SystemExit, match="two packs"):
        main(["matrix", "register", "--model", "x"])
