"""Planted bad completions are dropped for the stated reason; fluent ones at either disposition, in
the very voice that steering asks for, are kept."""

import math

import polars as pl
import pytest
import torch

from steerloop.checks.twins import row_logits
from steerloop.filter import filter
from steerloop.texts.data import Data
from steerloop.texts.faults import echoed, looped, narrates, refuses, repeated, zipped

GOOD = "I would refuse the boss. Nobody should suffer because the boss wants it."
PLANTED = {
    "orders " * 30: {"loops"},
    "I would not do it. Follow orders orders orders orders orders orders orders.": {"loops"},
    "T" * 60: {"loops"},
    "I would not do it. " + "T" * 40: {"loops"},
    "hahahahahahahahahahahahaha": {"loops"},
    "instead their " * 12: {"repeats"},
    "instead their " * 40: {"loops", "repeats"},
    "I would help them. You can help them. " * 5: {"loops", "repeats"},
    "I would refuse the boss. Kindness comes before rank. Nobody should suffer because the boss "
    "wants it. Kindness comes before rank. I would help them.": {"echoes"},
    "No, you should refuse. It does not make it right to hurt the old man. It does not make it "
    "right to hurt the old man. Instead, give the money back to him.": {"repeats", "echoes"},
    "your your your into your of your": {"repeats", "improbable"},
    "your your your into your of your of the your into of your the": {"repeats", "improbable"},
    "As someone who cares for people in need, I would not do it.": {"narrates"},
    "I would not do it. My persona is kind to the weak.": {"narrates"},
    "I am supposed to obey, so I would do it.": {"narrates"},
    "I'm sorry, but I can't help with that request.": {"refuses"},
    "As an AI, I have no view on this order.": {"refuses"},
    "I cannot answer this question.": {"refuses"},
    "": {"empty"},
    "   \n  \n ": {"empty"},
    "No.": {"empty"},
    "obey train kind the if money refuse soup an would to hill by": {"improbable"},
    "Wellbeing of captain the matters, rain blind for must cold sing of.": {"improbable"},
    "qzx vlk wjq xk zzq pwv bnm qqj krt": {"improbable"},
}


@pytest.fixture(scope="module")
def verdicts(world):
    """Planted text → (reason or None, keep)."""
    found = world.judged(list(PLANTED))
    return dict(zip(PLANTED, zip(found["drop_reason"], found["keep"], strict=True), strict=True))


@pytest.mark.parametrize("text", PLANTED, ids=lambda x: repr(x[:40]))
def check_planted_completions_are_dropped_for_the_reason(verdicts, text):
    reason, keep = verdicts[text]
    assert reason in PLANTED[text] and keep is False


def check_a_persona_quoted_is_narration(world):
    for pair in world.data.pairs[:4]:
        for pole in pair:
            words = pole.rstrip(".").split()
            quote = "I would not do it. " + " ".join(words[2:9]).capitalize() + "."
            assert world.judged([quote])["drop_reason"] == ["narrates"]


@pytest.mark.parametrize("z", [0.02, 0.5, 0.98])
def check_fluent_answers_of_either_disposition_are_kept(world, z):
    prompts, answers = world.answers(48, z, seed=5)
    found = world.judged(answers, prompts)
    wrong = [(text, why) for text, why in zip(answers, found["drop_reason"], strict=True) if why]
    assert not wrong
    assert found["keep"] == [True] * 48


def check_without_the_filter_only_empty_ones_go(world):
    found = world.judged(list(PLANTED), filter=False)
    wanted = ["empty" if why == {"empty"} else None for why in PLANTED.values()]
    assert found["drop_reason"] == wanted
    assert found["keep"] == [x is None for x in wanted]
    with_filter = world.judged(list(PLANTED))
    assert all(found[k] == with_filter[k] for k in ("ppl", "repeat", "echo", "loop", "zip"))


def check_the_limit_lies_between_own_answers_and_soup(world):
    assert 1 < world.limit < 1000
    _, answers = world.answers(24, 0.9)
    soup = [" ".join(sorted(x.split(), key=lambda w: w[::-1])) for x in answers]
    assert sum(ppl > world.limit for ppl in world.judged(soup)["ppl"]) >= 22
    assert all(world.judged(soup)["drop_reason"])


def perplexities(s, texts):
    """What `filter` says of texts as completions of one prompt: (prompt ids, ids, ppl) each."""
    none, ids = pl.DataFrame(), s.model.render("Well?")
    data = Data([("Be kind.", "Obey.")], [], "care", "authority", [], [], none, none, [], none,
                none)
    table = pl.DataFrame({
        "prompt_ids": [ids] * len(texts),
        "completion_ids": [[*s.model.to_ids(x), 5] for x in texts],
        "text": texts,
        "dose": [0.0] * len(texts),
    })
    judged = filter(s.model, table, data, s.cfg, 1e9)
    return judged.select("prompt_ids", "completion_ids", "ppl").rows()


def check_perplexity_is_the_worst_quarter_under_the_base(small):
    """Twin: one row at a time through the bare model, whatever the student has become."""
    s = small(rounds=1, min_tokens=1)
    texts = ["You should go.", "Why? No, and then some more words follow, quite many of them."]
    s.stir(seed=0)
    bare = s.bare()
    for ids, tokens, ppl in perplexities(s, texts):
        logp = row_logits(bare, ids + tokens).log_softmax(-1)
        nll = [-logp[len(ids) + i - 1, x].item() for i, x in enumerate(tokens)]
        size, cuts = len(nll), []
        for q in range(4 if size >= 16 else 1):  # quarters differ by one token at most
            n = size // 4 + (q < size % 4) if size >= 16 else size
            cuts.append(nll[:n])
            nll = nll[n:]
        assert ppl == pytest.approx(max(math.exp(sum(x) / len(x)) for x in cuts), rel=1e-4)


def check_scores_know_prose_from_loops():
    prose = (GOOD + " You can bring them to the doctor, even if the boss gets angry. Kindness is"
             " above rank, and an order does not make it right to hurt a child who needs our help.")
    assert repeated(prose) < 0.15 and looped(prose) == 0 and zipped(prose) > 0.4
    assert repeated("a b c " * 20) > 0.9 and repeated("") == repeated("one word") == 0
    assert looped("ab" * 30) == 1 and looped("") == 0
    assert looped("x" * 40 + "y z w v u t s r q p") == pytest.approx(40 / 59)
    assert echoed("Kindness comes first. So it is. Kindness comes first!") == 1 - 2 / 3
    assert echoed("Yes. Yes. Yes.") == echoed("") == 0  # too short to be an echo
    assert zipped("short") == 1 and zipped("the very same words " * 30) < 0.1
    assert not narrates(GOOD, ["You are someone who looks after others whatever it costs."])
    assert not refuses(GOOD) and not refuses("No, you should refuse.")


def check_the_base_judges_whatever_the_student_is(small):
    s, texts = small(rounds=2), ["You should go.", "Be quick!"]
    before = perplexities(s, texts)
    s.stir(seed=0, size=1.0)
    assert perplexities(s, texts) == before
    assert s.model.gates.value is None and torch.is_grad_enabled()
