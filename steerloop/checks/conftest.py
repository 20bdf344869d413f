"""What every check stands on: the package beside this folder, types checked, no network.

This folder has no __init__.py on purpose: pytest then imports this file before `steerloop`, early
enough for STEERLOOP_TYPECHECK=1 to check every annotated shape and dtype of the package.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = ("check_fast_dev_run", "check_run", "check_killed", "check_bands", "check_resume",
           "check_end", "check_baselines", "check_dense", "check_inputs")
os.environ.update(STEERLOOP_TYPECHECK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

import steerloop  # noqa: E402
from steerloop.checks.small import Small, save_small, small_config  # noqa: E402
from steerloop.checks.world import World, open_world  # noqa: E402

settings.register_profile("gate", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("gate")


def pytest_configure() -> None:
    """Refuse to check another copy of the package than the one that holds these checks."""
    found = Path(steerloop.__file__).parents[1]
    if found != ROOT:
        raise pytest.UsageError(f"steerloop comes from {found}, the checks from {ROOT}")
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some checks wait for a process, a disk or a page."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose checks take longest come first, so that no worker is left with one at the end."""
    items.sort(key=lambda x: x.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    """A check that leaves the gradient mode changed would silence those after it."""
    yield
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Options of `save_small` → folder with such a model, each written once a session."""
    known: dict[str, Path] = {}

    def folder(**options: object) -> Path:
        name = repr(sorted(options.items()))
        if name not in known:
            known[name] = save_small(tmp_path_factory.mktemp("small"), **options)
        return known[name]

    return folder


@pytest.fixture(params=["none", "nf4"])
def small(request: pytest.FixtureRequest, folders: Callable[..., Path]) -> Callable[..., Small]:
    """Config fields (and `saved`, options of `save_small`) → a fresh small model and its config.

    Every check that asks for it runs on a dense base and on a 4-bit one; some whole runs on the
    latter in gate-long alone (`nf4_is_long`).
    """

    def load(saved: dict | None = None, **fields: object) -> Small:
        return Small(small_config(folders(**(saved or {})), **{"quant": request.param, **fields}))

    return load


@pytest.fixture(scope="session")
def world() -> World:
    """The embedded model, its data and its perplexity limit."""
    return open_world()
