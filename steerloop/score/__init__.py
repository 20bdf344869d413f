"""Our evaluation of anyone's model or adapter, on the same items, with the same intervals.

A plain model is measured as it is, or against another (`--base`). A PEFT adapter is measured on its
base, off and on, so that what it changes is paired by vignette. The result is a folder like that of
a run: config.json, events.jsonl and the tables of base and scored state, which
`python -m steerloop.report` reads.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import torch
from huggingface_hub import snapshot_download
from loguru import logger
from safetensors import safe_open
from torch import Tensor

from steerloop import UserError, lora, report
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.evidence.lengths import check_lengths
from steerloop.export.adapter import SETTINGS, WEIGHTS
from steerloop.export.extras import extra
from steerloop.harness import capability, definitions, present
from steerloop.kernels.dense import Dense
from steerloop.kernels.hardware import hardware
from steerloop.kernels.trunk import Trunk
from steerloop.loading.fit import check_fit, output_head
from steerloop.loading.given import give_template
from steerloop.loading.hub import SHORT, locate
from steerloop.loading.room import rows_at_once
from steerloop.loading.weights import load_weights, stop_ids
from steerloop.model import Model
from steerloop.report.run import run_table
from steerloop.report.trait import Frames, unasked
from steerloop.runfolder import layout
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.identity import code_version
from steerloop.runfolder.inputs import file_record, model_record, record, tell
from steerloop.runfolder.layout import of_state
from steerloop.runfolder.opening import log_to, note_end
from steerloop.sight import glance
from steerloop.texts.data import Data, read_data

READ = ("model", "template", "persona", "vignettes", "mundane")  # of the inputs of a run


@dataclass
class Adapter:
    """A PEFT adapter's folder, and the base it names (hub id or folder)."""

    folder: Path
    base: str


def find_adapter(model: str) -> Adapter | None:
    """The adapter of this name, a folder or on the hub; None where it is a model.

    Raises UserError for an adapter without safetensors, or that does not name its base.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_file() or model.lower() in ("embedded", *SHORT) or "/" not in model:
            return None
        try:
            folder = Path(snapshot_download(model, allow_patterns=[SETTINGS, WEIGHTS]))
        except (OSError, ValueError):  # loading it as a model says what is wrong
            return None
    if not (folder / SETTINGS).is_file():
        return None
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{model} has no {WEIGHTS}: only safetensors are read; convert it with "
                        "PEFT's save_pretrained")
    config = extra("peft").PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise UserError(f"{model} is a {config.peft_type.value} adapter, which changes the prompt "
                        "and not the weights: not supported")
    base, revision = config.base_model_name_or_path, config.revision
    if base and "/" in base and revision and not Path(base).is_dir():
        base = f"{base}@{revision}"
    return Adapter(folder, base or "")


def base_of(name: str, adapter: Adapter) -> str:
    """The base that an adapter names. Raises UserError where it names none, or one that is not to
    be had from here."""
    if not adapter.base or adapter.base.startswith("."):  # wherever it was trained
        raise UserError(f"{name} does not say what its base is: name it with --base")
    try:
        locate(adapter.base)
    except UserError as e:
        raise UserError(f"{name} names its base {adapter.base}, which is no model here and not in "
                        f"the hub's cache: --base says where it is, or `hf download {adapter.base}`"
                        ) from e
    return adapter.base


def bare(cfg: Config) -> Model:
    """A model with nothing wrapped: the library's own layers. Sets `batch_rows` of cfg where it is
    0. Raises UserError."""
    device = hardware(cfg.device, cfg.threads)
    tokenizer, hf = load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, device)
    give_template(tokenizer, cfg.template)
    dense, decoder = Dense(hf, {}, gates := lora.Gates(1), cfg.decode), hf.get_decoder()
    model = Model(tokenizer, stop_ids(hf), hf, decoder, Trunk(decoder), output_head(hf), gates, {},
                  dense, device)
    return rows_at_once(check_fit(cfg.model, model), cfg)


def put_on(model: Model, adapter: Adapter) -> Callable[[], AbstractContextManager]:
    """Put an adapter into the model's layers with PEFT, and return what switches it off for a
    while, trained biases included. Names of a multimodal checkpoint are turned into those of its
    text decoder.

    Raises UserError where keys match nothing, or what it changes would not be measured.
    """
    peft = extra("peft")
    config = peft.PeftConfig.from_pretrained(str(adapter.folder))
    if isinstance(config.target_modules, str):
        config.target_modules = config.target_modules.replace("language_model\\.", "").replace(
            "language_model.", "")
    else:
        config.target_modules = {x.replace("language_model.", "") for x in config.target_modules}
    probe = torch.tensor([model.render("Hello")], device=model.device)
    before = model.hf(input_ids=probe).logits
    biases = [(x, x.detach().clone()) for name, x in model.hf.named_parameters()
              if name.endswith("bias")]
    try:
        handle = peft.PeftModel.from_pretrained(
            model.hf, str(adapter.folder), config=config,
            key_mapping={r"\blanguage_model\.": ""}).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as e:
        raise UserError(f"PEFT cannot put {adapter.folder} on {adapter.base}: "
                        f"{str(e).splitlines()[0]}; name another --base") from e
    with safe_open(adapter.folder / WEIGHTS, "pt") as file:
        there = {x.replace("language_model.", "") for x in file.keys()  # noqa: SIM118
                 if ".base_layer.weight" not in x}  # PEFT saves embeddings beside their adapters
    placed = set(peft.get_peft_model_state_dict(handle, save_embedding_layers=False))
    if lost := sorted(there ^ placed):
        raise UserError(f"{lost[0]} of {adapter.folder} has no place in {type(model.hf).__name__}, "
                        f"or no weights in the file ({len(lost)} such keys): is {adapter.base} its "
                        "base?")
    if torch.equal(before, model.hf(input_ids=probe).logits):
        raise UserError(f"{adapter.folder} changes nothing on {adapter.base}: is it trained?")
    check_fit(str(adapter.folder), model)
    off = partial(without, handle, [(x, x.detach().clone(), was) for x, was in biases])
    with off():
        if not torch.equal(before, model.hf(input_ids=probe).logits):
            raise UserError(f"{adapter.folder} cannot be switched off again, so its base cannot be "
                            "measured: merge it with PEFT, and give the result and --base")
    return off


@contextmanager
def without(handle: Any, biases: list[tuple[Tensor, Tensor, Tensor]]) -> Iterator[None]:
    """While open, PEFT's adapter is off, and so are its biases, which PEFT leaves in: of each
    (n) the parameter, its value under the adapter, and that of the base."""
    with catch_warnings(action="ignore"), handle.disable_adapter():
        for parameter, _, base in biases:
            parameter.data.copy_(base)
        try:
            yield
        finally:
            for parameter, adapted, _ in biases:
                parameter.data.copy_(adapted)


def measure(
    run: Folder, state: str, model: Model, data: Data, cfg: Config, base: Frames | None = None
) -> Frames:
    """Evaluate the model as it stands, into the folder, as a run does; against `base` where there
    is one."""
    frames = evaluate(model, data, cfg)
    for name, frame in zip(of_state(0, state), frames, strict=True):
        run.table(name, frame)
    measures = report.measures(frames, base or frames, cfg.ppl_factor)
    run.event("evaluate", round=0, state=state, dose=0.0, measures=measures)
    if cfg.tasks:
        run.table(layout.of_tasks(0, state), capability(model, cfg))
    return frames


def measure_both(
    run: Folder, name: str, adapter: Adapter | None, model: Model, data: Data, cfg: Config
) -> None:
    """The base that `model` is, as it is; and what was asked for, where that is another."""
    run.event("axis", axis=[data.down, data.up])
    if cfg.tasks:
        run.event(layout.TASKS, **definitions(cfg))
    off = put_on(model, adapter) if adapter else nullcontext
    with off():
        base = measure(run, "base", model, data, cfg)
        asked = glance(model, data, cfg, base) if cfg.u0 else unasked(base, [data.down, data.up])
        run.event(layout.U0, **asked)
    if adapter is None and cfg.model == name:
        return
    if adapter is None:
        model = bare(dataclasses.replace(cfg, model=name))
        check_lengths(model, data, cfg, loop=False)
    measure(run, "scored", model, data, cfg, base)


@torch.no_grad()
def score(name: str, cfg: Config, base: str = "", forced: dict[str, str] | None = None) -> Path:
    """Measure `name` (directory, hub id, adapter) under the data and settings of `cfg`, against its
    base where it has one or `base` names one. `forced` is what differs from the run whose settings
    are taken, and was let pass: recorded. Returns the folder; raises UserError."""
    present(cfg)  # what is not there is said at once
    adapter, data = find_adapter(name), read_data(cfg)
    first = base or (base_of(name, adapter) if adapter else name)
    if adapter:
        adapter.base = first
    model = bare(cfg := dataclasses.replace(cfg, model=first))
    check_lengths(model, data, cfg, loop=False)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    run = Folder(Path(cfg.runs) / f"{stamp}_{Path(name).name}_score")
    inputs = record(cfg, READ) | {"scored": file_record(
        adapter.folder, [adapter.folder / SETTINGS, adapter.folder / WEIGHTS]
    ) if adapter else model_record(name)}
    run.json(layout.CONFIG, config=dataclasses.asdict(cfg), scored=name, code=code_version(),
             inputs=inputs, resumed=[forced] if forced else [])
    log_to(run.path / layout.LOG)
    tell(cfg, inputs)
    try:
        measure_both(run, name, adapter, model, data, cfg)
    except BaseException as e:
        note_end(e, run.path, f"{run.path} is half a score: delete it, and start again")
        raise
    logger.info(f"{run.path}: {name}" + (f" against {first}" if first != name else ""))
    logger.info(f"\n{run_table(run.path)}")
    return run.path
