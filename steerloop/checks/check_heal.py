"""How a heal step is cut (micro-batches, checkpointing) does not change its gradient; the barrier
is measured against the reference that was asked for; the loop does lower its own loss."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup

from steerloop import lora
from steerloop.barrier import Barrier
from steerloop.checks.many import many
from steerloop.checks.small import completions
from steerloop.checks.twins import dense_aggregate, dense_kl, row_logits
from steerloop.dose import dose
from steerloop.heal import heal, step_loss
from steerloop.healing.course import Course
from steerloop.healing.optimiser import Scheduled, cosine_rate
from steerloop.healing.threshold import AT_DOSE, threshold
from steerloop.kernels.batch import Row
from steerloop.kernels.spectral import sigma_max
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.recorder import NOTHING, Recorder
from steerloop.sample import completion_losses, jobs, sample
from steerloop.steer import extract


def stirred(small, **fields):
    """A small model with one folded round and a live one that says something."""
    s = small(**fields)
    s.stir(seed=0)
    s.fold()
    s.stir(seed=1)
    return s


def step_rows(s, table, state):
    """What `step_loss` reads, with reference states under the gates `state`."""
    columns = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    with torch.no_grad(), s.model.gates(state):
        (batch,) = s.model.batches(table, len(table))
        refs = batch.split(s.model.hidden(batch))
    return [Row(*x) for x in zip(*columns, refs, table["row"], strict=True)]


def grads(s):
    """The accumulated gradients of the live factors, taken away."""
    found = [p.grad.clone() for p in s.live()]
    s.model.hf.zero_grad()
    return found


def same(one, other, limit=1e-5):
    """Two lists of gradients agree relative to their size."""
    return all((a - b).norm() <= limit * b.norm() and b.norm() > 0
               for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd", "spectral", "nll"])
def check_micro_batches_of_1_and_6_give_one_gradient(small, kind):
    s, barrier = stirred(small), Barrier(kind, "rmse", 0.8, 0.05)
    rows = step_rows(s, completions(6), s.model.gates.before(0))
    if kind in ("spectral", "nll"):
        rows = [row._replace(ref=None) for row in rows]
    found = {}
    for size in (1, 4, 6):
        losses = step_loss(s.model, rows, barrier, size)
        found[size] = (grads(s), losses)
    for size in (1, 4):
        assert same(found[size][0], found[6][0])
        for a, b in zip(found[size][1], found[6][1], strict=True):
            assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4)


def gradients_of_heal(s, table):
    """The gradients that `heal` is about to clip, step by step, from the live Δ that is there."""
    steps, clip = [], torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        steps.append([p.grad.clone() for p in parameters])
        return clip(parameters, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        patch.setattr(lora, "open_round", lambda *_: None)
        heal(s.model, table, s.cfg, 1)
    return steps


def check_checkpointing_and_cuts_leave_heal_alone(small):
    runs, passes = [], []
    for fields in ({"batch": 6}, {"batch": 1}, {"batch": 4}, {"batch": 6, "checkpointing": True}):
        s, count = stirred(small, epochs=1, val_share=0.0, tau=0.05, lr=1e-9, **fields), []
        s.model.decoder.layers[2].mlp.register_forward_hook(lambda *_, c=count: c.append(1))
        steps = gradients_of_heal(s, completions(6))
        assert len(steps) == 1
        assert not s.model.hf.training
        runs, passes = [*runs, steps[0]], [*passes, len(count)]
    assert all(same(run, runs[0]) for run in runs[1:])
    assert passes == [2, 7, 3, 3]  # one for the reference; 1, 6, 2, and 1 recomputed


def check_operating_kl_is_against_the_reference_asked_for(small):
    table, found = completions(5), {}
    for ref in ("base", "prev"):
        s = small(ref=ref, epochs=1, step_rows=5, batch=5, val_share=0.0, agg="mean")
        s.stir(seed=0)
        s.fold()
        lora.open_round(s.model.layers, s.model.gates, 0)
        tops, bare = [], s.bare()
        for p, c in table.select("prompt_ids", "completion_ids").rows():
            at = slice(len(p) - 1, len(p) + len(c) - 1)
            student, base = (row_logits(hf, p + c)[at].log_softmax(-1)
                             for hf in (s.model.hf, bare))
            tops.append(dense_aggregate(dense_kl(student, base), "mean").item())
        found[ref] = heal(s.model, table, s.cfg, 1)[0]["operating_kl"]
    assert found["base"] == pytest.approx(sum(tops) / len(tops), rel=1e-3) and min(tops) > 0.01
    assert found["prev"] == pytest.approx(0, abs=1e-5)


def check_heal_lowers_nll_and_the_barrier_holds_the_kl(small):
    found = {}
    for kind in ("nll", "kl_rev", "spectral"):
        s = small(barrier=kind, epochs=5, lr=2e-2, lam=20.0, lam_pow=0.0, tau=0.01, val_share=0.0)
        table = completions(6)
        stats, _ = heal(s.model, table, s.cfg, 0)
        rows = step_rows(s, table, s.model.gates.before(0))
        with torch.no_grad():
            _, tops = step_loss(s.model, rows, Barrier("kl_rev", "rmse", 1.0, 0.0), 6)
        size = max(sigma_max(x.live_A, x.live_B).item() for x in s.model.layers.values())
        found[kind] = stats["nll_first"] - stats["nll"], sum(tops) / len(tops), size
        assert stats["steps"] == 5
    assert found["nll"][0] > 0.3
    assert found["kl_rev"][1] < 0.7 * found["nll"][1]
    assert found["spectral"][2] < 0.7 * found["nll"][2]


@pytest.mark.parametrize(("round", "power"), [(0, -0.5), (3, -0.5), (3, 0.0), (1, 2.0)])
def check_lambda_follows_its_schedule(small, round, power):
    s = small(lam=0.6, lam_pow=power, epochs=1)
    stats, _ = heal(s.model, completions(3), s.cfg, round)
    assert stats["lam"] == pytest.approx(0.6 * (1 + round) ** power)


def check_a_barrier_that_never_fires_is_reported(small, monkeypatch):
    for tau, silent in ((50.0, True), (0.0, False)):
        s, lines = small(tau=tau, tau_share=0.0, epochs=1), []
        monkeypatch.setattr("steerloop.healing.course.logger.warning", lines.append)
        s.stir(seed=0)
        s.fold()
        stats, _ = heal(s.model, completions(6), s.cfg, 1)
        assert (stats["active"] == 0) is silent and (len(lines) == 1) is silent


@pytest.mark.parametrize("kind", ["kl_rev", "spectral"])
def check_the_pull_is_the_norm_of_what_the_barrier_adds(small, kind):
    """As a heal takes it: the NLL's gradient before an epoch, the step's own as it is taken."""
    s, barrier = stirred(small, epochs=2), Barrier(kind, "rmse", 0.8, 0.05)
    rows = step_rows(s, completions(6), s.model.gates.before(0))
    rows = [row._replace(ref=None) for row in rows] if kind == "spectral" else rows
    sums = []
    for lam in (0.8, 0.0):
        step_loss(s.model, rows, barrier._replace(lam=lam), 3)
        sums.append(torch.cat([g.flatten() for g in grads(s)]))
    wanted = ((sums[0] - sums[1]).norm() / sums[1].norm()).item()
    course = Course(s.live(), barrier, s.cfg, 0, 1, NOTHING)
    course.begin(1, partial(step_loss, s.model, rows, size=3))
    assert all(p.grad is None for p in s.live())
    for _ in range(2):  # but for the first step of an epoch nothing is measured
        course.advance(step_loss(s.model, rows, barrier, 3), [])
    (found,) = course.pulls
    assert found == pytest.approx(wanted, rel=1e-4) and wanted > 0.01


def check_heal_reports_the_pull_and_is_not_moved_by_it(small, monkeypatch):
    found, pulls = [], []
    monkeypatch.setattr("steerloop.healing.course.added", lambda *_: pulls.append(7.0) or 7.0)
    for reported in (7.0, None):
        s = small(epochs=3, lam=3.0, tau_share=0.0, lr=2e-2)
        stats, _ = heal(s.model, completions(8), s.cfg, 0)
        found.append([p.detach().clone() for p in s.live()])
        assert stats["pull"] == reported
        monkeypatch.setattr(Course, "begin", lambda *_: None)
    assert all(map(torch.equal, *found)) and len(pulls) == 2  # one at each later epoch's start
    monkeypatch.undo()
    s = small(epochs=2, barrier="nll")
    assert heal(s.model, completions(8), s.cfg, 0)[0]["pull"] is None


def check_a_share_and_its_nats_are_one_heal(small):
    fields = {"epochs": 2, "lr": 2e-2, "lam": 20.0, "target_kl": 0.05, "multiples": [1.0, 2.0]}
    s = small(**fields, tau_share=0.4)
    stats, _ = heal(s.model, completions(8), s.cfg, 0)
    assert stats["tau"] == pytest.approx(0.4 * 0.5 * 2.5 * 0.05) and 0 < stats["active"] < 1
    fixed = small(**fields, tau=stats["tau"], tau_share=9.0)  # nats are asked for: they go first
    assert heal(fixed.model, completions(8), fixed.cfg, 0)[0] == stats
    assert all(map(torch.equal, s.live(), fixed.live()))


@settings(max_examples=many(2500), database=None)
@given(share=st.floats(1e-6, 3), target=st.floats(0.01, 9), agg=st.sampled_from(list(AT_DOSE)),
       multiples=st.lists(st.floats(0.1, 3), min_size=1, max_size=5), by=st.floats(0.1, 9))
def check_tau_is_in_units_of_the_teacher(share, target, agg, multiples, by):
    """Whatever the units of KL: it grows with the target, with the square of the doses and with the
    share; which dose comes first is no matter; nats that are given are taken."""
    known = {"tau": 0.0, "tau_share": share, "target_kl": target, "agg": agg,
             "multiples": multiples}

    def found(**changes):
        return threshold(SimpleNamespace(**known | changes))

    tau = found()
    low, high = (share * AT_DOSE[agg] * target * f(multiples) ** 2 for f in (min, max))
    assert low * 0.999 <= tau <= high * 1.001
    for changes, factor in ((("target_kl", target * by), by), (("tau_share", share * by), by),
                            (("multiples", [x * by for x in multiples]), by**2),
                            (("multiples", multiples[::-1] * 2), 1)):
        assert found(**dict([changes])) == pytest.approx(factor * tau)
    assert found(tau=by) == by


def check_a_teachers_rows_are_what_the_threshold_takes_them_for(world):
    """Embedded model: A_row of coherent rows, steered at 1 and ½ c*, against target · dose²."""
    cfg = replace(world.cfg, max_new_tokens=40)
    vector = extract(world.model, world.data, cfg)
    c_star, _ = dose(world.model, vector, world.data, cfg, "0")
    table = jobs(world.model, world.data.prompts[:24], [0.7 * c_star, c_star])
    table = sample(world.model, table, vector, cfg, "0|sample")
    _, kls = completion_losses(world.model, table, cfg, vector)
    for agg, factor in AT_DOSE.items():
        barrier = Barrier("kl_rev", agg, 1.0, 0.0)
        taken = [barrier.aggregate(kl).item() / (x / c_star) ** 2 / cfg.target_kl
                 for kl, x in zip(kls, table["dose"], strict=True)]
        assert factor / 2 < sum(taken) / len(taken) < 2 * factor


def check_a_gradient_that_is_not_finite_stops_the_round(small):
    s = small(epochs=1)
    s.model.hf.get_decoder().norm.weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"round 1, heal step 0.*lower --lr.*rows \[\d+, "):
        heal(s.model, completions(6), s.cfg, 0)
    assert all(x.live_B.eq(0).all() and x.live_A.isfinite().all()
               for x in s.model.layers.values())  # as before the step


class Kept(Recorder):
    """Keeps work in progress below a folder, as a run does."""

    def __init__(self, path):
        self.folder = Folder(path)

    def save(self, name, tensors, **note):
        self.folder.tensors(f"work/{name}", tensors, **note)

    def saved(self, name):
        return self.folder.latest(f"work/{name}")

    def steps(self, table):
        self.course = table


@pytest.mark.parametrize("tau", [{"tau_share": 0.02}, {"tau": 0.01}])
def check_a_heal_goes_on_in_the_same_bits(small, tmp_path, monkeypatch, tau):
    """Stopped within its third epoch, then started again with the same folder."""
    fields = {"epochs": 4, "step_rows": 2, "batch": 2, "lr": 1e-2, **tau}
    whole, cut = small(**fields), small(**fields)
    run, other = Kept(tmp_path / "run"), Kept(tmp_path / "other")
    wanted, delta = heal(whole.model, completions(7), whole.cfg, 0, other)
    advance, steps = Scheduled.advance, []

    def stopping(self, step):
        steps.append(step)
        if len(steps) == 10:
            raise KeyboardInterrupt
        return advance(self, step)

    monkeypatch.setattr(Scheduled, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        heal(cut.model, completions(7), cut.cfg, 0, run)
    cut.stir(9)  # another process knows nothing of the first
    stats, found = heal(cut.model, completions(7), cut.cfg, 0, run)
    assert stats == wanted and found.keys() == delta.keys()
    assert run.course.equals(other.course) and len(run.course) == wanted["steps"]
    assert all(torch.equal(found[name], x) for name, x in delta.items())
    assert all(map(torch.equal, whole.live(), cut.live()))
    assert steps[10] == 2 * (1 + max(steps)) // 4  # the last whole epoch


@pytest.mark.parametrize("kind", ["kl_rev", "spectral", "nll"])
def check_a_row_a_step_says_what_the_step_was(small, tmp_path, monkeypatch, kind):
    """Gradient norms and rates as a twin sees them from outside; the rest is what the stats say."""
    s = small(barrier=kind, epochs=3, tau=0.01, lr=2e-2, clip=0.05, warmup=0.4, val_share=0.0)
    run, advance, seen = Kept(tmp_path / "run"), Scheduled.advance, []

    def watched(self, step):
        norm = torch.cat([p.grad.flatten() for p in s.live()]).norm().item()
        advance(self, step)
        seen.append((norm, self.param_groups[0]["lr"]))
        return norm

    monkeypatch.setattr(Scheduled, "advance", watched)
    stats, _ = heal(s.model, completions(8), s.cfg, 0, run)
    table = run.course
    assert table["step"].to_list() == list(range(6)) and table.null_count()["nll"][0] == 0
    assert table["epoch"].to_list() == [0, 0, 1, 1, 2, 2]
    for row, (norm, lr) in zip(table.iter_rows(named=True), seen, strict=True):
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5) and row["lr"] == lr
    assert max(norm for norm, _ in seen) > s.cfg.clip and table["lr"][0] == 0
    assert table["nll"][0] == stats["nll_first"]
    assert table["a_row"].is_null().all() == (kind == "nll")
    assert table["tau"].is_null().all() == (kind != "kl_rev") == table["active"].is_null().all()
    if kind == "kl_rev":
        sizes = [6, 2] * 3  # rows of each step
        over = sum(x * n for x, n in zip(table["active"], sizes, strict=True)) / sum(sizes)
        assert over == pytest.approx(stats["active"]) and 0 < over < 1
        last = table.filter(epoch=2)["a_row"]
        assert (last[0] * 6 + last[1] * 2) / 8 == pytest.approx(stats["operating_kl"])


def check_the_norm_of_a_step_is_that_before_it_was_clipped(small):
    s = stirred(small, clip=1e-3)
    rows = step_rows(s, completions(6), s.model.gates.before(0))
    optimiser = Scheduled(s.live(), s.cfg, 9)
    step_loss(s.model, rows, Barrier("kl_rev", "rmse", 0.8, 0.05), 3)
    wanted = torch.cat([p.grad.flatten() for p in s.live()]).norm().item()
    assert optimiser.advance(1) == pytest.approx(wanted, rel=1e-5) and wanted > 1e-3


def check_healing_twice_gives_the_same_bits(small):
    found = []
    for _ in range(2):
        s = small(epochs=2)
        heal(s.model, completions(7), s.cfg, 0)
        found.append([p.detach().clone() for p in s.live()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (3, 20), (20, 20)])
def check_the_schedule_is_the_librarys(warmup, steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = get_cosine_schedule_with_warmup(optimiser, warmup, steps)
    for step in range(steps):
        assert cosine_rate(step, warmup, steps) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
