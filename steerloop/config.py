"""Every knob of a run in one dataclass, with its unit; presets are only the differences.

The class defaults are those for hub models (bf16, an iso-KL dose of 1 nat); presets/*.toml holds
what the embedded model and the `--tiny` smoke run change. Flags on the command line always win.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steerloop import UserError
from steerloop.cli import parsing
from steerloop.cli.knobs import SEEDS, check_device, check_knobs, expanded, knob
from steerloop.texts.data import FILES, NO_PACK, SEVERAL, TEACHERS, TEMPLATES
from steerloop.texts.packs import pack_files
from steerloop.texts.parts import parts

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATHS = ("runs", "resume", "trait", "tasks_path", *FILES)
CONSTRAINT = ("tau", "tau_share", "agg", "ref")
IDLE = {"nll": ("lam", "lam_pow", *CONSTRAINT), "spectral": CONSTRAINT}  # what a barrier leaves out
TRACKERS = ("tensorboard", "wandb", "trackio")
TWICE = [("steer_blocks", "steer_band"), ("lora_blocks", "lora_band")]


@dataclass
class Config:
    """One run. Raises UserError, naming the field, for a value that no run can use."""

    # what is trained, on what
    model: str = knob("embedded", "'embedded', a short name, hub id, directory or .gguf file")
    template: str = knob("", "chat template: plain, chatml, gemma or a file; empty: the model's")
    preset: str = knob("", "settings by name, of steerloop/presets; empty: the model's own, if any")
    tiny: bool = knob(False, "smoke run: all of it real, the scale turned down, types checked")
    resume: str = knob("", "run folder to go on with, with the config that it has")
    force: bool = knob(False, "go on although something changed; recorded")
    device: str = knob("auto", "torch device; auto: cuda if there is one, else cpu")
    threads: int = knob(0, "CPU threads; 0: as many as torch takes by itself", 0, 1024)
    quant: Literal["nf4", "none"] = knob("nf4", "4-bit base, or none: dense")
    dtype: Literal["auto", "bfloat16", "float32"] = knob("auto", "auto: bfloat16 where fast")
    decode: Literal["auto", "dense", "nf4"] = knob("auto", "dense: sample, evaluate unpacked")
    attn: Literal["auto", "sdpa", "eager"] = knob("auto", "attention; auto: sdpa where it fits")
    seed: int = knob(0, "seed of every random draw of the run", 0, SEEDS)
    rounds: int = knob(8, "rounds of the loop", high=1000)
    runs: str = knob("runs", "folder that receives the run folder")
    track: str = knob("", "mirror the run to tensorboard, wandb or trackio, which has to be "
                      "installed; empty: nowhere")
    trait: str = knob("care_over_authority", "trait pack: a folder, one of ours by name, or none; "
                      "A:1,B:.5 adds their vectors, all else is of the first", joined=True)
    persona: str = knob("", "persona pairs (.toml); as those below, empty: the trait's own")
    guide: str = knob("", "those whose vector steers, where --teacher names another pack; of "
                      "several packs in --trait those that are added")
    contexts: str = knob("", "user texts for extraction, as prompts are")
    prompts: str = knob("", "to answer: one a line, or .jsonl with a column prompt")
    contrast: str = knob("", "prompts with opposed answers (JSON lines)")
    vignettes: str = knob("", "moral vignettes (JSON lines)")
    reasons: str = knob("", "phrases that say why an act is wrong (.toml)")
    mundane: str = knob("", "ordinary text (JSON lines)")
    labelled: str = knob("", "completions judged by hand (JSON lines), an audit")
    split: Literal["dev", "test"] = knob("test", "replaces {split} in data file names")
    probes: list[str] = knob([], "extra measures, module:function, called as f(model, cfg)")
    eval: Literal["own", "moralmaps"] = knob("own", "moralmaps: that package's measures as well")
    # extract and dose
    teacher: str = knob("vector", "who is imitated: vector, null, base, prompt, or another trait "
                        "pack, for its vector")
    vector: str = knob("", "file with the vector, or FILE:weight,FILE:weight for a sum, in the "
                       "place of extraction: .safetensors (ours), .gguf, .pt", joined=True)
    max_contexts: int = knob(256, "contexts read by extraction")
    steer_blocks: list[int] = knob([], "steered blocks by index; empty: use steer_band", 0)
    steer_band: list[float] = knob([0.45, 0.55], "low high, fractions of depth; auto: by what is "
                                   "said under it", 0, 1, word="auto")
    target_kl: float = knob(1.0, "iso-KL: p95 per-token KL(steered || unsteered), nats")
    dose_prompts: int = knob(8, "prompts rolled out per candidate dose")
    dose_tokens: int = knob(128, "length limit of those rollouts, tokens")
    multiples: list[float] = knob([0.5, 0.75, 1.0], "doses sampled, as multiples of kappa * c*; 0 "
                                  "alone: a control", 0)
    kappa_min: float = knob(0.2, "least shrink factor kappa of the survival walk", high=1)
    survival: float = knob(0.75, "share of completions that must survive the filter", high=1)
    walk_rows: int = knob(8, "completions sampled in one step of the walk")
    # sample
    n_prompts: int = knob(48, "prompts used in a round")
    n_keep: int = knob(64, "kept completions that a round trains on")
    budget: float = knob(6.0, "most completions sampled in a round, multiples of n_keep", high=1000)
    batch_rows: int = knob(0, "rows of one sampling or scoring batch; 0: by the memory", 0)
    max_new_tokens: int = knob(512, "length limit of a completion, tokens")
    temperature: float = knob(1.0, "sampling temperature; 0: greedy", 0, 100)
    top_k: int = knob(64, "candidate tokens kept before top_p")
    top_p: float = knob(0.95, "probability mass kept among the top_k", high=1)
    # filter
    filter: bool = knob(True, "drop incoherent completions; --no_filter drops only empty ones")
    ppl_factor: float = knob(3.0, "perplexity limit, multiple of the base's own 99th percentile")
    max_repeat: float = knob(0.3, "limit of the repeated share of word n-grams", 0, 1)
    max_echo: float = knob(0.2, "limit of the share of sentences said before", 0, 1)
    max_loop: float = knob(0.2, "limit of the share of characters in immediate repeats", 0, 1)
    min_zip: float = knob(0.25, "limit of the compression ratio of texts over 200 bytes", 0, 1)
    min_tokens: int = knob(4, "shortest completion kept, tokens", 0)
    # heal
    lora_blocks: list[int] = knob([], "trained blocks by index; empty: use lora_band", 0)
    lora_band: list[float] = knob([0.2, 0.8], "trained band: low high, fractions of depth", 0, 1)
    targets: list[str] = knob(PROJECTIONS, "wrapped linear layers, by the end of their names")
    r: int = knob(32, "LoRA rank of one round", high=4096)
    alpha: float = knob(64.0, "LoRA scale numerator, s = alpha / r", high=10**5)
    barrier: Literal["kl_rev", "kl_fwd", "spectral", "nll"] = knob("kl_rev", "the one constraint")
    agg: Literal["rmse", "mean", "p95", "max"] = knob("rmse", "aggregate of one completion's KLs")
    lam: float = knob(0.3, "barrier weight lambda, per nat", 0)
    lam_pow: float = knob(-0.5, "round r uses lambda * (1 + r) ** lam_pow", -9, 9)
    tau: float = knob(0.0, "barrier threshold, nats; 0: by tau_share", 0)
    tau_share: float = knob(0.8, "tau as a share of the KL of a coherent teacher at its doses", 0)
    ref: Literal["base", "prev"] = knob("base", "reference of the KL")
    kl_budget: float = knob(0.0, "limit of the mean KL to base per token, nats; 0: none", 0)
    lr: float = knob(1e-4, "peak learning rate of AdamW", high=10)
    weight_decay: float = knob(0.0, "decoupled weight decay of AdamW", 0, 10**4)
    betas: list[float] = knob([0.9, 0.95], "AdamW decay of the first and second moment", 0, 1)
    warmup: float = knob(0.1, "share of the steps that warm up; cosine decay follows", 0, 1)
    clip: float = knob(1.0, "gradient norm limit")
    step_rows: int = knob(6, "completions of one optimiser step")
    batch: int = knob(0, "most completions of a step at once; 0: by the memory", 0)
    epochs: int = knob(6, "passes over the kept completions", high=10**4)
    val_share: float = knob(0.125, "share of kept completions held out, to report on", 0, 0.9)
    checkpointing: bool = knob(False, "recompute activations in backward, to save memory")
    # evaluate and stop
    every: int = knob(1, "evaluate every n-th vignette; 1: all of them, as reported numbers need")
    tasks: list[str] = knob([], "tasks of lm-evaluation-harness by name, asked of base, students "
                            "and rivals")
    tasks_path: str = knob("", "folder of further tasks (YAML)")
    tasks_limit: int = knob(0, "first n items of each task; 0: all of them", 0)
    tasks_chat: bool = knob(True, "tasks in the chat template; --no_tasks_chat: as plain text")
    tasks_loss: float = knob(0.02, "largest loss of a task that is accepted, in the unit of its "
                             "metric (shares, nats, bits)", 0)
    baselines: bool = knob(False, "measure a prompt, steering and plain distillation as well")
    think_tokens: int = knob(128, "tokens of thought before the forced choice; 0: none", 0)
    said_prompts: int = knob(24, "held-out prompts that every measured state answers")
    said_pairs: int = knob(6, "persona pairs that read each of them")
    said_tokens: int = knob(64, "length limit of those answers, tokens")
    u0: bool = knob(True, "ask first whether the instruments see, and see the vector")
    u0_items: int = knob(16, "most items of a readout under every null vector", 4)
    bootstrap: int = knob(1000, "resamples behind every 95 % interval", 10, 10**5)
    coh_floor: float = knob(0.8, "least share kept of the base's own answers; less is said", 0, 1)
    coh_drop: float = knob(0.1, "loss of coherence against base that ends the loop", 0, 1)

    def __post_init__(self) -> None:
        check_knobs(self)
        check_device(self.device)
        if self.track not in ("", *TRACKERS):
            raise UserError(f"--track {self.track}: there are {', '.join(TRACKERS)}")
        self.template = TEMPLATES.get(self.template, self.template)
        for name in (*SEVERAL, "trait"):
            parts(getattr(self, name), name)
        if self.teacher not in TEACHERS:
            files = pack_files(expanded(self.teacher), "teacher")
            self.teacher, self.guide = "pack", files["persona"]
        packs = [x.name for x in parts(self.trait, "trait")]
        if len(packs) == 1 and bool(self.guide) != (self.teacher == "pack"):
            raise UserError("--guide goes with --teacher pack, and that with --guide")
        if len(packs) > 1 and NO_PACK in packs:
            raise UserError(f"--trait {self.trait}: {NO_PACK} has no vector to add")
        if self.vector and (self.teacher != "vector" or len(packs) > 1):
            raise UserError("--vector is what steers: leave --teacher at vector, and name one pack "
                            "in --trait, by which it is read")
        if self.vector and not self.steer_blocks and not self.steer_band:
            raise UserError("--steer_band auto looks for the blocks of a vector that is extracted: "
                            "beside --vector name blocks, or a band")
        for name in PATHS:
            many = getattr(self, name).split(",") if name in (*SEVERAL, "trait") else [
                getattr(self, name)]
            setattr(self, name, ",".join(map(expanded, many)))
        if self.tasks_path:  # a run goes on from any directory
            self.tasks_path = str(Path(self.tasks_path).absolute())
        self.tasks = [x for names in self.tasks for x in names.split(",") if x]
        for name in ("steer_band", "lora_band", "betas"):
            if len(pair := getattr(self, name)) not in (0, 2):
                raise UserError(f"--{name} takes two numbers, not {pair}")
        for name in ("steer_band", "lora_band"):
            if getattr(self, name) != sorted(getattr(self, name)):
                raise UserError(f"--{name} takes the low end first, not {getattr(self, name)}")
        if max(self.betas) == 1:
            raise UserError(f"--betas are below 1, not {self.betas}: a moment would never change")
        for probe in self.probes:
            if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", probe):
                raise UserError(f"--probes takes module:function, not {probe!r}")


def refuse(cfg: Config, said: dict[str, Any]) -> None:
    """Raises UserError for options that contradict one another, of those on the command line."""
    for name in IDLE.get(cfg.barrier, ()):
        if name in said:
            raise UserError(f"--{name} has no effect under --barrier {cfg.barrier}: leave one of "
                            "them out")
    for one, other in TWICE:
        if {one, other} <= said.keys():
            raise UserError(f"--{one} and --{other} say the same thing in two ways: give one")
    if "tau_share" in said and cfg.tau:
        raise UserError(f"--tau_share has no effect beside --tau {cfg.tau:g}: leave one of them "
                        "out (--tau 0 is none)")
    if cfg.min_tokens > cfg.max_new_tokens:
        raise UserError(f"--min_tokens {cfg.min_tokens} is more than --max_new_tokens "
                        f"{cfg.max_new_tokens}: every completion would be dropped")


def parse(argv: list[str]) -> Config:
    """Command line → Config: a preset, that of --tiny over it, then the flags."""
    about = "Steer, sample, filter, heal, fold; round after round."
    return parsing.parse(Config, argv, about, refuse)
