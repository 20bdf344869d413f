"""The README.md of an export: where it comes from, what was measured, how to load it."""

from pathlib import Path

from steerloop.export.student import Student
from steerloop.loading.hub import locate, public_name
from steerloop.runfolder.files import read_summary

LOAD = {
    "peft": """    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained({base!r})
    model = PeftModel.from_pretrained(base, "this folder")

vLLM: `--enable-lora --max-lora-rank {rank} --lora-modules steerloop=this-folder`.""",
    "merged": """    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("this folder")""",
}


def front_matter(base: str, kind: str) -> str:
    """What the hub reads. A local folder is no hub id, so it is not named as one."""
    lines, hub = ["pipeline_tag: text-generation"], "/" in base
    if hub:
        lines.append(f"base_model: {base}")
    if kind == "peft":
        tag = [f"- base_model:adapter:{base}"] if hub else []
        lines += ["library_name: peft", "tags:", *tag, "- lora", "- transformers", "- steerloop"]
    else:
        lines += ["library_name: transformers", "tags:", "- steerloop"]
    return "\n".join(["---", *lines, "---"])


def measured(student: Student) -> str:
    """Base against this round, from summary.json, where the whole round is exported as trained."""
    summary, k = read_summary(student.run), student.rounds - 1
    if not summary or not (student.gates[: student.rounds] == 1).all():
        return "Not measured under these gates: `python -m steerloop.score` does it."
    event = next((x for x in summary["healed"] if x["round"] == k), None)
    if event is None:
        return "Not measured: the run has no evaluation of this round."
    shifts = [f"- Δ{f}: {{:+.2f}} nats, 95 % interval [{{:+.2f}}, {{:+.2f}}]".format(
        *event["shift"][f]["nats"]) for f in summary["axis"]]
    was, now = summary["base"], event["measures"]
    ratio = now["ppl_mundane"] / was["ppl_mundane"]
    return "\n".join([*shifts, f"- coherence: {now['coherence']:.3f} (base {was['coherence']:.3f})",
                      f"- perplexity of ordinary text: × {ratio:.3f}"])


def card(student: Student, kind: str, facts: list[str], rank: int = 0) -> str:
    """Markdown of the card; `facts` are lines on how the artefact was made and checked."""
    base, revision = public_name(locate(student.cfg.model))
    gates = ", ".join(f"{g:g}" for g in student.gates[: student.rounds].tolist())
    made = [f"- base: `{base}`" + (f" at {revision}" if revision else ""),
            f"- files of the base: sha256 {student.weights} over their names and contents",
            *(f"- forced, the base is not that of the run: {k}: {x}"
              for k, x in student.forced.items()),
            f"- run: `{student.run.name}`, {student.rounds} rounds, gates {gates}",
            f"- trained on a {'4-bit (NF4)' if student.cfg.quant == 'nf4' else 'dense'} base in "
            f"{student.cfg.dtype}, r {student.cfg.r} and alpha {student.cfg.alpha:g} a round",
            *(f"- {x}" for x in facts)]
    return "\n\n".join([
        front_matter(base, kind), f"# {student.run.name}, {kind}",
        "A steering vector distilled into weights by steerloop, under a bound on the drift from "
        "the base.", "\n".join(made), "## Measured against base\n\n" + measured(student),
        "## Load it\n\n" + LOAD[kind].format(base=base, rank=rank)]) + "\n"


def write_card(path: Path, text: str) -> None:
    """Write it as README.md of the export."""
    (path / "README.md").write_text(text)
