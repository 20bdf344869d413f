"""`steerloop COMMAND` is `python -m steerloop.COMMAND`, and a wrong command is one line."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from shutil import copy

import pytest

from steerloop.checks.conftest import ROOT
from steerloop.cli import commands


def run(*argv):
    """Exit status, what was printed, and what was said about errors."""
    entry = "from steerloop.cli.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", entry, *argv], cwd=ROOT, capture_output=True,
                          text=True)
    return done.returncode, done.stdout, done.stderr


def check_the_script_is_installed_from_pyproject():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["steerloop"].partition(":")
    assert module == commands.__name__ and getattr(commands, name) is commands.main


def check_every_command_is_a_module_that_runs():
    for name in commands.COMMANDS:
        spec = importlib.util.find_spec(f"steerloop.{name}")
        runs = spec.origin if spec.submodule_search_locations is None else (
            f"{spec.submodule_search_locations[0]}/__main__.py")
        assert 'if __name__ == "__main__":' in Path(runs).read_text(), name


def check_commands_are_listed():
    for argv in ((), ("--help",)):
        status, said, _ = run(*argv)
        assert status == 0 and all(f"  {name} " in said for name in commands.COMMANDS)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", commands.COMMANDS)
def check_every_command_explains_itself(name, capsys, monkeypatch):
    """In this process: a new one spends seconds on its imports."""
    monkeypatch.setattr(sys, "argv", ["steerloop", name, "--help"])
    with suppress(SystemExit):
        commands.main()
    assert len(capsys.readouterr().out.splitlines()) > 4


def check_a_command_is_its_module():
    for argv in (["models", "fetch", "nowhere"], ["report", "nowhere"]):
        module = subprocess.run([sys.executable, "-m", f"steerloop.{argv[0]}", *argv[1:]],
                                cwd=ROOT, capture_output=True, text=True)
        assert run(*argv) == (module.returncode, module.stdout, module.stderr)
        assert module.returncode and module.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["trian", "checks", "../train", "train.py"])
def check_a_wrong_command_is_one_line(name):
    status, said, errors = run(name)
    assert status == 2 and not said
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "report" in errors


def git(folder, *argv):
    """What a git command in a folder prints."""
    return subprocess.run(["git", "-C", str(folder), *argv], check=True, capture_output=True,
                          text=True).stdout.strip()


def check_vendor_brings_what_is_there_up_to_date(tmp_path, monkeypatch):
    """The hub is a folder here. Twice: cloned, and moved on to a newer commit."""
    copy(ROOT / "justfile", tmp_path)
    text = (ROOT / "justfile").read_text()
    names = re.findall(r"\b(?:wassname|vgel|karpathy)/[\w-]+", text)
    for key, value in {"COUNT": "1", "KEY_0": f"url.file://{tmp_path}/hub/.insteadOf",
                       "VALUE_0": "https://github.com/"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)
    for name in names:
        (tmp_path / "hub" / name).mkdir(parents=True)
        git(tmp_path / "hub" / name, "init", "-q")
    for text in ("first", "second"):
        for name in names:
            (tmp_path / "hub" / name / "file").write_text(text)
            git(tmp_path / "hub" / name, "add", "file")
            git(tmp_path / "hub" / name, "-c", "user.name=x", "-c", "user.email=x", "commit",
                "-qm", text)
        just = Path(sys.executable).with_name("just")
        done = subprocess.run([just, "vendor"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = (tmp_path / "docs/vendor/COMMITS").read_text()
        assert said == done.stdout and len(said.splitlines()) == len(names) == 8
        for name in names:
            there = tmp_path / "docs/vendor" / name.partition("/")[2]
            assert (there / "file").read_text() == text
            assert f"{name} {git(tmp_path / 'hub' / name, 'rev-parse', 'HEAD')} " in said
