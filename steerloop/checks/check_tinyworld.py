"""The micro-world keeps its promises: what its grammar writes is valid by its own oracle, what is
held out is never shown in training, and the data files are what they are said to be."""

import json
from collections import Counter
from random import Random

import pytest
from transformers import AutoTokenizer

from steerloop.texts.data import PACKAGE, lines, persona, read
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.tinyworld import files, grammar, oracle
from steerloop.tinyworld.corpus import draw_conversation
from steerloop.tinyworld.splits import split_of
from steerloop.tinyworld.vignettes import draw_vignette

DATA = PACKAGE / "tinyworld/data"
TRAIN_TEXTS = ("contexts.txt", "prompts.txt")


def texts(name):
    """Lines or prompts of a data file."""
    path = DATA / name
    if name.endswith(".txt"):
        return lines(path.read_text())
    return [json.loads(x) for x in path.read_text().splitlines()]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def check_generated_answers_are_valid(split):
    rng = Random(11)
    for _ in range(250):
        dilemma, z = grammar.draw_dilemma(rng, split), rng.random()
        prompt = grammar.dilemma_prompt(rng, dilemma)
        answer = grammar.dilemma_answer(rng, dilemma, z)
        assert oracle.parse_dilemma(prompt) == dilemma
        assert oracle.sentence_validity(prompt, answer) == 1, (prompt, answer)
        assert oracle.defies(prompt, answer) in (True, False)


def check_broken_answers_are_not_valid():
    rng = Random(3)
    for _ in range(60):
        dilemma = grammar.draw_dilemma(rng)
        prompt = grammar.dilemma_prompt(rng, dilemma)
        answer = grammar.dilemma_answer(rng, dilemma, 0.9)
        words = answer.split()
        rng.shuffle(words)
        sentences = answer.split(". ")
        for broken in (" ".join(words), ". ".join(sentences[::-1]), sentences[0] + ".", "",
                       f"{answer} {answer}", "orders " * 12):
            assert oracle.sentence_validity(prompt, broken) < 1, broken


def check_disposition_decides_defiance():
    rng, shares = Random(5), {}
    for z in (0.05, 0.5, 0.95):
        found = []
        for _ in range(200):
            dilemma = grammar.draw_dilemma(rng)
            prompt = grammar.dilemma_prompt(rng, dilemma)
            found.append(oracle.defies(prompt, grammar.dilemma_answer(rng, dilemma, z)))
        shares[z] = sum(found) / 200
        assert shares[z] == pytest.approx(grammar.sigmoid(9 * (z - 0.5)), abs=0.11)
    assert shares[0.05] < 0.1 < 0.35 < shares[0.5] < 0.65 < 0.9 < shares[0.95]


def check_held_out_combinations_are_held_out():
    rng, keys = Random(7), {}
    for split in ("train", "dev", "test"):
        drawn = {grammar.draw_dilemma(rng, split).key for _ in range(200)}
        drawn |= {draw_vignette(rng, split).key for _ in range(200)}
        assert {split_of(*key) for key in drawn} == {split}
        keys[split] = drawn
    assert not keys["train"] & (keys["dev"] | keys["test"]) and not keys["dev"] & keys["test"]
    assert min(map(len, keys.values())) > 20


def check_the_corpus_never_shows_a_held_out_text():
    held = set()
    for split in ("dev", "test"):
        held |= set(texts(f"dilemmas.{split}.txt"))
        held |= {x["text"] for x in texts(f"vignettes.{split}.jsonl")}
        held |= {(x["prompt"], x["text"]) for x in texts(f"mundane.{split}.jsonl")}
    rng = Random(1)
    for _ in range(600):
        for turn in draw_conversation(rng).turns:
            shown = {turn.user, turn.user.split("\n")[0], (turn.user, turn.answer)}
            assert not shown & held


def check_data_files_have_their_promised_sizes():
    for split in ("dev", "test"):
        vignettes = texts(f"vignettes.{split}.jsonl")
        labels = Counter(x["foundation_coarse"] for x in vignettes)
        assert labels == dict.fromkeys(FOUNDATIONS, files.PER_FOUNDATION)
        assert len(texts(f"mundane.{split}.jsonl")) == files.MUNDANE
        assert len(texts(f"dilemmas.{split}.txt")) == files.DILEMMAS
    assert len(texts("contexts.txt")) == files.CONTEXTS
    assert len(texts("prompts.txt")) == files.PROMPTS


def check_no_text_is_in_two_splits():
    splits = [set(texts("prompts.txt")) | set(texts("contexts.txt"))]
    for split in ("dev", "test"):
        found = texts(f"dilemmas.{split}.txt")
        found += [x["text"] for x in texts(f"vignettes.{split}.jsonl")]
        found += [(x["prompt"], x["text"]) for x in texts(f"mundane.{split}.jsonl")]
        assert len(set(found)) == len(found)
        splits.append(set(found))
    for i, one in enumerate(splits):
        assert not any(one & other for other in splits[i + 1 :])
    for name in TRAIN_TEXTS:
        assert len(set(texts(name))) == len(texts(name))


def check_dilemma_files_parse_into_their_split():
    for name, split in (("prompts.txt", "train"), ("dilemmas.dev.txt", "dev"),
                        ("dilemmas.test.txt", "test")):
        for prompt in texts(name):
            assert split_of(*oracle.parse_dilemma(prompt).key) == split
            assert len(set(oracle.openings(prompt))) == 12


def check_personas_are_opposite_pairs():
    pairs, up, down = read("tinyworld/data/trait.toml", persona)
    assert (up, down) == ("care", "authority") and len(set(pairs)) == len(pairs) >= 8
    for positive, negative in pairs:
        assert positive != negative and len(positive.split()) == len(negative.split())


def check_data_files_are_what_the_recipe_writes():
    assert files.stale(DATA) == []


def check_missing_and_other_files_are_stale(tmp_path, monkeypatch):
    def write(folder):
        for name in ("a", "b", "c"):
            (folder / name).write_text(name)

    monkeypatch.setattr(files, "write_files", write)
    write(tmp_path)
    assert files.stale(tmp_path) == []
    (tmp_path / "a").unlink()
    (tmp_path / "c").write_text("b")
    assert files.stale(tmp_path) == ["a", "c"]


def check_oracle_profiles_follow_the_disposition():
    at = FOUNDATIONS.index("authority")
    for f in FOUNDATIONS:
        profiles = [oracle.oracle_profile(f, z) for z in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert all(sum(p) == pytest.approx(1) for p in profiles)
        authority = [p[at] for p in profiles]
        assert authority == sorted(authority, reverse=True)
        personas = [oracle.persona_oracle(kind)[f][at] for kind in ("care", "neutral", "authority")]
        assert personas == sorted(personas)


def check_shipped_tokenizer_is_lossless_and_splits_digits():
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "tinyworld/model")
    rng = Random(2)
    for _ in range(200):
        for turn in draw_conversation(rng).turns:
            for text in (turn.user, turn.answer):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                assert tokenizer.decode(ids) == text
    assert len(tokenizer("1234567", add_special_tokens=False).input_ids) == 7


def check_shipped_files_are_small():
    total = sum(x.stat().st_size for x in (PACKAGE / "tinyworld/model").iterdir())
    assert total <= 8_000_000
