"""The fused loss and the scorer equal dense twins in value and in gradient, whatever the kind, the
aggregate, the shape, the dtype and the cut into chunks."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerloop.barrier import Barrier, Step, heal_loss, token_losses
from steerloop.checks.twins import dense_heal_loss, dense_kl, dense_logp
from steerloop.kernels import head as heads
from steerloop.kernels.chunked import chunks
from steerloop.kernels.head import Head
from steerloop.kernels.spectral import sigma_max

KINDS, AGGS = ("kl_rev", "kl_fwd"), ("rmse", "mean", "p95", "max")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def close(found, wanted, limit):
    """Relative to the size of the whole, with a floor for what is about zero."""
    found, wanted = torch.as_tensor(found).float(), torch.as_tensor(wanted).float()
    return (found - wanted).norm() <= limit * (wanted.norm() + 0.1)


def problem(sizes, d, v, seed, softcap, dtype):
    """Random states of student and reference, a head, targets, and rows of these sizes."""
    g, n = torch.Generator().manual_seed(seed), sum(sizes)
    h = torch.randn(n, d, generator=g)
    ref = h + 0.5 * torch.randn(n, d, generator=g)
    head = Head(torch.randn(v, d, generator=g).to(dtype), softcap, (1.0, 0.25)[seed % 2])
    targets = torch.randint(v, (n,), generator=g)
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes).long())
    return h.to(dtype).requires_grad_(), ref.to(dtype), targets, rows, head


def chunked(limit):
    """At most `limit` logits are alive at once."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(heads, "CHUNK_LOGITS", limit)
        yield


SHAPES = {
    "sizes": st.lists(st.integers(0, 7), min_size=1, max_size=5),
    "d": st.integers(1, 9),
    "v": st.integers(2, 40),
    "seed": st.integers(0, 2**20),
    "softcap": st.sampled_from([None, 2.0]),
    "chunk": st.sampled_from([1, 60, heads.CHUNK_LOGITS]),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
}


@given(**SHAPES, kind=st.sampled_from(KINDS), agg=st.sampled_from(AGGS),
       tau=st.sampled_from([0.0, 0.3, 100.0]), extra=st.integers(0, 3))
def check_heal_loss_is_its_dense_twin(
    sizes, d, v, seed, softcap, chunk, dtype, kind, agg, tau, extra
):
    if dtype == torch.bfloat16:  # at a kink (a row's top position, the hinge) roundings disagree
        agg, tau = "mean", 0.0
    h, ref, targets, rows, head = problem(sizes, d, v, seed, softcap, dtype)
    barrier = Barrier(kind, agg, 0.7, tau)
    totals = max(1, len(targets)) + extra, len(sizes) + extra
    wanted, nlls, tops = dense_heal_loss(h, ref, targets, rows, head, barrier, *totals)
    (slope,) = torch.autograd.grad(wanted, h)
    for _ in chunked(chunk):
        loss, nll, top = heal_loss(h, ref, targets, rows, head, Step(barrier, *totals))
        (2.5 * loss).backward()
    limit = LIMITS[dtype]
    assert close(loss.detach(), wanted.detach(), limit)
    assert nll.shape == (len(targets),) and close(nll, nlls, limit)
    assert close(top, tops, max(limit, 1e-4))  # the root of rmse keeps an epsilon
    assert h.grad.dtype == dtype and close(h.grad, 2.5 * slope.float(), max(limit, 1e-4))


@given(**SHAPES)
def check_heal_loss_without_reference_is_the_mean_nll(sizes, d, v, seed, softcap, chunk, dtype):
    h, _, targets, rows, head = problem(sizes, d, v, seed, softcap, dtype)
    n, barrier = max(1, len(targets)), Barrier("nll", "rmse", 5.0, 0.0)
    wanted, _, _ = dense_heal_loss(h, None, targets, rows, head, barrier, n, 3)
    (slope,) = torch.autograd.grad(wanted, h)
    for _ in chunked(chunk):
        loss, _, top = heal_loss(h, None, targets, rows, head, Step(barrier, n, 3))
        loss.backward()
    assert top.shape == (0,)
    assert close(loss.detach(), wanted.detach(), LIMITS[dtype])
    assert close(h.grad, slope, LIMITS[dtype])


@given(**SHAPES, kind=st.sampled_from(KINDS))
def check_token_losses_is_its_dense_twin(sizes, d, v, seed, softcap, chunk, dtype, kind):
    h, ref, targets, _, head = problem(sizes, d, v, seed, softcap, dtype)
    for _ in chunked(chunk):
        nll, kl = token_losses(h, ref, targets, head, kind)
        alone, zero = token_losses(h, None, targets, head, kind)
    logp, logq = dense_logp(h, head).detach(), dense_logp(ref, head)
    wanted = [-logp[i, t].item() for i, t in enumerate(targets.tolist())]
    pair = (logp, logq) if kind == "kl_rev" else (logq, logp)
    assert not nll.requires_grad and nll.shape == kl.shape == (len(targets),)
    assert close(nll, wanted, LIMITS[dtype]) and torch.equal(alone, nll) and not zero.any()
    assert close(kl, dense_kl(*pair), LIMITS[dtype])
    assert (kl >= -1e-2).all()


@given(sizes=SHAPES["sizes"], most=st.integers(1, 20))
def check_chunks_hold_whole_rows_within_the_limit(sizes, most):
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes).long())
    found = list(chunks(rows, most))
    assert [x for part in found for x in part] == [x for x in sizes if x]
    assert all(len(part) == 1 or sum(part) <= most for part in found)
    assert all(sum(a) + b[0] > most for a, b in pairwise(found))  # none could have been longer


def check_a_chunk_is_chosen_from_memory(monkeypatch):
    head = Head(torch.randn(40, 6))
    for room, most in ((1e12, heads.CHUNK_LOGITS // 40), (10 * 40, 10), (39, 1)):
        bytes_ = room * 4 * heads.COPIES / heads.SHARE_TRAINING
        monkeypatch.setattr(heads, "memory", lambda _, x=bytes_: x)
        assert head.chunk == most


@pytest.mark.parametrize("agg", AGGS)
@pytest.mark.parametrize("kind", KINDS)
def check_gradient_is_finite_where_student_is_reference(kind, agg):
    h, _, targets, rows, head = problem([4, 1], 6, 20, 0, None, torch.float32)
    barrier = Barrier(kind, agg, 1.0, 0.0)
    for ref in (h.detach().clone(), h.detach() + 1e-4):
        h.grad = None
        loss, _, top = heal_loss(h, ref, targets, rows, head, Step(barrier, 5, 2))
        loss.backward()
        assert h.grad.isfinite().all() and top.isfinite().all() and top.max() < 1e-3


@pytest.mark.parametrize("agg", AGGS)
def check_the_hinge_is_off_below_tau_and_on_above(agg):
    h, ref, targets, rows, head = problem([5, 3], 6, 20, 1, None, torch.float32)

    def gradient(barrier):
        h.grad = None
        loss, _, top = heal_loss(h, ref, targets, rows, head, Step(barrier, 8, 2))
        loss.backward()
        return h.grad.clone(), top

    silent, top = gradient(Barrier("kl_rev", agg, 1.0, 1e3))
    bare, _ = gradient(Barrier("kl_rev", agg, 0.0, 0.0))
    between, _ = gradient(Barrier("kl_rev", agg, 1.0, top.mean().item()))
    on = (rows == top.argmax()).nonzero()[:, 0]
    off = (rows == top.argmin()).nonzero()[:, 0]
    assert torch.equal(silent, bare)
    assert torch.equal(between[off], bare[off])
    assert not torch.allclose(between[on], bare[on], atol=1e-3)


@given(r=st.integers(1, 6), d_in=st.integers(6, 20), d_out=st.integers(1, 20),
       seed=st.integers(0, 999))
def check_sigma_max_is_that_of_the_dense_product(r, d_in, d_out, seed):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(r, d_in, generator=g, dtype=torch.float64).requires_grad_()
    B = torch.randn(d_out, r, generator=g, dtype=torch.float64).requires_grad_()
    found, wanted = sigma_max(A, B), torch.linalg.svdvals(B @ A)[0]
    assert torch.allclose(found, wanted)
    for a, b in zip(torch.autograd.grad(found, (A, B)), torch.autograd.grad(wanted, (A, B)),
                    strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def check_sigma_max_has_a_finite_gradient_at_zero():
    A, B = torch.randn(4, 9).requires_grad_(), torch.zeros(7, 4).requires_grad_()
    top = sigma_max(A, B)
    top.backward()
    assert top == 0 and A.grad.isfinite().all() and B.grad.isfinite().all()
