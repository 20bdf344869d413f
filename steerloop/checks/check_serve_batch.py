"""Rows of one batch that join and leave at any time say what each would say alone."""

import random
from pathlib import Path

import pytest
import torch

from steerloop.checks.families import DENSE, HYBRID, save_family
from steerloop.checks.small import Small, small_config
from steerloop.kernels.decode import draws, pick
from steerloop.readouts.states import Vector
from steerloop.serve.batch import Flight, Seat
from steerloop.steer import steered

FEW = ["gemma3", "gemma3-multimodal", "llama3", "qwen3.5"]
MORE = [x for x in [*DENSE, *HYBRID, "qwen3-moe"] if x not in FEW]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]  # what every family has


def seat(rng: random.Random, number: int, **fields: object) -> Seat:
    """A row with a prompt and ways of its own; many share a prompt, a dial or a way."""
    words = random.Random(rng.randrange(4))
    prompt = [words.randrange(6, 256) for _ in range(words.choice([1, 2, 5, 11, 23]))]
    gates = rng.choice([[0.0, 0, 0], [1, 1, 0], [1, 0.5, 1], [-1, 0, 2]])
    return Seat(
        prompt=prompt, gates=torch.tensor(gates).float(), dose=rng.choice([0.0, 0.0, 0.5, 2.0]),
        draws=draws(f"row {number}", rng.choice([1, 2, 7, 19, 30])),
        temperature=rng.choice([0.0, 0.7, 1.0, 1.0]), k=rng.choice([5, 50]),
        p=rng.choice([1.0, 0.8]), **fields)


def alone(s: Small, x: Seat, vector: Vector) -> list[int]:
    """What a row says by itself: no cache, no batch."""
    out: list[int] = []
    with torch.no_grad(), s.model.gates(x.gates), steered(s.model, vector, x.dose):
        for u in x.draws:
            logits = s.logits(torch.tensor([x.prompt + out]))[:, -1].float()
            out += pick(logits, u[None], x.temperature, x.k, x.p).tolist()
    return out


@torch.no_grad()
def flown(s: Small, seats: list[Seat], vector: Vector, rng: random.Random) -> dict[Seat, list[int]]:
    """What rows say that join one batch at random steps and leave it when they are out of draws."""
    flight, waiting, said = Flight(s.model, vector), [*seats], {x: [] for x in seats}

    def drawn(some: list[Seat], tokens: list) -> None:
        for x, token in zip(some, tokens, strict=True):
            said[x].append(token.id)
        flight.leave({x for x in some if len(said[x]) == len(x.draws)})

    while waiting or flight.seats:
        some = [waiting.pop() for _ in range(min(len(waiting), rng.randrange(4)))]
        if some:
            rows, tokens = flight.read(some)
            flight.join(some, rows)
            drawn(some, tokens)
        if flight.seats:
            drawn(flight.seats, flight.step())
    assert flight.rows is None
    return said


def compared(folder: Path, count: int) -> None:
    s = Small(small_config(folder, quant="none", targets=ATTENTION))
    for seed in range(3):
        s.stir(seed)
        s.fold()
    vector, rng = s.vector(), random.Random(1)
    seats = [seat(rng, i) for i in range(count)]
    for x, ids in flown(s, seats, vector, rng).items():
        assert ids == alone(s, x, vector), (x.prompt, x.gates, x.dose)


@pytest.mark.parametrize("family", FEW)
def check_rows_that_join_and_leave_say_what_each_says_alone(family, tmp_path):
    """The windows of some are shorter than their texts, the states of some are no keys."""
    compared(save_family(tmp_path, family), 24)


@pytest.mark.long
@pytest.mark.parametrize("family", MORE)
def check_so_in_every_family(family, tmp_path):
    compared(save_family(tmp_path, family), 40)


@torch.no_grad()
def check_log_probabilities_are_those_of_a_plain_pass(folders):
    """Of the tokens drawn, of the likeliest, and of the prompt; a prompt that several have in
    common is read once."""
    s = Small(small_config(folders(), quant="none"))
    s.stir(0)
    s.fold()
    rng, vector = random.Random(3), s.vector()
    seats = [seat(rng, i % 3, top=i, prompt_top=i) for i in range(6)]
    for x in seats[3:]:
        x.top = x.prompt_top = None
    flight = Flight(s.model, vector)
    rows, firsts = flight.read(seats)
    flight.join(seats, rows)
    for n, (x, first) in enumerate(zip(seats, firsts, strict=True)):
        with s.model.gates(x.gates), steered(s.model, vector, x.dose):
            logp = s.logits(torch.tensor([x.prompt]))[0].float().log_softmax(-1)
        if x.top is None:
            assert first.logprob is None and not first.top and not x.about_prompt
            continue
        found = [*x.about_prompt, first]
        assert [t.id for t in found[:-1]] == x.prompt[1:]
        for row, token in zip(logp, found, strict=True):
            assert abs(token.logprob - row[token.id].item()) < 1e-4
            best = row.topk(n)
            assert list(token.top) == best.indices.tolist()
            assert torch.allclose(torch.tensor([*token.top.values()]), best.values, atol=1e-4)


@torch.no_grad()
def check_what_is_no_number_ends_one_row_alone(folders):
    s = Small(small_config(folders(), quant="none"))
    rng = random.Random(5)
    seats = [seat(rng, i) for i in range(3)]
    seats[0].dose, seats[1].dose, seats[2].dose = 0.0, 1e30, 0.0
    vector = {b: torch.full_like(v, 1e30) for b, v in s.vector().items()}
    flight = Flight(s.model, vector)
    _, firsts = flight.read(seats)
    assert [x.id < 0 for x in firsts] == [False, True, False]
