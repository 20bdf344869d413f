"""The README.md of an export: where it comes from, what was measured, how to load it."""

import re
from pathlib import Path
from shlex import quote

from steerloop.export.student import Student
from steerloop.export.vectors import GGUF, SAFE, flags
from steerloop.loading.hub import locate, public_name
from steerloop.report.sight import OFF
from steerloop.report.text import inline
from steerloop.runfolder.files import read_summary

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

LOAD = {
    "peft": """    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained({base!r})
    model = PeftModel.from_pretrained(base, "this folder")

vLLM: `--enable-lora --max-lora-rank {rank} --lora-modules steerloop=this-folder`.""",
    "merged": """    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("this folder")""",
    "gguf-lora": """    llama-server -m BASE.gguf --lora adapter.gguf

BASE.gguf is a GGUF file of the base above; `python -m steerloop.export RUN --to gguf --gates 0`
writes one. A server's `/lora-adapters` takes a scale: a dial, 1 is the student.""",
    "gguf": """    llama-server -m model.gguf""",
}
LIBRARY = {"peft": "peft", "gguf-lora": "gguf", "gguf": "gguf"}


def front_matter(base: str, kind: str) -> str:
    """What the hub reads. A local folder is no hub id, so it is not named as one, nor is a name
    that YAML would take for more than a name."""
    lines = ["pipeline_tag: text-generation"]
    if HUB_ID.fullmatch(base):
        lines.append(f"base_model: {base}")
    lines += [f"library_name: {LIBRARY.get(kind, 'transformers')}", "tags:"]
    if kind in ("peft", "gguf-lora"):
        lines += [f"- base_model:adapter:{base}"] * bool(HUB_ID.fullmatch(base)) + ["- lora"]
        lines += ["- transformers"] * (kind == "peft")
    lines += ["- steerloop"]
    return "\n".join(["---", *lines, "---"])


def measured(student: Student, as_run: bool) -> str:
    """Base against this round, from summary.json; nothing where the export is not the whole round
    `as_run`: under other gates, truncated, on another base."""
    def unknown(why: str) -> str:
        return (f"Not measured: {why}. This measures it, on the items and settings of the run:\n\n"
                f"    python -m steerloop.score THIS-FOLDER --like {quote(student.run.name)}")

    summary, k = read_summary(student.run), student.rounds - 1
    if not (student.gates[: student.rounds] == 1).all():
        return unknown("the run knows no student under these gates")
    if not as_run:
        return unknown("the run measured the whole student, and this is not quite that")
    event = next((x for x in summary.get("healed", []) if x["round"] == k), None)
    if event is None:
        return unknown("the run has no evaluation of this round")
    shifts = [f"- {inline(k)}: {{:+.2f}} nats, 95 % interval [{{:+.2f}}, {{:+.2f}}]".format(*x)
              for k, x in event.get("moved", {}).items()]
    sight = summary.get("u0", {})
    shifts += [f"- read by {sight.get('headline') or 'nothing'} (U0: {sight.get('verdict', OFF)})"]
    was, now = summary["base"], event["measures"]
    ratio = now["ppl_mundane"] / was["ppl_mundane"]
    known = f"{now['coherence']:.3f} of the base's" if "coherence" in now else "not known"
    return "\n".join([*shifts, f"- coherence: {known}",
                      f"- perplexity of ordinary text: × {ratio:.3f}"])


def source(student: Student) -> tuple[str, list[str]]:
    """The base as others find it, and lines on it."""
    base, revision = public_name(locate(student.cfg.model))
    lines = [f"base: {base}" + (f" at {revision}" if revision else ""),
             f"files of the base: sha256 {student.weights} over their names and contents"]
    return base, lines + [f"forced, the base is not that of the run: {k}: {x}"
                          for k, x in student.forced.items()]


def card(student: Student, kind: str, facts: list[str], found: str, rank: int = 0) -> str:
    """Markdown of the card; `facts` are lines on how the artefact was made and checked, `found` is
    what was `measured`."""
    base, lines = source(student)
    gates = ", ".join(f"{g:g}" for g in student.gates[: student.rounds].tolist())
    made = [*lines, f"run: {student.run.name}, {student.rounds} rounds, gates {gates}",
            f"trained on a {'4-bit (NF4)' if student.cfg.quant == 'nf4' else 'dense'} base in "
            f"{student.cfg.dtype}, r {student.cfg.r} and alpha {student.cfg.alpha:g} a round",
            *facts]
    return page(front_matter(base, kind), student, kind, [
        "A steering vector distilled into weights by steerloop, under a bound on the drift from "
        "the base.", bullets(made), "## Measured against base", found, "## Load it",
        LOAD[kind].format(base=base, rank=rank)])


def vector_card(
    student: Student, blocks: list[int], gguf: bool, facts: list[str], out: Path
) -> tuple[str, str]:
    """Markdown of the card of a vector that will lie in the folder `out`, and how it is loaded."""
    base, lines = source(student)
    made = [*lines, f"run: {student.run.name}, round {student.rounds}",
            f"added to the output of blocks {blocks[0]} to {blocks[-1]} (from 0), everywhere",
            *facts]
    load = (f"llama.cpp: {flags(out / GGUF, blocks)}" if gguf else
            f"safetensors: {SAFE} has block.<i>, what is added to the output of block i")
    here = (f"    {flags(Path(GGUF), blocks)}" if gguf else
            f'    from safetensors.torch import load_file\n    vector = load_file("{SAFE}")')
    kind = "gguf-vector" if gguf else "vector"
    return page(front_matter(base, kind), student, kind, [
        "A steering vector of steerloop.", bullets(made), "## Measured against base",
        "Not measured at scale 1. The run's tables have it at the doses that were sampled, as the "
        "state steered.", "## Load it", here]), load


def page(front: str, student: Student, kind: str, parts: list[str]) -> str:
    """A card of its front matter and parts."""
    return "\n\n".join([front, f"# {inline(student.run.name)}, {kind}", *parts]) + "\n"


def bullets(lines: list[str]) -> str:
    """Lines of text as a list."""
    return "\n".join(f"- {inline(x)}" for x in lines)


def write_card(path: Path, text: str) -> None:
    """Write it as README.md of the export."""
    (path / "README.md").write_text(text, encoding="utf-8")
