"""Break an invariant on purpose and see that its check notices.

    python -m steerloop.checks.mutate [NAME ...]

Each entry of mutations.toml is a one-line patch and the check that has to fail under it; one that
`needs` a package is left out where that is not installed, which is said. The package is copied, the
copy patched, and that check alone run on the copy. Before that, every named check has to pass on an
unpatched copy. Exits non-zero when a mutant survives.

Each run is a fork of a process that has imported the heavy libraries, but nothing of this package.
"""

import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM  # noqa: F401

ROOT = Path(__file__).parents[2]
CHECKS = "steerloop/checks"
PASSED, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
WORKERS = 2


class Worker(multiprocessing.context.ForkProcess):
    """Not a daemon, which might not have children: some checks run processes of their own."""

    daemon = property(lambda self: False, lambda self, value: None)


class Fork(multiprocessing.context.ForkContext):
    """Forks such workers."""

    Process = Worker


@dataclass(frozen=True)
class Mutation:
    """`find` must occur exactly once in `file` (below steerloop/); `check` is FILE::NAME."""

    name: str
    file: str
    find: str
    replace: str
    check: str
    why: str
    needs: str = ""  # a package without which the check is skipped

    def apply(self, package: Path) -> None:
        """Patch a copy of the package."""
        path = package / self.file
        text = path.read_text()
        if text.count(self.find) != 1 or "\n" in self.find + self.replace:
            raise ValueError(f"{self.name}: not one line that occurs once in {self.file}")
        path.write_text(text.replace(self.find, self.replace))


def read_mutations(names: list[str]) -> list[Mutation]:
    """Those named, or all. Raises KeyError on an unknown name."""
    entries = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text())
    return [Mutation(name, **entries[name]) for name in names or entries]


def there(mutation: Mutation) -> bool:
    """Whether what its check needs is installed."""
    return not mutation.needs or find_spec(mutation.needs) is not None


def run_checks(checks: list[str], mutation: Mutation | None = None) -> tuple[int, str]:
    """Exit code and output of pytest on a (patched) copy. Changes its process: fork for it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "steerloop"
        shutil.copytree(ROOT / "steerloop", package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if mutation:
            mutation.apply(package)
        for name in [x for x in sys.modules if x.split(".")[0] == "steerloop"]:
            del sys.modules[name]
        sys.modules["__main__"].__spec__ = None  # commands would take this process for their own
        sys.path.insert(0, folder)
        os.chdir(folder)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
            ids = [f"{CHECKS}/{x}" for x in checks]
            code = pytest.main(["-x", "--tb=line", "-p", "no:cacheprovider", "-m", "", *ids])
        os.chdir(ROOT)
    return int(code), out.getvalue()


def verdict(mutation: Mutation) -> tuple[str, str, float]:
    """(name, "killed" or what went wrong, seconds)."""
    start = time.monotonic()
    try:
        code, out = run_checks([mutation.check], mutation)
    except ValueError as e:
        return mutation.name, f"STALE: {e}", 0.0
    known = {FAILED: "killed", PASSED: "SURVIVED"}
    said = known.get(code, f"BROKEN: pytest exited with {code}: {out.strip()[-200:]}")
    return mutation.name, said, time.monotonic() - start


def main(names: list[str]) -> None:
    """Print a table of verdicts. Exits with one line when not every mutant is killed."""
    try:
        mutations = read_mutations(names)
    except KeyError as e:
        sys.exit(f"error: no mutation named {e}")
    for x in (x for x in mutations if not there(x)):
        print(f"{x.name}: left out, {x.needs} is not installed here")
    if not (mutations := [x for x in mutations if there(x)]):
        return
    torch.set_num_threads(1)
    with Fork().Pool(WORKERS, maxtasksperchild=1) as pool:
        code, out = pool.apply(run_checks, [sorted({x.check for x in mutations})])
        if code != PASSED:
            sys.exit(f"{out}\nerror: the named checks have to pass before anything is broken")
        width, survivors = max(len(x.name) for x in mutations), []
        found = pool.imap(verdict, mutations, chunksize=1)
        for mutation, (name, said, seconds) in zip(mutations, found, strict=True):
            print(f"{name:{width}}  {said:8}  {seconds:5.1f} s  {mutation.check}", flush=True)
            survivors += [name] if said != "killed" else []
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutants killed")
    if survivors:
        sys.exit(f"error: not killed: {', '.join(survivors)}")


if __name__ == "__main__":
    main(sys.argv[1:])
