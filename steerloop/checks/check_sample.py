"""A row's tokens are its own: whatever shares its batch, cached or not, padded or not, mixed doses
or not, they are what reading the row anew for every token gives."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerloop.checks.small import STOPS, WINDOW
from steerloop.checks.twins import slow_decode, slow_pick, top_p_distribution
from steerloop.kernels.decode import draws, pick
from steerloop.sample import jobs, sample

PROMPTS = ["Why?", "Must I go to the old town hall today?", "He told me so.", "Go"]
DOSES = [0.0, 0.6, 1.5]
LONG = {"max_new_tokens": 60, "temperature": 2.0}  # so that rows stop at different times


def by_row(table):
    """(prompt, dose, copy) → its tokens."""
    keys = table.select("prompt_id", "dose", "copy").rows()
    return dict(zip(keys, table["completion_ids"].to_list(), strict=True))


def sampled(s, table=None, key="0|test", stops=True, **fields):
    """Tokens by row, for a table of all prompts at all doses unless one is given; under a config
    with these `fields`."""
    table = jobs(s.model, PROMPTS, DOSES) if table is None else table
    return by_row(sample(s.model, table, s.vector(), replace(s.cfg, **fields), key, stops))


def check_a_row_does_not_depend_on_its_batch(small):
    s = small(batch_rows=64, **LONG)
    table = jobs(s.model, PROMPTS, DOSES)
    many = sampled(s, table)
    assert len({len(x) for x in many.values()}) > 2  # rows stop at different times
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=3)
    assert sampled(s, shuffled) == many
    assert sampled(small(batch_rows=5, **LONG), shuffled) == many
    for key, ids in sampled(small(batch_rows=1, **LONG), table[::3]).items():
        assert ids == many[key]


def check_mixed_doses_are_one_dose_at_a_time(small):
    s = small(batch_rows=64)
    mixed = sampled(s)
    for multiple, dose in enumerate(DOSES):
        alone = jobs(s.model, PROMPTS, [dose]).with_columns(multiple=multiple)
        assert sampled(s, alone) == {k: x for k, x in mixed.items() if k[1] == dose}


def check_dose_0_is_unsteered(small):
    s = small()
    table = jobs(s.model, PROMPTS, [0.0])
    plain = by_row(sample(s.model, table, {}, s.cfg, "0|test"))
    mixed = sampled(s)
    assert plain == {k: x for k, x in mixed.items() if k[1] == 0}


def check_cached_decoding_is_uncached_past_the_window(small):
    s = small(batch_rows=64)
    table, bare, vector = jobs(s.model, PROMPTS[1:3], DOSES), s.bare(), s.vector()
    found = sampled(s, table)
    assert max(map(len, found.values())) > 2 * WINDOW
    for p, dose, ids in table.select("prompt_id", "dose", "prompt_ids").rows():
        u = draws(f"{s.cfg.seed}|0|test|{p}|{DOSES.index(dose)}|0", s.cfg.max_new_tokens)
        wanted = slow_decode(bare, ids, u, STOPS, lambda z, u: slow_pick(z, u, 1.0, 64, 0.95),
                             {b: dose * v for b, v in vector.items()})
        assert found[p, dose, 0] == wanted


def check_greedy_is_the_likeliest_token(small):
    s, bare = small(), small().bare()
    found = sampled(s, jobs(s.model, PROMPTS, [0.0]), temperature=0.0, max_new_tokens=WINDOW + 4)
    for (p, _, _), ids in found.items():
        wanted = slow_decode(bare, s.model.render(PROMPTS[p]), torch.zeros(WINDOW + 4), STOPS,
                             lambda z, u: slow_pick(z, u, 0.0, 1, 1.0))
        assert ids == wanted


def check_a_completion_ends_with_its_stop_token(small):
    s = small()
    for ids in sampled(s).values():
        assert 1 <= len(ids) <= s.cfg.max_new_tokens
        assert not set(ids[:-1]) & set(STOPS)
        assert ids[-1] in STOPS or len(ids) == s.cfg.max_new_tokens


def check_without_stops_every_row_has_m_tokens(small):
    s = small()
    for heat in (0.0, 1.0):
        for ids in sampled(s, stops=False, max_new_tokens=11, temperature=heat).values():
            assert len(ids) == 11 and not set(ids) & set(STOPS)


def check_finished_rows_leave_the_batch(small):
    s, read = small(batch_rows=64, **LONG), []
    s.model.decoder.layers[0].register_forward_pre_hook(lambda m, a: read.append(a[0].shape[0]))
    found = sampled(s)
    assert sum(read) == sum(map(len, found.values()))
    assert sorted(read, reverse=True) == read and read[-1] < read[0]


def check_draws_belong_to_seed_key_and_row(small):
    s = small()
    table = jobs(s.model, PROMPTS, [0.0])
    first = list(sampled(s, table).values())
    others = [
        sampled(small(seed=1), table),
        sampled(s, table, key="1|test"),
        sampled(s, table.with_columns(copy=1)),
        sampled(s, table.with_columns(multiple=1)),
    ]
    for other in others:
        assert sum(a == b for a, b in zip(first, other.values(), strict=True)) <= 1
    assert list(sampled(s, table).values()) == first
    assert not torch.equal(draws("a", 9), draws("b", 9))
    assert torch.equal(draws("a", 20)[:9], draws("a", 9))  # a longer limit keeps the earlier draws


def check_jobs_are_prompts_times_doses(small):
    s = small()
    table = jobs(s.model, PROMPTS, DOSES, copy=7)
    assert table.height == len(PROMPTS) * len(DOSES)
    assert set(table.select("prompt", "dose").rows()) == {(p, d) for p in PROMPTS for d in DOSES}
    assert set(table["copy"]) == {7}
    for prompt, ids in table.select("prompt", "prompt_ids").rows():
        assert ids == s.model.render(prompt)


@given(seed=st.integers(0, 10**6), v=st.integers(2, 30), k=st.integers(1, 40),
       p=st.sampled_from([0.05, 0.5, 0.95, 1.0]), temperature=st.sampled_from([0.3, 1.0, 2.0]))
def check_pick_draws_from_top_k_then_top_p(seed, v, k, p, temperature):
    logits = 2 * torch.randn(v, generator=torch.Generator().manual_seed(seed))
    wanted, grid = top_p_distribution(logits.tolist(), temperature, k, p), 2000
    u = (torch.arange(grid) + 0.5) / grid
    found = pick(logits.expand(grid, v), u, temperature, k, p)
    share = torch.bincount(found, minlength=v) / grid
    assert torch.allclose(share, torch.tensor(wanted), atol=1.5 / grid)


def check_pick_takes_u_at_both_ends():
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]]).expand(2, 4)
    u = torch.tensor([0.0, 1 - 2**-24])
    assert pick(logits, u, 1.0, 3, 1.0).tolist() == [2, 1]
    assert pick(logits, u, 0.0, 3, 1.0).tolist() == [2, 2]


def check_text_is_the_tokens_without_specials(small):
    s = small()
    table = sample(s.model, jobs(s.model, PROMPTS, [0.0]), {}, s.cfg, "0|test")
    for text, ids in table.select("text", "completion_ids").rows():
        assert text == s.model.to_text([x for x in ids if x not in STOPS])
        assert "<end>" not in text
    assert table.schema["completion_ids"] == pl.List(pl.Int64)


@pytest.mark.parametrize("rows", [1, 3])
def check_every_prompt_may_have_the_same_length(small, rows):
    s = small(batch_rows=rows)
    table = jobs(s.model, ["abc", "abd", "xyz"], [0.0, 1.0])
    assert sampled(s, table) == sampled(small(batch_rows=64), table)
