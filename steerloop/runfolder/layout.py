"""Every path in a run folder, once, and the stages of a round in their order. What is in the files
says runs/README.md."""

import os
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
CONFIG = "config.json"
EVENTS = "events.jsonl"
SUMS = "checksums.txt"  # in the format of sha256sum
LOG = "log.txt"
LOCK = "lock"
SUMMARY = "summary.json"
VERDICTS = "verdicts.md"
GATES = "gates.md"  # what verdicts.md was called once, and "gates" its key in summary.json
DIARY = "diary.md"
MAP = "map.html"
REPORT = "report.html"
TRAINING = "training.html"
BROWSER = "completions.html"
DIARY_PAGE = "diary.html"
VERDICTS_PAGE = "verdicts.html"
PAGES = (REPORT, MAP, TRAINING, BROWSER, DIARY_PAGE, VERDICTS_PAGE)
EXPORTS = "exports"  # what was exported without --out
BUNDLE = "bundle.tar.gz"  # among them

# What a finished run has, beside what checksums.txt names:
MADE = (CONFIG, EVENTS, SUMS, SUMMARY, VERDICTS, DIARY, MAP, REPORT)

SEVERAL = ("guide", "vector")  # knobs that may name several files (texts/parts.py)

# Beside the run folders:
LEDGER = "ledger.parquet"
INDEX = "index.html"
COMPARISON = "compare-{}.html"  # by a hash of the names of its runs
SCRIPT = "plotly-{}.min.js"  # by its version

# Where --track keeps what it writes, in the run folder:
TENSORBOARD = "tensorboard"
WANDB = "wandb"  # as that library names it
TRACKIO = "trackio.rows"  # how many rows it was given
TRACKED = (TENSORBOARD, WANDB)

# What a bundle takes along, as globs below the run folder.
SHARED = ("*.json", "*.jsonl", "*.md", "*.txt", "*.parquet", "rounds/*/*")

# Kept by name; what is in them gives the ending. Of the run:
LIMIT = "limit"
PLANTED = "planted"
U0 = "u0"  # what the readouts answer to the vector and to null vectors
BANDS = "bands"  # what is said under candidate bands of steered blocks
# Of a round, each after the stage that makes it:
VECTOR, DOSE, CURVE, COMPLETIONS, KAPPA = "vector", "dose", "curve", "completions", "kappa"
HEAL, ADAPTER, STEPS = "heal", "adapter", "steps"
DRIFT, WORST, HISTOGRAM = "drift", "worst", "histogram"
ANSWERS, ROLLOUTS = "diary", "rollouts"
# And states that are measured in it:
BASE, STEERED, HEALED = "base", "steered", "healed"
TASKS = "tasks"  # what a state came to in tasks of lm-evaluation-harness

# Stages of its records, those of rivals among them:
RECORDS = ("config", "axis", TASKS, "start", VECTOR, U0, "evaluate", "sample", HEAL, DRIFT,
           "heal_nll", "heal_taught")

# What a round spends its time on, as shares: those of the embedded model (docs/bench), until a
# round of this run has shown its own; and what is said of each when it is over.
SHARES = {VECTOR: 0.03, DOSE: 0.12, U0: 0.02, COMPLETIONS: 0.14, STEERED: 0.15, HEAL: 0.27,
          DRIFT: 0.08, ANSWERS: 0.02, ROLLOUTS: 0.02, HEALED: 0.15}
SAID = {VECTOR: "vector extracted", DOSE: "dose solved",
        U0: "readouts looked at (U0)",
        COMPLETIONS: "completions sampled and filtered", STEERED: "steered model evaluated",
        HEAL: "healed", DRIFT: "drift measured", ANSWERS: "diary written",
        ROLLOUTS: "rolled out", HEALED: "healed model evaluated"}


def of_round(round: int, name: str) -> str:
    """A name of a round (from 0), below the run folder."""
    return f"rounds/{round:02d}/{name}"


def work(round: int) -> str:
    """Where a round keeps what it needs until it is over."""
    return of_round(round, "work")


def is_work(name: str) -> bool:
    """Whether a name is of what a round needs until it is over."""
    return "/work/" in name


def steps_so_far(round: int) -> str:
    """The steps of the heal that is under way in a round."""
    return f"{work(round)}/{STEPS}"


def batch(round: int, number: int) -> str:
    """A batch of completions (from 0) of a round that is not over yet."""
    return f"{work(round)}/batch-{number}"


def of_rival(round: int, rival: str, name: str) -> str:
    """The same of a rival's own loop that `name` is of the run."""
    return of_round(round, f"{rival}.{name}")


def of_state(round: int, state: str) -> list[str]:
    """The names of a measured state: rows per vignette, values per item, and its answers."""
    return [of_round(round, f"{state}.{x}") for x in ("eval", "items", "said")]


def of_tasks(round: int, state: str) -> str:
    """The name of what a state came to in tasks, an item a row."""
    return of_round(round, f"{state}.{TASKS}")


def vector(run: Path, round: int) -> Path:
    """The steering vector of a round."""
    return run / of_round(round, f"{VECTOR}.safetensors")


def adapter(run: Path, round: int) -> Path:
    """The folded Δ of a round."""
    return run / of_round(round, f"{ADAPTER}.safetensors")


def completions(run: Path, round: int) -> Path:
    """Every judged row of a round."""
    return run / of_round(round, f"{COMPLETIONS}.parquet")


def rows(run: Path, round: int, state: str) -> Path:
    """A measured state by vignette."""
    return run / f"{of_state(round, state)[0]}.parquet"


def items(run: Path, round: int, state: str) -> Path:
    """A measured state by item."""
    return run / f"{of_state(round, state)[1]}.parquet"


def said(run: Path, round: int, state: str) -> Path:
    """The answers of a measured state."""
    return run / f"{of_state(round, state)[2]}.parquet"


def tasks(run: Path, round: int, state: str) -> Path:
    """What a measured state came to in tasks; of a run without tasks there is none."""
    return run / f"{of_tasks(round, state)}.parquet"


def answers(run: Path) -> list[tuple[int, str, Path]]:
    """Round (from 0), state and table of all answers that were kept, in order."""
    there = [x for x in run.glob("rounds/*/*.said.parquet") if x.parent.name.isdecimal()]
    return sorted((int(x.parent.name), x.name.removesuffix(".said.parquet"), x) for x in there)


def planted(run: Path) -> Path:
    """Completions that are known to be coherent or broken, as the filter judged them."""
    return run / f"{PLANTED}.parquet"


def of_all_rounds(run: Path, name: str) -> dict[int, Path]:
    """Round (from 0), in order → its table of this name, for the rounds that have one."""
    there = [x for x in run.glob("rounds/*/*.parquet") if x.name == f"{name}.parquet"]
    return dict(sorted((int(x.parent.name), x) for x in there if x.parent.name.isdecimal()))


def under_way(run: Path) -> dict[int, Path]:
    """Round (from 0) → the steps so far of a heal that is under way, or was over a moment ago."""
    there = run.glob("rounds/*/work/steps.parquet")
    return {int(x.parts[-3]): x for x in there if x.parts[-3].isdecimal()}


def run_of(path: Path) -> Path:
    """The run folder that a file of it, or of one of its rounds or their work, lies in."""
    for depth in (1, 2):
        if path.parents[depth].name == "rounds" and path.parents[depth - 1].name.isdecimal():
            return path.parents[depth + 1]
    return path.parent


def verdicts(run: Path) -> Path:
    """verdicts.md, or of a folder that has it as gates.md alone, that."""
    older = run / GATES
    return older if older.is_file() and not (run / VERDICTS).is_file() else run / VERDICTS


def summaries(root: Path) -> list[Path]:
    """Of all runs in a folder of them, as far as they have one; where that cannot be seen, too."""
    return sorted(x / SUMMARY for x in root.glob("*") if x.is_dir() and (
        os.path.lexists(x / SUMMARY) or not os.access(x, os.X_OK)))


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A config as older versions wrote it → as it is written now: tau was text, a number or
    "auto" (half of the operating KL), every file of a trait was named by itself, and a step was of
    `accumulate` micro-batches."""
    config = {"trait": "none"} | config
    if "accumulate" in config:
        config["step_rows"] = config["batch"] * config.pop("accumulate")
    tau = config.get("tau")
    if not isinstance(tau, str):
        return config
    share = 0.5 if tau == "auto" else 0.0
    now = {"tau": 0.0 if share else float(tau), "tau_share": share}
    known: dict[str, Any] = {}
    for name, value in config.items():
        known |= now if name == "tau" else {name: value}
    return known


def located(document: dict[str, Any]) -> dict[str, Any]:
    """The config of a run, its inputs named by the paths where it found them, as far as they are
    still there: a name as typed may mean another file in another working directory."""
    config = dict(document["config"])
    for knob, x in document.get("inputs", {}).items():
        path = x.get("path", "")
        several = path.split(",") if path and knob in SEVERAL else []
        if several and not all(Path(x).is_relative_to(PACKAGE) for x in several):
            config[knob] = path
        elif path and Path(path).exists() and not Path(path).is_relative_to(PACKAGE):
            filled = config[knob].replace("{split}", config["split"])
            config[knob] = path.removesuffix(filled) + config[knob] if path.endswith(
                filled) else path
    return config


def contents(inputs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The hashes of a run's inputs alone, by 'knob' or 'knob/file'."""
    known = {}
    for knob, x in inputs.items():
        files = x["sha256"] if isinstance(x["sha256"], dict) else {"": x["sha256"]}
        known |= {f"{knob}/{name}".rstrip("/"): digest for name, digest in files.items()}
    return known


def upgraded_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """The same of a summary: its arm is of a config, models are known by their names alone, and
    verdicts were called gates."""
    summary = dict(summary)
    if "gates" in summary:
        summary["verdicts"] = [{"question" if k == "gate" else k: x for k, x in row.items()}
                               for row in summary.pop("gates")]
    if "arm" in summary:
        summary["arm"] = upgraded(summary["arm"])
        summary["arm"]["model"] = Path(summary["arm"]["model"]).name
    return summary
