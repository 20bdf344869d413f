"""What the checks show with stand-ins, shown with a device itself; `bench gpu` runs each of these
in a process of its own:

    python -m steerloop.checks.ondevice seed --device cuda --json FILE

Each says whether the device computes what it should, and what it found, in a few words.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from steerloop import UserError, lora, train
from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.checks.decoded import decoded_states
from steerloop.checks.digest import digests
from steerloop.checks.families import DENSE, save_family
from steerloop.checks.small import Small, completions, short_config, small_config, token_batch
from steerloop.checks.twins import dense_heal_loss
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, path
from steerloop.config import parse
from steerloop.heal import step_loss
from steerloop.healing.optimiser import training
from steerloop.healing.reference import with_reference
from steerloop.kernels import chunked, graphs
from steerloop.kernels.blocks import one_block
from steerloop.kernels.head import Head
from steerloop.kernels.nf4 import NF4
from steerloop.readouts.forced_choice import choices
from steerloop.runfolder.files import write_whole
from steerloop.sample import jobs, sample
from steerloop.texts.data import read_data

PROMPTS = ["Why?", "Must I go to the old town hall today, or may I stay at home with you?", "So."]
DOSES = [0.0, 0.5, 2.0]
QUANT, DTYPES = ("none", "nf4"), ("float32", "bfloat16")
ROUGH = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # of a gradient, relative to its norm
CLOSE = 1e-5  # of a probability, or a state
FUSED = 1.2  # times the roundings of the library's blocks
AUTHORITY = (-1.2, -0.6)  # nats: about where the default run ended, on CPUs and on a GPU
SMALL = ["--tiny", "--rounds", "1", "--every", "56", "--no_u0"]
SECONDS = 120  # until a run that is to be killed has got to its second round
Found = tuple[bool, str]


def opened(folder: Path, device: str, family: str = "gemma3", **fields: object) -> Small:
    """A small model of a family there."""
    name = "-".join(["m", family, *(str(x) for x in fields.values())])
    saved = save_family(folder / name, family)
    return Small(small_config(saved, device=device, **fields))


def steered(s: Small) -> dict[int, Tensor]:
    """A vector where the model is."""
    return {block: x.to(s.model.device) for block, x in s.vector().items()}


def drawn(s: Small, stops: bool = True, key: str = "0|test") -> list[list[int]]:
    """Steered completions of several lengths."""
    table = jobs(s.model, PROMPTS * 4, DOSES)
    return sample(s.model, table, steered(s), s.cfg, key, stops=stops)["completion_ids"].to_list()


@contextmanager
def by_steps() -> Iterator[None]:
    """No graphs are recorded in this block."""
    real = graphs.recordable
    graphs.recordable = lambda device: False
    try:
        yield
    finally:
        graphs.recordable = real


@contextmanager
def recordings() -> Iterator[list[int]]:
    """The rows of each graph that is recorded in this block."""
    real, sizes = graphs.repeatable, []

    def repeatable(run: Callable[[], Tensor], device: torch.device) -> object:
        out = real(run, device)
        sizes.append(len(out[1]))
        return out

    graphs.repeatable = repeatable
    try:
        yield sizes
    finally:
        graphs.repeatable = real


def check_graphs(folder: Path, device: str) -> Found:
    """Decoding from recorded graphs gives the tokens of decoding step by step."""
    rows = same = made = models = 0
    for family, quant in product(DENSE[:1] if device == "cpu" else DENSE, QUANT):
        s = opened(folder, device, family, quant=quant, max_new_tokens=60, temperature=2.0)
        with recordings() as sizes:
            found = drawn(s)
        with by_steps():
            wanted = drawn(s)
        rows, made, models = rows + len(found), made + len(sizes), models + 1
        same += sum(x == y for x, y in zip(found, wanted, strict=True))
    recorded = made >= models or not graphs.recordable(torch.device(device))
    return same == rows and recorded, f"{same} of {rows} rows, {made} graphs, {models} models"


def check_blocks(folder: Path, device: str) -> Found:
    """States from compiled blocks are as close to those in 32 bits as the library's are, also
    where 4-bit weights or the gated layers stay in them."""
    ok, said = True, []
    for decode, quant, dtype in (*((x, "none", y) for x in ("nf4", "dense") for y in DTYPES),
                                 ("nf4", "nf4", "float32")):
        same = {"device": device, "quant": quant, "decode": decode}
        off = []
        for way, kind in ((one_block, dtype), (nullcontext, dtype), (nullcontext, "float32")):
            s = opened(folder, dtype=kind, **same)
            s.stir(seed=0)
            s.fold()
            off.append(decoded_states(s, way))
        wanted = off.pop()
        ours, library = ((x - wanted).norm() / wanted.norm() for x in off)
        ok &= bool(ours <= max(CLOSE, FUSED * library))
        said.append(f"{quant}/{decode}/{dtype} {ours:.1e} ({library:.1e})")
    return ok, ", ".join(said)


def check_evaluation(folder: Path, device: str) -> Found:
    """Forced choice after thought, by graphs and step by step."""
    s = opened(folder, device, quant="none", think_tokens=16)
    asked = read_data(s.cfg).vignettes.head(6)
    found = choices(s.model, asked, s.cfg)
    with by_steps():
        wanted = choices(s.model, asked, s.cfg)
    apart = max((found[x] - wanted[x]).abs().max() for x in ("p_care", "p_authority", "p_ans_any"))
    return apart < CLOSE, f"apart by {apart:.1e}"


def check_gates(folder: Path, device: str) -> Found:
    """Gates at zero are the base, and a fold is the student, bit for bit."""
    bits = []
    for quant, dtype in product(QUANT, DTYPES):
        s = opened(folder, device, quant=quant, dtype=dtype)
        ids = token_batch(4, 24).to(device)
        with torch.no_grad():
            base = s.bare().to(device)(input_ids=ids).logits
            s.stir(1)
            student = s.logits(ids)
            with s.model.gates(s.model.gates.before(0)):
                bits.append(torch.equal(s.logits(ids), base))
            s.fold()
            bits += [torch.equal(s.logits(ids), student), not torch.equal(student, base)]
    return all(bits), f"{sum(bits)} of {len(bits)} bitwise"


def check_gradient(folder: Path, device: str) -> Found:
    """The loss's gradient against its definition, one position at a time, on the CPU."""
    worst, sizes = {}, (4096,) if device == "cpu" else (4096, 65536, 262144)
    for v, dtype in product(sizes, (torch.float32, torch.bfloat16)):
        torch.manual_seed(0)
        n, b, d = 24, 3, 64
        h, ref = torch.randn(2, n, d, dtype=torch.float32).to(dtype)
        weight = (torch.randn(v, d) * d**-0.5).to(dtype)
        rows, targets = torch.arange(b).repeat_interleave(n // b), torch.randint(0, v, (n,))
        barrier = Barrier("kl_rev", "rmse", 0.3, 0.001)
        ours = h.clone().to(device).requires_grad_()
        loss, *_ = heal_loss(ours, ref.to(device), targets.to(device), rows,
                             Head(weight.to(device)), Step(barrier, n, b))
        loss.backward()
        twin = h.double().requires_grad_()
        wanted, *_ = dense_heal_loss(twin, ref.double(), targets, rows, Head(weight.double()),
                                     barrier, n, b)
        wanted.backward()
        off = (ours.grad.double().cpu() - twin.grad).norm() / twin.grad.norm()
        worst[dtype] = max(worst.get(dtype, 0.0), off.item())
    said = ", ".join(f"{str(k).removeprefix('torch.')} {x:.1e}" for k, x in worst.items())
    return all(x < ROUGH[k] for k, x in worst.items()), f"gradient off by {said}"


def check_nf4(folder: Path, device: str) -> Found:
    """A matrix in 4 bits is the same bytes there as on a CPU."""
    torch.manual_seed(0)
    weight = torch.randn(1152, 1152)
    here, there = (NF4(weight.to(x), None) for x in ("cpu", device))
    parts = [(here.packed, there.packed), (here.state.absmax, there.state.absmax),
             (here.state.state2.absmax, there.state.state2.absmax), (here.weight, there.weight)]
    same = [torch.equal(x, y.cpu()) for x, y in parts]
    return all(same), f"{sum(same)} of {len(same)} tensors bitwise"


def check_waits(folder: Path, device: str) -> Found:
    """Where the host waits for a GPU, by the driver's own account: in decoding once in READ tokens
    and a few times a batch, in an optimiser step twice."""
    if device == "cpu":
        return True, "a CPU is not waited for"
    s = opened(folder, device, quant="none", max_new_tokens=200)
    drawn(s, stops=False)
    decoding = waited(lambda: drawn(s, stops=False, key="0|again"))
    lora.open_round(s.model.layers, s.model.gates, 0)
    rows = with_reference(s.model, completions(6), s.cfg)

    def step() -> None:
        with torch.enable_grad(), training(s.model.hf, False):
            step_loss(s.model, rows, Barrier("kl_rev", "rmse", 0.3, 0.001), 3)

    step()
    healing = waited(step)
    batches = -(-len(PROMPTS) * 4 * len(DOSES) // s.cfg.batch_rows)
    few = sum(decoding.values()) <= batches * (200 // 8 + 12) and sum(healing.values()) <= 2
    return few, (f"{sum(decoding.values())} in {batches} batches of 200 tokens, "
                 f"{sum(healing.values())} in an optimiser step; most at "
                 f"{'; '.join(f'{k} {n}' for k, n in (decoding + healing).most_common(3))}")


def waited(work: Callable[[], object]) -> Counter[str]:
    """File and line → how often the host waited there."""
    with catch_warnings(record=True) as seen:
        simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(x.filename).name}:{x.lineno}" for x in seen
                   if "synchroni" in str(x.message))


def short(folder: Path, device: str, runs: str) -> list[str]:
    """Flags of a short run on a device, two rounds of two epochs each."""
    known = short_config(folder, small_config(folder / "m", device=device), epochs=2, bootstrap=20)
    fields = {k: x for k, x in vars(known).items() if x != getattr(type(known)(), k)}
    fields |= {"runs": str(folder / runs)}
    flags = []
    for name, x in fields.items():
        if isinstance(x, bool):
            flags.append(f"--{name}" if x else f"--no_{name}")
        else:
            flags += [f"--{name}", *(map(str, x) if isinstance(x, list) else [str(x)])]
    return flags


def ran(folder: Path, device: str, runs: str) -> Path:
    """Such a run's folder."""
    return train.train(parse(short(folder, device, runs)))


def apart(one: Path, other: Path) -> Found:
    """Whether two runs are the same to the last bit, and which files are not."""
    mine, theirs = digests(one), digests(other)
    names = [x for x in sorted(mine.keys() | theirs.keys()) if mine.get(x) != theirs.get(x)]
    names.sort(key=lambda x: not x.endswith("safetensors"))
    said = f"{len(mine) - len(names)} of {len(mine)} files bitwise"
    return not names, said + (f"; not {', '.join(names[:4])}" if names else "")


def check_seed(folder: Path, device: str) -> Found:
    """Two uninterrupted runs of one seed; on a GPU with the loss compiled, as of a vocabulary that
    is large."""
    if device != "cpu":
        chunked.LARGE = 2
    save_family(folder / "m", "gemma3")
    return apart(ran(folder, device, "one"), ran(folder, device, "other"))


def check_resume(folder: Path, device: str) -> Found:
    """A run that was killed in its second round and went on, against one that was not."""
    save_family(folder / "m", "gemma3")
    flags, log = short(folder, device, "killed"), folder / "killed.log"
    whole = ran(folder, device, "whole")
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "steerloop.train", *flags], stdout=out,
                                   stderr=out)
    end, there = time.monotonic() + SECONDS, "*/rounds/01/work/batch-0.parquet"
    while not (found := list((folder / "killed").glob(there))) and process.poll() is None:
        if time.monotonic() > end:
            break
        time.sleep(0.002)
    if process.poll() is not None or not found:
        raise UserError(f"the run was not caught in its second round: {log.read_text()[-300:]}")
    process.kill()
    process.wait()
    run = found[0].parents[3]
    train.train(parse(["--resume", str(run)]))
    return apart(whole, run)


def check_default(folder: Path, device: str) -> Found:
    """The default run ends as on a CPU; there it takes minutes, and is rehearsed as --tiny."""
    begin, small = time.monotonic(), SMALL if device == "cpu" else []
    run = train.train(parse(["--device", device, "--runs", str(folder), *small]))
    spent = time.monotonic() - begin
    last = json.loads((run / "summary.json").read_text())["healed"][-1]
    name, (moved, *_) = next(iter(last["moved"].items()))
    as_there = bool(small) or (name == "Δauthority" and AUTHORITY[0] < moved < AUTHORITY[1])
    return as_there, f"{name} {moved:.2f} nats, {spent:.0f} s"


KNOWN: dict[str, Callable[[Path, str], Found]] = {
    name.removeprefix("check_"): f for name, f in list(globals().items())
    if name.startswith("check_")}


def options(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.checks.ondevice", description=__doc__)
    parser.add_argument("what", choices=KNOWN)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=path)
    return parser.parse_args(argv)


def measure(chosen: Namespace) -> None:
    """Say and write what was found."""
    with tempfile.TemporaryDirectory() as scratch:
        ok, figure = KNOWN[chosen.what](Path(scratch), chosen.device)
    print(f"{chosen.what}: {'right' if ok else 'WRONG'}, {figure}")
    if chosen.json:
        text = json.dumps({"ok": bool(ok), "figure": figure})
        write_whole(chosen.json, lambda to: to.write_text(text, encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(options, measure, argv)


if __name__ == "__main__":
    main()
