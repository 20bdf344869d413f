"""Tasks of lm-evaluation-harness: the model in memory answers as its slow twin does, in whatever
state it is; states are compared item by item; without the package there is one line."""

import json
import math
import random
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch

import steerloop.evidence.journal as journal
from steerloop import UserError, harness, score, train
from steerloop.checks.digest import digests
from steerloop.checks.small import Small, short_config, small_config
from steerloop.checks.tasks import (
    ASKED,
    QUESTIONS,
    logits_of,
    plain_answer,
    plain_likelihood,
    write_tasks,
)
from steerloop.harness import capability, load_tasks, present
from steerloop.model import load

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'steerloop[eval]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks") / "own")


@pytest.fixture
def asking(folders, folder):
    """Config fields → a small model in a state of its own that is asked all tasks; pads count."""
    def ask(**fields):
        s = Small(small_config(folders(), **{
            "tasks": ASKED, "tasks_path": str(folder), "batch_rows": 3, "quant": "none"} | fields))
        s.stir(seed=1, size=0.1)
        s.fold()
        s.stir(seed=2, size=0.1)
        return s

    return ask


def asked(s, **fields):
    from steerloop.harness.language import Asked

    return Asked(s.model, replace(s.cfg, **fields))


def instances(*args):
    from lm_eval.api.instance import Instance

    return [Instance("any", {}, x, i) for i, x in enumerate(args)]


def ids_of(s, text, chat=True):
    """How the twin tokenises: special tokens are written out by the template, or begin a text."""
    return ([] if chat else [s.model.tokenizer.bos_token_id]) + s.model.tokenizer(
        text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("chat", [True, False])
def check_likelihoods_are_those_of_a_plain_pass(asking, chat):
    s = asking()
    lm = asked(s, tasks_chat=chat)
    texts = [lm.apply_chat_template([{"role": "user", "content": q}]) if chat else f"{q} "
             for q, *_ in QUESTIONS]
    pairs = [(text, x) for text, (_, options, _) in zip(texts, QUESTIONS, strict=True)
             for x in options]
    if not chat:
        pairs.append(("", "Nothing stands before."))
    with torch.no_grad(), s.model.gates(torch.tensor([0.7, 1.0, 0.0])):
        found = lm.loglikelihood(instances(*pairs))
        rolled = lm.loglikelihood_rolling(instances(*[(q,) for q, *_ in QUESTIONS]))
        for (text, ending), (logp, best) in zip(pairs, found, strict=True):
            prompt = ids_of(s, text.rstrip() if not chat else text, chat)
            whole = ids_of(s, text + ending, chat)
            assert whole[: len(prompt)] == prompt
            wanted = plain_likelihood(s.model, prompt, whole[len(prompt) :])
            assert logp == pytest.approx(wanted[0], abs=2e-3) and best == wanted[1]
        for (q, *_), logp in zip(QUESTIONS, rolled, strict=True):
            wanted = plain_likelihood(s.model, [s.model.tokenizer.bos_token_id], s.model.to_ids(q))
            assert logp == pytest.approx(wanted[0], abs=2e-3)
    likely, _ = plain_likelihood(s.model, *([2], s.model.to_ids(QUESTIONS[0][0])))
    assert abs(likely - rolled[0]) > 0.01  # under other gates it would be another number


def check_what_is_greedy_is_said(asking):
    from steerloop.harness.language import likelihoods

    s, prompt, ids = asking(), [2, 40, 50], []
    with torch.no_grad():
        for _ in range(4):
            ids.append(logits_of(s.model, prompt + ids)[-1].argmax().item())
        others = [ids, [*ids[:3], 60], [60, *ids[1:]]]
        found = likelihoods(s.model, [prompt] * 3, others, 2)
    assert 60 not in ids and [best for _, best in found] == [True, False, False]


@pytest.mark.parametrize("chat", [True, False])
def check_answers_are_those_of_greedy_passes(world, chat):
    """Of the embedded model: that one says something."""
    lm = asked(world, tasks_chat=chat, batch_rows=3)
    longest = sorted(world.data.mundane["text"], key=len)[-5:]
    texts = [" ".join(x.split()[: 6 + i]) for i, x in enumerate(longest)]  # to be gone on with
    if chat:
        asks = world.data.mundane["prompt"].to_list()[:5] + world.data.prompts[:2]
        texts = [lm.apply_chat_template([{"role": "user", "content": q}]) for q in asks]
    ends, most = [" the", ",", "o"], 16
    found = lm.generate_until(instances(*[(x, {"until": ends, "max_gen_toks": most})
                                          for x in texts]))
    prompts = [lm.tok_encode(x) for x in texts]
    wanted = [plain_answer(world.model, x, most, ends) for x in prompts]
    whole = [plain_answer(world.model, x, most, ["\0"]) for x in prompts]
    cut = sum(a != b for a, b in zip(found, whole, strict=True))
    assert found == wanted and len(set(found)) > 2 and cut > 2, (found, whole)


def check_a_row_that_said_what_ends_it_draws_no_more(asking, monkeypatch):
    import steerloop.harness.language as language

    s, drawn = asking(), []
    lm = asked(s, tasks_chat=False)
    (whole,) = lm.generate_until(instances(("Why?", {"until": [], "max_gen_toks": 40})))
    generate = language.generate

    def counted(*args):
        out = generate(*args)
        drawn.extend(map(len, out))
        return out

    monkeypatch.setattr(language, "generate", counted)
    (cut,) = lm.generate_until(instances(("Why?", {"until": whole[2:4], "max_gen_toks": 40})))
    assert cut == whole[: whole.index(whole[2:4])] and max(drawn) < 12


def check_sampled_answers_belong_to_their_rows(asking):
    s = asking()
    how = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    rows = instances(*[(q, how) for q, *_ in QUESTIONS], (QUESTIONS[0][0], how))
    found = asked(s).generate_until(rows)
    assert found == asked(s, batch_rows=8).generate_until(rows)
    assert found[0] != found[-1]  # asked twice, answered twice


def check_a_persona_is_in_every_prompt(asking):
    s = asking()
    told = replace(s.model, persona="You are kind.")
    turn = [{"role": "user", "content": "Why?"}]
    for chat in (True, False):
        lm = asked(s, tasks_chat=chat)
        lm.model = told
        text = lm.apply_chat_template(turn) if chat else "Why?"
        assert ("You are kind." in text) is chat
        with torch.no_grad():
            ((logp, _),) = lm.loglikelihood(instances((text, "So.")))
            prompt = told.render("Why?") if chat else ids_of(s, "You are kind.\n\nWhy?", False)
            wanted, _ = plain_likelihood(s.model, prompt, s.model.to_ids("So."))
        assert logp == pytest.approx(wanted, abs=2e-3)


def check_turns_and_beginnings_of_answers_are_rendered(asking):
    s = asking()
    lm = asked(s)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"},
             {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    written = s.model.rendering.text([(x["role"], x["content"]) for x in turns])
    assert lm.apply_chat_template(turns) == written
    begun = [*turns, {"role": "assistant", "content": "The answer:"}]
    assert lm.apply_chat_template(begun, False) == written + "The answer:"


def check_what_is_too_long_loses_its_start_and_is_counted(asking):
    s = asking()
    lm = asked(s, tasks_chat=False)
    lm.limit = 20
    with torch.no_grad():
        ((logp, _),) = lm.loglikelihood(instances(("a b c d " * 9, " so")))
        prompt = ids_of(s, ("a b c d " * 9).rstrip(), False)[-16:]
        wanted, _ = plain_likelihood(s.model, prompt, s.model.to_ids("  so"))
    assert lm.cut == 1 and logp == pytest.approx(wanted, abs=2e-3)
    with pytest.raises(UserError, match="more than the model takes"):
        lm.generate_until(instances(("Why?", {"max_gen_toks": 20})))


def slow(s, cfg):
    """The harness with a twin that reads one row at a time: its results."""
    from lm_eval.evaluator import evaluate

    from steerloop.harness.language import Asked

    class Slow(Asked):
        def _loglikelihood_tokens(self, requests, **kwargs):
            return [plain_likelihood(s.model, a, b) for _, a, b in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return [plain_likelihood(s.model, [self.prefix_token_id],
                                     s.model.to_ids(x.args[0]))[0] for x in requests]

        def generate_until(self, requests, disable_tqdm=True):
            return [plain_answer(s.model, s.model.to_ids(x.args[0]), x.args[1]["max_gen_toks"],
                                 x.args[1]["until"]) for x in requests]

    tasks = load_tasks(tuple(cfg.tasks), cfg.tasks_path, cfg.seed)
    return evaluate(Slow(s.model, cfg), tasks.loaded, bootstrap_iters=0,
                    apply_chat_template=True, fewshot_as_multiturn=True)


def check_every_measure_is_what_the_harness_makes_of_its_items(asking):
    s = asking()
    with torch.no_grad():
        found, theirs = capability(s.model, s.cfg), slow(s, s.cfg)["results"]
    n = len(QUESTIONS)
    assert found.group_by("task", "measure").len()["len"].to_list() == [n] * 8
    levels = {(t, m): x for t, m, x in found.group_by("task", "measure").agg(
        pl.sum("value") / pl.sum("weight")).rows()}
    close = {"abs": 1e-3}
    for task, measure, metric, turned in (
        ("own_choice", "acc", "acc", float), ("own_choice", "acc_norm", "acc_norm", float),
        ("own_answer", "exact_match", "exact_match", float), ("own_ending", "acc", "acc", float),
        ("own_ending", "log perplexity", "perplexity", math.log),
        ("own_text", "log word_perplexity", "word_perplexity", math.log),
        ("own_text", "log byte_perplexity", "byte_perplexity", math.log),
        ("own_text", "bits_per_byte", "bits_per_byte", float),
    ):
        wanted = turned(theirs[task][f"{metric},none"])
        assert levels[task, measure] == pytest.approx(wanted, **close), (task, measure)
    better = dict(found.select("measure", "better").rows())
    assert better["acc"] == 1 and better["log perplexity"] == better["bits_per_byte"] == -1
    assert 0 < levels["own_choice", "acc"] < 1  # and some are right, some are wrong


@pytest.mark.parametrize("quant", ["none", "nf4"])
def check_the_state_is_what_is_asked(asking, quant):
    s = asking(quant=quant)
    with torch.no_grad():
        found = capability(s.model, s.cfg)
        with s.model.gates(torch.zeros(3)):
            bare = capability(s.model, s.cfg)
        steered = capability(s.model, s.cfg, s.vector(), 0.5)
        again = capability(s.model, s.cfg)
    keys = ["task", "measure", "part", "item", "doc"]
    for other in (bare, steered):
        assert found.select(keys).equals(other.select(keys))
        assert not found["value"].equals(other["value"])
    assert found.equals(again)


def check_global_generators_are_left_alone(asking, monkeypatch):
    from lm_eval import evaluator

    s, drawn, evaluate = asking(tasks=["own_choice"]), [], evaluator.evaluate

    def drawing(*args, **kwargs):
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(evaluator, "evaluate", drawing)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    for seed in (0, 0, 1):
        capability(s.model, replace(s.cfg, seed=seed))
    assert drawn[0] == drawn[1] and not set(drawn[1]) & set(drawn[2])
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    state = random.getstate()  # which checks of types draw from, too
    with harness.own_draws(0):
        random.random()
    assert random.getstate() == state


def check_a_group_is_all_its_items_and_a_limit_holds(asking):
    s = asking()
    found = capability(s.model, replace(s.cfg, tasks=["own_group"], tasks_limit=4))
    assert set(found["task"]) == {"own_group"}
    assert set(found["part"]) == {"own_choice", "own_ending"}
    assert len(found.filter(measure="acc")) == 8 and found["item"].max() == 3


def check_what_cannot_be_asked_is_one_line(asking, folder):
    s = asking()
    for tasks, said in ((["own_f1"], "no metric of own_f1 has a value per item .f1"),
                        (["own_broken"], "the harness fails on them .ValueError"),
                        (["own_choise"], "no such task; there are own_choice"),
                        (["piqa"], "piqa: it cannot be loaded")):
        with pytest.raises(UserError, match=said) as e:
            cfg = replace(s.cfg, tasks=tasks)
            present(cfg)
            capability(s.model, cfg)
        assert "\n" not in str(e.value)


def short(s, folder, root, runs, **fields):
    return short_config(root, s.cfg, runs, **{
        "tasks": ["own_choice", "own_text"], "tasks_path": str(folder)} | fields)


def check_a_run_keeps_its_tasks_and_is_the_same_beside(asking, folder, tmp_path, monkeypatch):
    s = asking()
    run = train.train(short(s, folder, tmp_path, "with"))
    plain = train.train(short(s, folder, tmp_path, "without", tasks=[], tasks_path=""))
    ours, theirs = digests(run), digests(plain)
    added = {x for x in ours if x.endswith(".tasks.parquet")}
    assert {"rounds/00/base.tasks.parquet", "rounds/00/healed.tasks.parquet",
            "rounds/01/healed.tasks.parquet"} <= added <= {
                "rounds/00/base.tasks.parquet", "rounds/00/healed.tasks.parquet",
                "rounds/01/healed.tasks.parquet", "rounds/01/matched.tasks.parquet"}
    assert {k: x for k, x in ours.items() if k not in added} == theirs
    for name in ("verdicts.md", "report.html"):
        assert ("Tasks: can it do what it could?" in (run / name).read_text()) and (
            "Tasks" not in (plain / name).read_text())
    events = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
    told = next(x for x in events if x["stage"] == "tasks")
    assert set(told["tasks"]) == {"own_choice", "own_text"} and str(tmp_path) not in str(told)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["healed"][1]["tasks"]["own_choice acc"]["n"] == len(QUESTIONS)

    made = []
    monkeypatch.setattr(journal, "capability", lambda *args: made.append(args) or capability(*args))
    (run / "rounds/01/healed.tasks.parquet").unlink()
    (run / "summary.json").unlink()
    train.train(replace(short(s, folder, tmp_path, "with"), resume=str(run)))
    assert len(made) == 1  # of what is gone alone
    assert digests(run) == ours


def check_a_task_that_changed_is_not_gone_on_with(asking, tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    s = asking()
    cfg = short(s, folder, tmp_path, "runs", rounds=1)
    run = train.train(cfg)
    yaml = folder / "own_choice.yaml"
    yaml.write_text(yaml.read_text().replace("{{ask}}", "{{ask}}!"))
    load_tasks.cache_clear()
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="tasks of round None is not what it was"):
        train.train(replace(cfg, resume=str(run)))
    load_tasks.cache_clear()


def check_score_asks_them_too(asking, folders, folder, tmp_path):
    s = asking()
    cfg = short(s, folder, tmp_path, "scores")
    at = score.score(str(folders(softcap=3.0)), cfg, base=cfg.model)
    a, b = (pl.read_parquet(at / f"rounds/00/{x}.tasks.parquet") for x in ("base", "scored"))
    assert a["doc"].equals(b["doc"]) and not a["value"].equals(b["value"])
    assert a.equals(capability(load(cfg), cfg))  # of the base as a run would have it
