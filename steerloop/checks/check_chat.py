"""Talking to a student: what the dial says is what is heard, and ids travel."""

import os
import re
import sys
from dataclasses import replace

import pytest
import torch

from steerloop import UserError, chat
from steerloop.chat import Talk, answer, compare, prompt_ids, say
from steerloop.chat.__main__ import converse, main
from steerloop.checks.exported import made_run
from steerloop.checks.small import TEMPLATES, Small, small_config
from steerloop.cli.entry import Stopped
from steerloop.export.student import open_student, read_vector
from steerloop.kernels.decode import draws, pick
from steerloop.steer import steered
from steerloop.texts.printable import printable


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("chat"), small_config(folders(), quant="none"))


@pytest.fixture(scope="module")
def student(run):
    return open_student(run, "3")


@pytest.fixture
def talk(run, student):
    vector = read_vector(run, 1, torch.device("cpu"))
    return Talk(student, vector, 0.5, torch.ones(3), tokens=12, temperature=1.0)


def slow(talk, prompt, gates, dose):
    """One answer, token by token, no cache, no batch."""
    model, cfg, ids, out = talk.student.model, talk.student.cfg, list(prompt), []
    u = draws(f"{talk.seed}|chat|{len(talk.turns)}", talk.tokens)
    vector = talk.vector if dose else {}
    with torch.no_grad(), model.gates(gates), steered(model, vector, talk.c_star * dose):
        for x in u:
            logits = model.hf(input_ids=torch.tensor([ids + out])).logits[:, -1].float()
            out += pick(logits, x[None], talk.temperature, cfg.top_k, cfg.top_p).tolist()
            if out[-1] in model.stop_ids:
                break
    return out


def check_one_batch_answers_as_each_row_would_alone(talk, monkeypatch):
    """Rows leave at different times, the first before others: gates and doses stay with theirs."""
    monkeypatch.setattr(talk.student.model, "stop_ids", [1, 5, *range(6, 262, 3)])
    talk.tokens = 12
    rows = torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 0.5, 1], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
    doses = [0.0, 0.0, 1.0, 2.0, 0.0, 3.0]
    prompt, lengths = talk.student.model.render("Why?"), []
    for talk.seed in (0, 1):
        found = answer(talk, "Why?", rows, doses)
        assert found == [slow(talk, prompt, g, d) for g, d in zip(rows, doses, strict=True)]
        lengths.append([len(x) for x in found])
    assert any(x[0] < max(x) for x in lengths) and len({tuple(x) for x in lengths}) > 1, lengths


def check_compare_is_base_previous_and_student_under_the_dial(talk):
    talk.gates, talk.dose = torch.tensor([1.0, 0.5, 1.0]), 1.0
    found = dict(zip(("base", "previous", "dial"), compare(talk, "Why?"), strict=True))
    prompt = talk.student.model.render("Why?")
    for name, gates, dose in (("base", [0.0, 0, 0], 0.0), ("previous", [1, 0.5, 0], 1.0),
                              ("dial", [1, 0.5, 1], 1.0)):
        ids = slow(talk, prompt, torch.tensor(gates), dose)
        assert found[name] == talk.student.model.to_text(ids)
    assert not talk.context and not talk.turns
    assert say(talk, "Why?") == found["dial"]


def check_ids_travel_and_every_word_is_shown(talk):
    model, shown = talk.student.model, []
    first = say(talk, "Why?", shown.append)
    assert "".join(shown) == printable(first)
    (ids,) = answer(replace(talk, context=[], turns=[]), "Why?", talk.gates[None], [0.0])
    ids = ids[:-1] if ids[-1] in model.stop_ids else ids
    assert talk.context == model.render("Why?") + ids
    assert prompt_ids(talk, "And?")[: len(talk.context)] == talk.context


@pytest.mark.parametrize("template", ["system turn", "raises"])
def check_a_second_turn_is_what_the_template_writes(folders, template):
    model = Small(small_config(folders(template=template), quant="none")).model
    assert template in TEMPLATES
    ids = model.render("Hi") + model.to_ids("Yes.") + model.follow("Why, Hi?")
    turns = [("user", "Hi"), ("model", "Yes."), ("user", "Why, Hi?")]
    assert ids == model.tokenizer.apply_chat_template(
        [{"role": r, "content": x} for r, x in turns], add_generation_prompt=True,
        return_dict=False)


def piped(monkeypatch, capsys, run, *lines, flags=()):
    """What the command prints when those lines (bytes are no text) come through a pipe."""
    out, into = os.pipe()
    for line in lines:
        os.write(into, (line if isinstance(line, bytes) else line.encode()) + b"\n")
    os.close(into)
    with os.fdopen(out) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        main([str(run), "--round", "3", "--tokens", "10", "--temperature", "0", *flags])
    return capsys.readouterr().out


def check_a_script_through_a_pipe(monkeypatch, capsys, run, talk):
    said = piped(monkeypatch, capsys, run, "/gates 1 1 0.5", "/dose .5", "Why?", "/compare",
                 "/base", "/history", "/gates 1 2", "/dose x", "/nonsense", "/reset", "/history",
                 "/student", "/quit", "/dial")
    wanted = replace(talk, gates=torch.tensor([1, 1, 0.5]), dose=0.5, tokens=10, temperature=0.0)
    text, under = printable(say(wanted, "Why?")), "gates 1 1 0.5 · dose 0.5"
    assert said.startswith("gates 1 1 0.5 · dose 0 · temperature 0\ngates 1 1 0.5 · dose 0.5")
    assert f"\n{under}: {text}\nbase:     " in said and f"\n{under}: {text}\ngates 0 0 0" in said
    assert f"\nyou:      Why?\n{under}: {text}\nerror: " in said and "student" not in said
    for line in ("error: gates '1 2': give one number from -100 to 100, or one a round (3)",
                 "error: /dose takes one number from -100 to 100, not 'x'",
                 "error: there is no /nonsense", "forgotten\nempty\ngates 1 1 1 · dose 0"):
        assert line in said
    assert said.count("temperature 0") == 4 and "\x1b" not in said


def check_every_answer_is_under_the_name_of_its_dial(monkeypatch, capsys, run):
    said = piped(monkeypatch, capsys, run, "Hi", "/base", "Why?", "/gates 1 1 0", "/dose -1", "So?",
                 "/student", "Hm?", "/history", "/compare", "/reset", "/dial")
    mixed = " · the conversation so far was written under other dials"
    names = re.findall(r"^(student|base|gates 1 1 0 · dose -1): ", said, re.M)
    assert names[:4] == ["student", "base", "gates 1 1 0 · dose -1", "student"]
    assert f"gates 0 0 0 · dose 0 · temperature 0{mixed}" in said
    assert f"gates 1 1 1 · dose 0 · temperature 0{mixed}" in said  # back, but not all of it
    assert "\nbase (gates 0 0 0 · dose 0): " in said and "(all three after 3 turns" in said
    assert said.endswith("forgotten\ngates 1 1 1 · dose 0 · temperature 0\n")


def check_dials_take_the_same_numbers_as_options_and_as_commands(monkeypatch, capsys, run):
    """Below 0, above 1, in other notations; and what is no number on a dial."""
    for value in ("-1", "-1e-1", "100", "-100", "0", ".5"):
        said = piped(monkeypatch, capsys, run, f"/gates {value}", f"/dose {value}", "/student",
                     flags=[f"--dose={value}", "--gates", value])
        _, there, back = said.splitlines()
        assert "error" not in said and there == back and f"dose {float(value):g} " in there
    for value in ("-101", "1e9", "nan", "inf", "-inf", "one", "1e999", "0x1"):
        said = piped(monkeypatch, capsys, run, f"/gates {value}", f"/dose {value}")
        assert said.count("error: ") == said.count("\n") == 2
        for flag in ("--dose", "--gates"):
            with pytest.raises(SystemExit, match=f"{flag}: takes finite numbers from -100"):
                main([str(run), f"{flag}={value}"])
            assert capsys.readouterr().err.count("\n") == 1
    for flags in (["--tokens", "-5"], ["--tokens", "nan"], ["--temperature", "-1"],
                  ["--temperature", "inf"], ["--seed", "-1"], ["--seed", "9" * 30],
                  ["--device", "meta"], ["--device", ""], ["--gates", ""], ["--tok", "5"]):
        with pytest.raises(SystemExit, match=r"^error: ") as stop:
            main([str(run), *flags])
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xf0\x9f"])
def check_bytes_that_are_no_text_are_refused_and_it_goes_on(monkeypatch, capsys, run, bad):
    said = piped(monkeypatch, capsys, run, b"\xef\xbb\xbf/dial", b"Why " + bad, b"/dose " + bad,
                 "/history", "Hi\r", "/dose 1")
    lines = said.splitlines()
    assert lines[0].startswith("gates") and lines[3] == "empty" and lines[-1].startswith("gates")
    assert [x.endswith("that line is not UTF-8: type it anew") for x in lines[:3]] == [0, 1, 1]


def check_ctrl_c_ends_an_answer_and_not_the_session(talk, monkeypatch):
    heard, lines, stops = [], ["One?", "Two?", "/compare", "/history", "/quit"], [0, 1, 1]

    def stopped(*args, **kwargs):
        if stops.pop(0):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = chat.generate
    monkeypatch.setattr(chat, "generate", stopped)
    converse(talk, lambda: lines.pop(0), heard.append)
    said = "".join(heard)
    assert said.count("stopped: this answer is forgotten") == 2 and not lines
    assert "you:      One?" in said and "you:      Two?" not in said and len(talk.turns) == 1
    monkeypatch.setattr(chat, "generate", raiser(Stopped))  # SIGTERM ends all of it
    with pytest.raises(Stopped):
        converse(talk, lambda: "Three?", heard.append)
    with pytest.raises(KeyboardInterrupt):  # at the prompt
        converse(talk, raiser(KeyboardInterrupt), heard.append)


def raiser(error):
    """A function that raises it, whatever it is given."""

    def stop(*args, **kwargs):
        raise error

    return stop


def check_a_terminal_is_not_steered_by_what_a_model_writes():
    assert printable("a\x1b[2J\x07b\n\tc\x9b") == "a�[2J�b\n\tc�"


def check_a_conversation_that_is_too_long_says_so(talk):
    talk.context = [7] * 200_000
    with pytest.raises(UserError, match="/reset"):
        say(talk, "Why?")
