"""The table of models that have a short name. It is made of what is on the disk: no network."""

from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from steerloop.loading.cache import user_cache
from steerloop.loading.hub import SHORT, cached, place
from steerloop.models.known import PACKAGED, licence, named_size

HEAD = ("name", "hub id", "size", "licence", "from", "here")


def names() -> dict[str, str]:
    """The shortest name of each model → its hub id."""
    shortest: dict[str, str] = {}
    for name in sorted(SHORT, key=len, reverse=True):
        shortest[SHORT[name]] = name
    return {shortest[hub]: hub for hub in dict.fromkeys(SHORT.values())}


def here(hub: str) -> str:
    """Where on this machine a model is, "no" where it is not."""
    packaged = PACKAGED.get(hub)
    file = place(hub) / packaged.file if packaged else None
    if file and file.is_file():
        right = file.stat().st_size == packaged.size
        return "kept" if right else "kept, damaged: fetch it anew"
    return "hub cache" if cached(hub) else "no"


def rows() -> list[tuple[str, ...]]:
    """The cells of each model, in the order of HEAD."""
    return [(name, hub, named_size(hub), licence(hub), origins(hub), here(hub))
            for name, hub in names().items()]


def origins(hub: str) -> str:
    """Where a model is to be had, and how much the packages are that have it."""
    packaged = PACKAGED.get(hub)
    return f"hub, packages ({packaged.size / 1e6:.0f} MB)" if packaged else "hub"


def listing() -> str:
    """The table, and what its words mean."""
    table = [HEAD, *rows()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
             for row in table]
    kept: Path = user_cache() / "models"
    return "\n".join([
        *lines, "",
        "size: parameters, as the name has them. The last part of a hub id is a short name, too.",
        f"kept: in {kept}; hub cache: in {HF_HUB_CACHE}.",
        "python -m steerloop.models fetch NAME gets one; what is gated on the hub needs `hf auth "
        "login` first."])
