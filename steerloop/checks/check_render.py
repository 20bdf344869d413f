"""What goes into a chat template comes out of it, once and whole, tomorrow as today; or one line
says that it does not, before anything is computed."""

import json
import shutil
import time
from dataclasses import replace
from datetime import datetime
from itertools import product
from random import Random

import pytest
from loguru import logger
from transformers.utils import chat_template_utils

from steerloop import UserError, train
from steerloop.checks.check_loading import configure, refused
from steerloop.checks.families import BRACKETS, THINKS, save_family
from steerloop.checks.small import (
    BOS,
    HAS_SYSTEM,
    OPENS,
    TEMPLATES,
    TURNS,
    Small,
    build_tokenizer,
    data_files,
    small_config,
)
from steerloop.evidence import lengths
from steerloop.loading import fit, template
from steerloop.loading.chat import Chat
from steerloop.loading.template import bounded, written
from steerloop.score import score
from steerloop.texts.data import read_data

ASK = "{% if add_generation_prompt %}<turn>model\n"
TURN = OPENS + "{% for m in messages %}<turn>{{ m['role'] }}\nCONTENT<end>\n{% endfor %}" + ASK
WHOLE = {  # ways to write a text that lose nothing of it
    "plain": "{{ m['content'] }}",
    "trim": "{{ m['content'] | trim }}",
    "attribute": "{{- m.content -}}",
    "left": "{{ m.content.lstrip() }}",
    "right": "{{ m.content.rstrip() }}",
    "set": "{% set x %}{{ m.content }}{% endset %}{{ x }}",
    "either": "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endif %}",
    "parts": "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}"
    "{% endfor %}",
    "first part": "{{ m.content[0].text | trim }}",
}
LOSSY = {  # ways that change, cut, repeat or lose it
    "nothing": "",
    "twice": "{{ m.content }}{{ m.content }}",
    "upper": "{{ m.content | upper }}",
    "capital": "{{ m.content | capitalize }}",
    "title": "{{ m.content | title }}",
    "escaped": "{{ m.content | e }}",
    "json": "{{ m.content | tojson }}",
    "cut": "{{ m.content[:300] }}",
    "short": "{{ m.content | truncate(500) }}",
    "indented": "{{ m.content | indent(2) }}",
    "wrapped": "{{ m.content | wordwrap(40) }}",
    "spaces": "{{ m.content.split() | join(' ') }}",
    "first line": "{{ m.content.split('\n')[0] }}",
    "no tags": "{{ m.content | striptags }}",
    "no braces": "{{ m.content | replace('{', '(') }}",
    "backwards": "{{ m.content | reverse }}",
    "if short": "{% if m.content | length < 90 %}{{ m.content }}{% endif %}",
    "list": "{{ [m.content] }}",
}
SYSTEMS = {  # what is done to a system text before the turns
    "turn": "",
    "raises": HAS_SYSTEM + "{{ raise_exception('no system role') }}{% endif %}",
    "drops": HAS_SYSTEM + "{% set messages = messages[1:] %}{% endif %}",
}
BAD_SYSTEMS = {
    "twice": HAS_SYSTEM + "{{ messages[0].content }}{% endif %}",
    "shouted": HAS_SYSTEM + "{{ messages[0].content | upper }}{% set messages = messages[1:] %}"
    "{% endif %}",
    "default": HAS_SYSTEM + "You help.{% set messages = messages[1:] %}{% endif %}",
}
ENDS = ["", "Now:", "<think>\n\n</think>\n\n", "<think>\n", "[THINK]"]
BLOCKS = ["--steer_blocks", "2"]
PIECES = ["{{ x }}", "{% if %}", "  ", "\n\n", "<b>", "&amp;", "Ünï", "🙂", "'", '"', "\\", "MiXed",
          "{a}", "%s", "\t", "…", "‏א", "x" * 700, "</p>", "{#", "1e3", "-"]


def with_content(body, system="", end=""):
    """A template of turns; `end` opens the answer."""
    return system + TURN.replace("CONTENT", body) + end + "{% endif %}"


def text_of(rng):
    """A text that no other one is a part of, perhaps with white space around it."""
    words = [rng.choice(PIECES) for _ in range(rng.randint(0, 8))]
    name = f"q{rng.getrandbits(60):x}"
    return rng.choice(["", " ", "\n"]) + " ".join([name, *words, name]) + rng.choice(["", "  \n"])


def one_line(error):
    said = str(error)
    assert said and "\n" not in said and len(said) < 400, said


def check_a_text_comes_out_once_or_is_refused():
    """2,500 pairs of a template and texts; which templates are sound is known. Each kind of loss is
    tried, and pairs of kinds at random."""
    rng, tokenizer, tried, refusals = Random(0), build_tokenizer(TEMPLATES["folds"]), 0, 0
    lossy = [(x, "", "", False) for x in LOSSY.values()]
    lossy += [(x, y, z, False) for x, y, z in product(WHOLE.values(), BAD_SYSTEMS.values(), ENDS)]
    sound = [(*x, True) for x in product(WHOLE.values(), SYSTEMS.values(), ENDS)]
    for body, system, end, keeps in lossy[:30] + rng.sample(lossy, 20) + rng.sample(sound, 50):
        tokenizer.chat_template = with_content(body, system, end)
        try:
            chat = Chat(tokenizer, [1])
        except UserError as e:
            one_line(e)
            assert not keeps, tokenizer.chat_template
            refusals += 1
            continue
        assert keeps, tokenizer.chat_template
        for _ in range(50):
            user, above = text_of(rng), text_of(rng)
            ids = chat.render(user, above)
            said = tokenizer.decode(ids)
            assert said.count(user.strip()) == said.count(above.strip()) == 1
            assert ids.count(BOS) == 1 and said.count("think>") % 2 == said.count("THINK]") % 2 == 0
            tried += 1
    assert (tried, refusals) == (2500, 50)


def check_a_text_that_a_template_singles_out_is_refused():
    """Some are changed only where they say, or are, something: each text is compared anew."""
    rng = Random(1)
    tests = {"'no' in m.content": "I say no.", "m.content | length > 9000": "a " * 5000,
             "m.content[:1] == '/'": "/think", "m.content == 'Hm'": "Hm"}
    for test, caught in tests.items():
        body = "{% if TEST %}gone{% else %}{{ m.content }}{% endif %}".replace("TEST", test)
        chat = Chat(build_tokenizer(with_content(body)), [1])
        for _ in range(20):
            text = text_of(rng).strip()
            assert chat.tokenizer.decode(chat.render(text)).count(text) == 1
        with pytest.raises(UserError, match="changes, loses or repeats") as e:
            chat.render(caught)
        one_line(e.value)


@pytest.mark.parametrize("name", ["folds", "raises", "system turn", "drops", "thinks", "brackets",
                                  "blocks", "parts"])
def check_prompts_are_the_librarys(name):
    blocks = ("{% set ns = namespace(n=0) %}{{ bos_token }}{% for m in messages %}"
              "{% if m.role == 'none' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}"
              "{{ ns.n }}{{ dict(a=1) | tojson }}{{ m.role }}: {% generation %}{{ m.content }}"
              "{% endgeneration %}<end>{{ '-' * 3 }}\n{% endfor %}{{ documents }}{{ tools }}")
    known = TEMPLATES | {"thinks": THINKS, "brackets": BRACKETS, "blocks": blocks,
                         "parts": with_content(WHOLE["parts"])}
    chat = Chat(tokenizer := build_tokenizer(known[name]), [1])
    system = chat.rendering.system_role
    assert system == (name not in ("raises", "drops"))
    turns = [("system", "Be it.")] * system + [("user", " a {b} ")]
    assert chat.rendering.parts == (name == "parts")
    given = [{"role": r, "content": [{"type": "text", "text": x}] if name == "parts" else x}
             for r, x in turns]
    assert chat.render(" a {b} ", "Be it." if system else None) == tokenizer.apply_chat_template(
        given, add_generation_prompt=True, return_dict=False, enable_thinking=False)


DATES = {
    "call": "{{ strftime_now('%d %b %Y') }}",
    "if it is there": "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}"
    "{% else %}{% set d = 'never' %}{% endif %}{{ d }}",
    "macro": "{% macro f(how) %}{{ strftime_now(how) }}{% endmacro %}{{ f('%d %b %Y') }}",
    "block": "{% block top %}{{ strftime_now('%d %b %Y') }}{% endblock %}",
    "minute": "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%H:%M:%S.%f %j %A') }}",
    "yesterday": "{{ strftime_now('%d')|int - 1 }}{{ strftime_now('%d %b %Y') }}",
    "name": "{% if not date_string is defined %}{{ strftime_now('%Y') }}{% else %}"
    "{{ date_string }}{% endif %}",
    "renamed": "{% set now = strftime_now %}{{ now('%d %b %Y') }}",
}


@pytest.mark.parametrize("name", DATES)
def check_prompts_are_the_same_on_another_day(name, monkeypatch):
    found, theirs = [], []
    for day in (datetime(2025, 1, 1, 3, 4, 5), datetime(2031, 12, 24)):
        class Clock(datetime):
            now = classmethod(lambda cls, tz=None, day=day: day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        chat = Chat(build_tokenizer(DATES[name] + TURNS), [1])
        found.append(chat.render("Well?", "Be it."))
        theirs.append(chat.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False))
    assert found[0] == found[1] and "26 Jul 2024" in chat.to_text(found[0])
    assert theirs[0] != theirs[1]


@pytest.mark.parametrize("draws", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{{ 7 | random }}"])
def check_a_template_that_draws_is_refused(draws):
    with pytest.raises(UserError, match="draws at random"):
        Chat(build_tokenizer(draws + TURNS), [1])


THOUGHTS = {  # how the answer is opened → what closes it; None: it was not open; '': refused
    "<think>\n": "</think>", "<think>": "</think>", "<think>\n\n": "</think>",
    "<thinking>\n": "</thinking>", "<thought>": "</thought>", "<Reasoning>\n": "</Reasoning>",
    "[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<seed:think>": "</seed:think>",
    "<think>\nOkay, so": "</think>", "<a><think>\n": "</think>",
    "<think>\n\n</think>\n\n": None, "</think>": None, "<no_think>": None, "<nothink>\n": None,
    "Now:": None, "<|START_THINKING|><|END_THINKING|>": None, "<no thought>\n": None,
    "<|channel>thought\n<channel|>": None,
    "<|START_THINKING|>": "", "<|begin_of_thought|>\n": "", "<|think|>": "",
    "<|channel|>analysis<|message|>": "", "<unused94>thought\n": "",
}


@pytest.mark.parametrize("opens", THOUGHTS)
def check_an_open_thought_is_closed_or_refused(opens):
    tokenizer, closes = build_tokenizer(with_content(WHOLE["plain"], "", opens)), THOUGHTS[opens]
    if closes == "":
        with pytest.raises(UserError, match="opens every answer with a thought") as e:
            Chat(tokenizer, [1])
        return one_line(e.value)
    chat = Chat(tokenizer, [1])
    for ids in (chat.render("Well?"), chat.render("Well?", "Be it."), chat.follow("Well?")):
        wanted = f"<turn>model\n{opens}" + (f"\n{closes}\n\n" if closes else "")
        assert chat.to_text(ids, special=True).endswith(wanted)


def check_tags_that_are_spoken_of_are_no_thought():
    """In a system text of the template's own, in instructions after the question, in a text."""
    for said in ("Think inside <think> tags.<end>\n", "Use <think>.\n"):
        body = "{{ m.content }}{% if m.role == 'user' %}" + said + "{% endif %}"
        chat = Chat(build_tokenizer("Think in <think>.\n" + with_content(body)), [1])
        for text in ("Well?", "What is <think>"):
            assert chat.to_text(chat.render(text), special=True).endswith("<turn>model\n")


def check_what_closes_a_thought_is_a_token_where_its_tag_is():
    tokenizer = build_tokenizer(with_content(WHOLE["plain"], "", "<|START_THINKING|>"))
    tokenizer.add_tokens(["<|START_THINKING|>", "<|END_THINKING|>"])
    ids = Chat(tokenizer, [1]).render("Well?")
    assert tokenizer.convert_ids_to_tokens(ids)[-4:-2] == ["Ċ", "<|END_THINKING|>"]
    tokenizer = build_tokenizer(with_content(WHOLE["plain"], "", "<think>"))
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(UserError, match="'<think>', and no token is known"):
        Chat(tokenizer, [1])


LONG = "{% for i in range(99999) %}{% for j in range(99999) %}OUT{% endfor %}{% endfor %}"
HOSTILE = {
    "file": ("{% include '/etc/passwd' %}", "no loader"),
    "parent": ("{% extends 'x' %}", "no loader"),
    "import": ("{% from 'os' import x %}", "no loader"),
    "insides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "change": ("{{ messages.append(1) }}", "unsafe"),
    "10 GB": (LONG.replace("OUT", "x" * 9999), "writes more"),
    "unwritten": ("{% set y %}" + LONG.replace("OUT", "") + "{% endset %}", "seconds"),
    "macro": ("{% macro f() %}" + LONG.replace("OUT", "") + "{% endmacro %}{{ f() }}", "seconds"),
    "at once": ("{{ 'x' * 10000000000 }}", "product"),
    "list": ("{{ ([0] * 9999999999) | length }}", "product"),
    "doubled": ("{% set n = namespace(x='ab') %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}"
                "{% endfor %}", "Memory|seconds"),
    "centred": ("{{ 'x'.center(9999999999) }}", "Memory"),
    "filled": ("{{ 'x' | center(9999999999) }}", "Memory"),
    "formatted": ("{{ '{:9999999999}'.format(1) }}", "Memory"),
    "power": ("{{ 10 ** 10 ** 10 }}", "power"),
    "squares": ("{% set n = namespace(x=9) %}{% for i in range(50) %}{% set n.x = n.x * n.x %}"
                "{% endfor %}", "product"),
    "deep": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "nested": ("{{ " + "(" * 999 + "1" + ")" * 999 + " }}", "recursion|nested"),
    "wide": ("{% for x in range(10000000) %}{% endfor %}", "MAX_RANGE"),
    "syntax": ("{% if %}", "Expected"),
    "broken": ("{{ 1 / 0 }}", "division"),
    "loud": ("{{ raise_exception('a\n\x1b[2J' * 9000) }}", "a"),
    "silent": ("{{ raise_exception('') }}", "TemplateError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def check_a_hostile_template_ends_in_one_line(name, monkeypatch):
    body, says = HOSTILE[name]
    if "seconds" in says:  # elsewhere a slow machine would meet that bound first
        monkeypatch.setattr(template, "SECONDS", 0.3)
    start = time.thread_time()
    with pytest.raises(UserError, match=says) as e:
        Chat(build_tokenizer(body + TURNS), [1])
    assert time.thread_time() - start < 10 and "\x1b" not in str(e.value)
    one_line(e.value)


def check_other_threads_keep_their_memory():
    """A limit of the process would be one of whatever else runs in it, and two would restore each
    other's."""
    import resource
    import sys
    import threading

    before, seen = resource.getrlimit(resource.RLIMIT_AS), []

    def render():
        with bounded(1.0):
            seen.append(resource.getrlimit(resource.RLIMIT_AS))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert seen == [before]
    render()
    assert sys.platform != "linux" or seen[1] != before


def check_bounds_are_taken_off_again():
    import resource
    import sys

    before = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    for text in ("{{ 1 / 0 }}", "fine"):
        try:
            written(text, [])
        except UserError:
            assert text != "fine"
        assert before == (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace())


def with_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)
    return folder


def check_a_closed_thought_is_said_once_and_refusals_come_at_load(folders, tmp_path):
    folder, said = shutil.copytree(folders(), tmp_path / "m"), []
    with_template(folder, with_content(WHOLE["plain"], "", "<think>\n"))
    sink = logger.add(said.append, level="WARNING", format="{message}")
    model = Small(small_config(folder, quant="none")).model
    replace(model, persona="Be it.")
    logger.remove(sink)
    assert len(said) == 1 and "</think> ends it at once (--think_tokens" in said[0]
    for text, says in ((with_content("{{ m.content | upper }}"), "changes, loses or repeats"),
                       (with_content(WHOLE["plain"], "", "<|think|>"), "a thought"),
                       ("{% for m in messages %}<end>{% endfor %}", "once")):
        assert says in refused("--model", with_template(folder, text), "--quant", "none", *BLOCKS)


@pytest.fixture
def beyond(folders, tmp_path):
    """A folder whose tokenizer has one more token, <new>, than the model has embeddings."""
    folder = shutil.copytree(folders(), tmp_path / "beyond")
    tokenizer = build_tokenizer(TEMPLATES["system turn"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    tokenizer.save_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<new>") == 262
    return folder


def check_a_token_without_embedding_does_no_harm_until_it_is_used(beyond):
    model = Small(small_config(beyond, quant="none")).model
    assert max(model.render("Well?", "Be it.")) < model.vocabulary == 262
    for used in (lambda: model.render("a <new> b"), lambda: model.to_ids("<new>"),
                 lambda: model.follow("<new>"), lambda: model.render("x", "<new>")):
        with pytest.raises(UserError, match="token 262, '<new>'") as e:
            used()
        one_line(e.value)


@pytest.mark.parametrize("where", ["template", "end of turn", "stop", "negative"])
def check_a_token_without_embedding_is_refused_at_load(beyond, where):
    text = TEMPLATES["system turn"]
    if where == "template":
        with_template(beyond, text.replace("<turn>model", "<new>"))
    elif where == "end of turn":
        with_template(beyond, text.replace("<end>", "<new>"))
    else:
        ends = {"eos_token_id": [1, 262 if where == "stop" else -1]}
        (beyond / "generation_config.json").write_text(json.dumps(ends))
    said = refused("--model", beyond, "--quant", "none", *BLOCKS)
    assert f"token {-1 if where == 'negative' else 262}," in said


@pytest.fixture
def tight(folders, tmp_path):
    """A model of 300 positions and options of a run that fits them; → (options, its config)."""
    folder = shutil.copytree(folders(), tmp_path / "tight")
    configure(folder, max_position_embeddings=300)
    files = data_files(tmp_path)
    options = {**files, "model": folder, "quant": "none", "max_new_tokens": 20, "dose_tokens": 8,
               "think_tokens": 0, "runs": tmp_path / "runs", "dtype": "float32", "rounds": 1,
               "steer_blocks": 2}
    fields = options | {"runs": str(tmp_path / "runs"), "steer_blocks": [2]}
    return options, small_config(folder, **{k: v for k, v in fields.items() if k != "model"})


def flags(options):
    return [x for k, v in options.items() for x in (f"--{k}", v)]


def rows(found):
    return "".join(json.dumps(x) + "\n" for x in found)


LENGTHS = {  # file → what it holds then; and knobs alone
    "prompts": "Why? " * 60, "contexts": "Why? " * 60,
    "vignettes": rows([{"text": f"{i} " + "Why? " * 40, "foundation_coarse": "care"}
                       for i in range(3)]),
    "mundane": rows([{"prompt": f"{i}?", "text": "So. " * 75} for i in range(3)]),
    "labelled": json.dumps({"prompt": "x", "text": "y " * 150, "label": "coherent", "note": ""}),
    "--max_new_tokens": "300", "--dose_tokens": "300", "--think_tokens": "200",
}


@pytest.mark.parametrize("what", LENGTHS)
def check_a_prompt_beyond_the_positions_is_one_line_before_anything(tight, what, tmp_path):
    options, _ = tight
    if what.startswith("--"):
        options |= {what[2:]: LENGTHS[what]}
    else:
        (tmp_path / "long").write_text(LENGTHS[what] + "\n")
        options |= {what: tmp_path / "long"}
    said = refused(*flags(options))
    assert "more than the 300" in said and what.strip("-") in said, said
    assert not (tmp_path / "runs").exists()


def check_what_fits_to_the_last_position_runs_and_one_token_more_does_not(tight):
    _, cfg = tight
    model, data = Small(cfg).model, read_data(cfg)
    config = model.hf.config
    most = max(asked + after for _, _, asked, after, _ in lengths.needs(model, data, cfg, True))
    for limit, fits in ((most, True), (most - 1, False), (0, True)):
        config.max_position_embeddings = limit
        if fits:
            lengths.check_lengths(model, data, cfg)
            continue
        for go in (lengths.check_lengths, train.loop):
            with pytest.raises(UserError, match=f"more than the {limit}"):
                go(model, data, cfg)


def check_scoring_reads_no_prompts_and_refuses_what_it_reads(tight, tmp_path):
    _, cfg = tight
    (tmp_path / "prompts.txt").write_text("Why? " * 99)
    assert score(cfg.model, cfg).is_dir()
    (tmp_path / "mundane.jsonl").write_text(rows(
        [{"prompt": f"{i}" * 200, "text": "y" * 200} for i in range(3)]))
    with pytest.raises(UserError, match="--mundane"):
        score(cfg.model, cfg)


def check_a_persona_counts_where_it_is_measured(tight):
    _, cfg = tight
    model, data = Small(cfg).model, read_data(cfg)
    cfg.baselines = True
    both = (lengths.needs(model, data, cfg, loop) for loop in (False, True))
    alone, with_rivals = ([x for x in found if "under a" not in x[4]] for found in both)
    longer = [b[2] - a[2] for a, b in zip(alone, with_rivals[-len(alone):], strict=True)]
    assert min(longer) == max(longer) > len(data.pairs[0][0])


def check_logits_that_are_more_than_a_product_are_named(tmp_path, monkeypatch):
    folder = save_family(tmp_path / "granite", "granite")
    monkeypatch.setattr(fit, "scale_of", lambda config: 1.0)
    said = refused("--model", folder, "--quant", "none", *BLOCKS)
    assert "logits_scaling 8.0" in said and "not head" in said


def check_an_absent_target_is_told_from_those_that_there_are(folders):
    said = refused("--model", folders(), *BLOCKS, "--targets", "q_proj", "query_key", "up_proj")
    assert said.startswith("error: --targets query_key: ") and said.endswith(
        " but down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")
