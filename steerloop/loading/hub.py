"""A model's name → a folder with its files: the embedded one, a directory, or the hub's."""

from pathlib import Path
from textwrap import shorten

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE

from steerloop import UserError
from steerloop.loading.files import TOKENIZERS, source, weight_files
from steerloop.texts.data import PACKAGE

HUB = {
    "google": "gemma-2-2b-it gemma-2-9b-it gemma-2-27b-it gemma-3-270m-it gemma-3-1b-it "
    "gemma-3-4b-it gemma-3-12b-it gemma-3-27b-it",
    "Qwen": "Qwen3-0.6B Qwen3-1.7B Qwen3-4B Qwen3-8B Qwen3-14B Qwen3-32B Qwen3-4B-Instruct-2507",
    "meta-llama": "Meta-Llama-3-8B-Instruct Llama-3.1-8B-Instruct Llama-3.2-1B-Instruct "
    "Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct",
}
SHORT = {name.lower(): f"{owner}/{name}" for owner, names in HUB.items() for name in names.split()}
EMBEDDED = "embedded"
GGUF = ".gguf"
WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
UNWANTED = ["original/*", "consolidated*"]  # the same weights again, in other layouts


def locate(model: str) -> Path:
    """--model → a folder: that of the embedded model, a directory of this name, what a GGUF file
    (or the only one in a directory) was unpacked to, or the snapshot of a hub id or short name
    (`@revision` after it pins one), fetched unless the cache has it.

    Raises UserError where there is none, or one without configuration, weights or tokenizer.
    """
    folder = PACKAGE / "tinyworld/model" if model == EMBEDDED else Path(model).expanduser()
    if not model:
        raise UserError("--model is empty: name a directory, a short name or a hub id")
    if folder.suffix.lower() == GGUF and not folder.is_dir():
        return gguf_file(model, [folder])
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith("."):
            raise UserError(f"--model {model}: there is no such directory")
        folder = snapshot(model)
    ggufs = sorted(x for x in folder.glob("*") if x.suffix.lower() == GGUF)
    if ggufs and not (folder / "config.json").is_file():
        return gguf_file(model, ggufs)
    try:
        config = (folder / "config.json").is_file()
        lacks = {"config.json": not config,
                 "weights (model.safetensors, or an index of shards)":
                     config and not weight_files(folder),
                 f"tokenizer ({' or '.join(TOKENIZERS)})":
                     not any((folder / x).is_file() for x in TOKENIZERS)}
    except (OSError, ValueError) as e:
        raise UserError(f"--model {model}: {folder}: {e}") from e
    for what, absent in lacks.items():
        if absent:
            raise UserError(f"--model {model}: {folder} has no {what}; save model and tokenizer "
                            "there with save_pretrained")
    return folder


def gguf_file(model: str, files: list[Path]) -> Path:
    """The folder that the one GGUF file of these was unpacked to. Raises UserError."""
    from steerloop.loading.gguf import unpacked  # its library takes a while to import

    if len(files) > 1:
        names = ", ".join(x.name for x in files)
        raise UserError(f"--model {model}: a directory with several models, {names}: name one")
    if not files[0].is_file():
        raise UserError(f"--model {model}: there is no such file")
    return unpacked(files[0])


def snapshot(model: str) -> Path:
    """A hub id or short name, perhaps with @revision → its folder in the cache, fetched unless it
    is there. Raises UserError."""
    name, _, revision = model.partition("@")
    hub = SHORT.get(name.lower(), name)
    try:
        return Path(snapshot_download(hub, revision=revision or None, cache_dir=HF_HUB_CACHE,
                                      allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (OSError, ValueError) as e:  # hub errors are of both kinds
        raise UserError(
            f"--model {model}: looked for a directory of that name, in the cache "
            f"{HF_HUB_CACHE} and on the hub for {hub}; `hf download {hub}` gets it, where it "
            f"is gated after `hf auth login` and the licence at https://huggingface.co/{hub}; "
            f"or pass a directory ({shorten(str(e), 160, placeholder=' ...')})") from e


def public_name(folder: Path) -> tuple[str, str | None]:
    """A model's folder → how others find it: (hub id, revision) of a snapshot in a hub cache, else
    (its name alone, None), of a GGUF file that of the file: where it lies is nobody else's
    business."""
    folder = source(folder).resolve()
    kind, _, owned = folder.parent.parent.name.partition("--")
    if folder.parent.name == "snapshots" and kind == "models":
        return owned.replace("--", "/"), folder.name
    return (EMBEDDED if folder == (PACKAGE / "tinyworld/model").resolve() else folder.name), None
