"""A model's name → a folder with its files: the embedded one, a directory, or the hub's."""

from pathlib import Path
from textwrap import shorten

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HTTPError

from steerloop import UserError
from steerloop.loading.cache import user_cache
from steerloop.loading.files import TOKENIZERS, source, weight_files
from steerloop.texts.data import PACKAGE

HUB = {
    "HuggingFaceTB": "SmolLM2-135M-Instruct SmolLM2-360M-Instruct SmolLM2-1.7B-Instruct SmolLM3-3B",
    "google": "gemma-2-2b-it gemma-2-9b-it gemma-2-27b-it gemma-3-270m gemma-3-270m-it "
    "gemma-3-1b-it gemma-3-4b-it gemma-3-12b-it gemma-3-27b-it",
    "Qwen": "Qwen2.5-0.5B-Instruct Qwen2.5-1.5B-Instruct Qwen2.5-3B-Instruct Qwen2.5-7B-Instruct "
    "Qwen2.5-14B-Instruct Qwen2.5-32B-Instruct Qwen2.5-72B-Instruct Qwen3-0.6B Qwen3-1.7B Qwen3-4B "
    "Qwen3-8B Qwen3-14B Qwen3-32B Qwen3-4B-Instruct-2507",
    "meta-llama": "Meta-Llama-3-8B-Instruct Llama-3.1-8B-Instruct Llama-3.2-1B-Instruct "
    "Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct",
}
ALIASES = {f"smollm2-{size}": f"smollm2-{size}-instruct" for size in ("135m", "360m", "1.7b")}
SHORT = {name.lower(): f"{owner}/{name}" for owner, names in HUB.items() for name in names.split()}
SHORT |= {alias: SHORT[name] for alias, name in ALIASES.items()}
EMBEDDED = "embedded"
GGUF = ".gguf"
WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
UNWANTED = ["original/*", "consolidated*"]  # the same weights again, in other layouts
NO_HUB = (OSError, ValueError, HTTPError)  # what the hub's client raises


def locate(model: str) -> Path:
    """--model → a folder: that of the embedded model, a directory of this name, what a GGUF file
    (or the only one in a directory) was unpacked to, what `python -m steerloop.models fetch` keeps
    of this short name, or the snapshot of a hub id or short name (`@revision` after it pins one),
    fetched unless the hub's cache has it.

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
        folder = kept_folder(model) or snapshot(model)
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


def place(hub: str) -> Path:
    """Where a model of this hub id is kept once it was fetched as a GGUF file: under the last part
    of its id, in lower case."""
    return user_cache() / "models" / hub.rpartition("/")[2].lower()


def kept_folder(model: str) -> Path | None:
    """The folder that `python -m steerloop.models fetch` keeps of this short name, if it does. A
    hub id and a name with @revision mean the files on the hub, never this folder."""
    hub = SHORT.get(model.lower())
    folder = place(hub) if hub else None
    return folder if folder and any(folder.glob("*.gguf")) else None


def cached(hub: str) -> Path | None:
    """The snapshot of a hub id in the hub's cache, where its weights are whole. Asks nobody."""
    try:
        folder = Path(snapshot_download(hub, cache_dir=HF_HUB_CACHE, local_files_only=True,
                                        allow_patterns=WANTED, ignore_patterns=UNWANTED))
        weights = weight_files(folder)
    except NO_HUB:
        return None
    return folder if weights and all(x.is_file() for x in weights) else None


def download(hub: str, revision: str | None = None, anew: bool = False) -> Path:
    """The snapshot of a hub id, fetched unless it is in the hub's cache, or `anew` all the same.
    Raises NO_HUB."""
    return Path(snapshot_download(hub, revision=revision, cache_dir=HF_HUB_CACHE,
                                  force_download=anew, allow_patterns=WANTED,
                                  ignore_patterns=UNWANTED))


def how_to_get(hub: str) -> str:
    """What to do about a model that is not here, as part of a line."""
    return (f"`hf download {hub}` gets it, where it is gated after `hf auth login` and the licence "
            f"at https://huggingface.co/{hub}")


def snapshot(model: str) -> Path:
    """A hub id or short name, perhaps with @revision → its folder in the cache, fetched unless it
    is there. Raises UserError."""
    name, _, revision = model.partition("@")
    hub = SHORT.get(name.lower(), name)
    try:
        return download(hub, revision or None)
    except NO_HUB as e:
        ours = f"`python -m steerloop.models fetch {model}` or " if model.lower() in SHORT else ""
        raise UserError(
            f"--model {model}: looked for a directory of that name, in the caches "
            f"{user_cache() / 'models'} and {HF_HUB_CACHE}, and on the hub for {hub}; {ours}"
            f"{how_to_get(hub)}; or pass a directory "
            f"({shorten(str(e), 160, placeholder=' ...')})") from e


def public_name(folder: Path) -> tuple[str, str | None]:
    """A model's folder → how others find it: (hub id, revision) of a snapshot in a hub cache, else
    (its name alone, None), of a GGUF file that of the file, or the short name under which it was
    fetched: where it lies is nobody else's business."""
    named = source(folder)
    folder = named.parent.resolve() / named.name if named.is_file() else named.resolve()
    if folder.parent.parent == (user_cache() / "models").resolve():
        return folder.parent.name, None
    kind, _, owned = folder.parent.parent.name.partition("--")
    if folder.parent.name == "snapshots" and kind == "models":
        return owned.replace("--", "/"), folder.name
    return (EMBEDDED if folder == (PACKAGE / "tinyworld/model").resolve() else folder.name), None
