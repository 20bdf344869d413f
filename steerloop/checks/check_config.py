"""Every knob is documented and reachable; whatever is wrong with the input is one line on stderr
and a non-zero exit, before a run folder exists, and with earlier files untouched."""

import dataclasses
import re
import subprocess
import sys
import tomllib

import pytest

from steerloop import UserError, train
from steerloop.checks.small import data_files, small_config
from steerloop.cli.parsing import PRESETS
from steerloop.config import Config, parse
from steerloop.loading.layers import band

FIELDS = dataclasses.fields(Config)


def refused(argv, capsys):
    """Exit status and the lines that a wrong command line leaves on stderr."""
    with pytest.raises(SystemExit) as stop:
        train.main(argv)
    said = capsys.readouterr().err
    if isinstance(stop.value.code, str):  # the interpreter prints it and exits with 1
        return 1, [*said.splitlines(), *stop.value.code.splitlines()]
    return stop.value.code, said.splitlines()


def check_every_knob_is_in_help_with_its_text(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for field in FIELDS:
        words = " ".join(field.metadata["help"].replace("%%", "%").split())
        assert f"--{field.name}" in shown, field.name
        assert words in shown, field.name


def check_numbers_name_their_unit():
    """Where a number has a unit, its help says so."""
    units = {"target_kl": "nats", "tau": "nats", "tau_share": "share", "lam": "per nat",
             "dose_tokens": "tokens",
             "max_new_tokens": "tokens", "think_tokens": "tokens", "min_tokens": "tokens",
             "multiples": "multiples", "steer_band": "fractions", "lora_band": "fractions",
             "ppl_factor": "multiple", "survival": "share", "warmup": "share", "val_share": "share",
             "max_repeat": "share", "max_echo": "share", "max_loop": "share", "min_zip": "ratio",
             "step_rows": "completions", "batch": "completions", "epochs": "passes",
             "r": "rank", "clip": "norm"}
    helps = {f.name: f.metadata["help"] for f in FIELDS}
    assert {k for k, unit in units.items() if unit not in helps[k]} == set()


def check_a_share_has_no_effect_beside_nats_and_says_so(monkeypatch):
    """Whoever gave the nats: the command line or a preset. 0 nats are none."""
    monkeypatch.setattr("steerloop.cli.parsing.preset", lambda name: {"tau": 0.3})
    for argv in ([], ["--tau", "1"]):
        with pytest.raises(UserError, match="--tau_share has no effect beside --tau"):
            parse(["--tau_share", ".5", *argv])
    assert (found := parse(["--tau_share", ".5", "--tau", "0"])).tau_share == 0.5
    assert found.tau == 0 and parse([]).tau == 0.3


def check_flags_beat_presets_and_tiny_beats_embedded():
    embedded = tomllib.loads((PRESETS / "embedded.toml").read_text())
    tiny = tomllib.loads((PRESETS / "tiny.toml").read_text())
    plain, small = parse([]), parse(["--tiny"])
    for key, value in embedded.items():
        assert getattr(plain, key) == value
        assert getattr(small, key) == tiny.get(key, value)
    assert any(tiny.get(k, v) != v for k, v in embedded.items())  # the two do disagree
    flags = parse(["--tiny", "--rounds", "5", "--tau", "0.7", "--steer_blocks", "1", "4"])
    assert (flags.rounds, flags.tau, flags.steer_blocks) == (5, 0.7, [1, 4])
    hub = parse(["--model", "owner/name"])
    assert all(getattr(hub, k) == getattr(Config(model="owner/name"), k) for k in embedded)
    assert parse(["--no_filter"]).filter is False and plain.filter is True


def check_a_preset_by_name_beats_the_models_own():
    """Flags lie over it."""
    small = tomllib.loads((PRESETS / "small-cpu.toml").read_text())
    other = parse(["--model", "owner/name", "--preset", "small-cpu", "--n_keep", "40"])
    assert other == Config(**small | {"model": "owner/name", "preset": "small-cpu", "n_keep": 40})
    assert parse(["--model", "smollm2-135m"]) == Config(
        **small | {"model": "smollm2-135m", "preset": "small-cpu"})
    assert parse(["--preset", "small-cpu"]).trait == Config().trait != parse([]).trait
    assert parse(["--preset", ""]) == parse([])
    with pytest.raises(UserError, match=r"--preset smal: there is none .*embedded, .*small-cpu"):
        parse(["--preset", "smal"])
    with pytest.raises(UserError, match="leave --preset out"):
        parse(["--resume", "runs/any", "--preset", "small-cpu"])


def check_a_preset_lies_over_the_one_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr("steerloop.cli.parsing.PRESETS", tmp_path)
    (tmp_path / "embedded.toml").write_text("preset = 'small'\nrounds = 5\n")
    (tmp_path / "small.toml").write_text("rounds = 2\nn_keep = 40\n")
    assert parse([]) == Config(preset="small", rounds=5, n_keep=40)


def check_presets_name_only_knobs():
    for path in PRESETS.glob("*.toml"):
        found = tomllib.loads(path.read_text())
        assert set(found) <= {f.name for f in FIELDS}, path
        Config(**found)


WRONG = {
    "unknown option": ["--roundz", "3"],
    "an option cut short": ["--round", "3"],
    "a stray word": ["tiny"],
    "ill-typed int": ["--rounds", "three"],
    "ill-typed float": ["--tau", "big"],
    "a fraction of a round": ["--rounds", "1.5"],
    "not a choice": ["--barrier", "l2"],
    "negative lambda": ["--lam", "-1"],
    "negative tau": ["--tau", "-0.1"],
    "tau not a number": ["--tau", "nan"],
    "tau by its old word": ["--tau", "auto"],
    "negative share of tau": ["--tau_share", "-0.5"],
    "negative budget": ["--kl_budget", "-1"],
    "nan": ["--lr", "nan"],
    "infinite": ["--lam", "inf"],
    "nan in a list": ["--multiples", "1", "nan"],
    "nan where any number goes": ["--lam_pow", "nan"],
    "zero rounds": ["--rounds", "0"],
    "no completion a step": ["--step_rows", "0"],
    "share above one": ["--survival", "1.5"],
    "no value": ["--seed"],
    "missing labels": ["--labelled", "no/such/file.txt"],
    "missing file": ["--prompts", "no/such/file.txt"],
    "unknown model": ["--model", "no-such-owner/no-such-model", "--persona", "{persona}",
                      "--contexts", "{contexts}", "--prompts", "{prompts}",
                      "--vignettes", "{vignettes}", "--mundane", "{mundane}"],
    "one pole": ["--persona", "{one_pole}"],
    "poles of two lengths": ["--persona", "{uneven}"],
    "persona that is no toml": ["--persona", "{vignettes}"],
    "empty vignettes": ["--vignettes", "{empty}"],
    "vignettes without labels": ["--vignettes", "{mundane}"],
    "vignettes that are no json": ["--vignettes", "{prompts}"],
    "only comments": ["--contexts", "{comments}"],
    "steer band without a block": ["--steer_band", "0.51", "0.52"],  # also beats the preset's list
    "steer block that is not there": ["--steer_blocks", "99"],
    "lora band without a block": ["--lora_band", "0.99", "1.0"],
    "lora block that is not there": ["--lora_blocks", "0", "99"],
    "unknown layer": ["--targets", "w_proj"],
    "unknown probe": ["--probes", "steerloop.no_such:probe"],
    "a probe without a function": ["--probes", "os"],
    "one moment": ["--betas", "0.9"],
    "three moments": ["--betas", "0.9", "0.95", "0.99"],
    "moments that never change": ["--betas", "1", "1"],
    "nothing to train on": ["--val_share", "1"],
    "a seed of twenty digits": ["--seed", "99999999999999999999"],
    "a seed just too large": ["--seed", str(2**63)],
    "a device without numbers": ["--device", "meta"],
    "a device that is none": ["--device", "gpu0"],
    "too many threads": ["--threads", "100000"],
    "too many rounds": ["--rounds", "1" + 20 * "0"],
    "rounds in another notation": ["--rounds", "1e20"],
    "a steep lambda": ["--lam_pow", "1e9"],
    "a huge rate": ["--lr", "1e99"],
    "a huge decay": ["--weight_decay", "1e30"],
    "half a band": ["--steer_band", ".5"],
    "a band from high to low": ["--lora_band", ".8", ".2"],
    "no folder of runs": ["--runs="],
    "no run to resume": ["--resume", ""],
    "blank prompts": ["--prompts", " "],
    "nobody's home": ["--runs=~nobody-of-that-name/x"],
    "a run that is none": ["--resume", "nowhere"],
    "nll with a threshold": ["--barrier", "nll", "--tau", "1"],
    "nll with a share": ["--barrier", "nll", "--tau_share", ".5"],
    "nll with a weight": ["--barrier", "nll", "--lam", "5"],
    "spectral with a threshold": ["--barrier", "spectral", "--tau", "1"],
    "two thresholds": ["--tau", "1", "--tau_share", ".5"],
    "blocks and a band": ["--steer_blocks", "1", "--steer_band", ".1", ".5"],
    "trained after all that is steered": ["--steer_blocks", "1", "--lora_blocks", "2", "3"],
    "a trained band above the steered": ["--steer_band", "0", ".3", "--lora_band", ".5", ".9"],
    "longer than the longest": ["--min_tokens", "99999"],
    "a truth that is none": ["--tiny", "perhaps"],
}
LATE = {  # said when files and the model are read
    "missing labels", "missing file", "unknown model", "one pole", "poles of two lengths",
    "persona that is no toml", "empty vignettes", "vignettes without labels",
    "vignettes that are no json", "only comments", "steer band without a block",
    "steer block that is not there", "lora band without a block", "lora block that is not there",
    "unknown layer", "unknown probe", "trained after all that is steered",
    "a trained band above the steered",
}
NAMES = {  # what the line has to name
    "unknown option": "--roundz", "negative lambda": "--lam", "nan": "--lr",
    "nan in a list": "--multiples", "missing file": "no/such/file.txt",
    "unknown model": "no-such-owner/no-such-model", "one pole": "one_pole",
    "empty vignettes": "empty", "steer band without a block": "--steer_band",
    "lora band without a block": "--lora_band", "ill-typed int": "--rounds",
    "unknown layer": "w_proj", "unknown probe": "no_such", "one moment": "--betas",
    "half a band": "--steer_band", "no folder of runs": "--runs", "no run to resume": "--resume",
    "nobody's home": "nobody-of-that-name", "nll with a weight": "--lam has no effect",
    "trained after all that is steered": "[2, 3] all come after the steered blocks [1]",
}


@pytest.mark.parametrize("case", WRONG)
def check_wrong_input_is_one_line_and_leaves_no_run(case, tmp_path, capsys, monkeypatch):
    def opened(*_):
        raise AssertionError("the run went on to its run folder")

    monkeypatch.setattr("steerloop.evidence.journal.open_run", opened)
    files = data_files(tmp_path) | {k: str(tmp_path / k)
                                    for k in ("one_pole", "uneven", "empty", "comments")}
    (tmp_path / "one_pole").write_text('positive = ["Be kind."]\n')
    (tmp_path / "uneven").write_text('positive = ["a", "b"]\nnegative = ["c"]\n')
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "comments").write_text("# nothing else\n")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "earlier.txt").write_text("kept")
    argv = [x.format(**files) if x.startswith("{") else x for x in WRONG[case]]
    code, said = refused(["--runs", str(runs), "--device", "cpu", *argv], capsys)
    said = [x for x in said if x.strip() and "Loading weights" not in x]  # the library's bar
    assert code == (1 if case in LATE else 2)
    assert len(said) == 1 and said[0].startswith("error: "), said
    assert "raceback" not in said[0] and NAMES.get(case, "") in said[0]
    assert [x.name for x in runs.iterdir()] == ["earlier.txt"]


def check_a_real_process_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "steerloop.train", "--lam", "-1", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: --lam .*-1\.0\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", [f.name for f in FIELDS if f.type in ("float", float)])
def check_no_number_may_be_nan_or_infinite(field):
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"--{field} "):
            Config(**{field: value})


def check_band_is_its_plain_twin():
    for depth in (6, 26):
        for share in ([0.2, 0.8], [0.45, 0.55], [0.0, 1.0]):
            found = band([], share, depth, "steer")
            assert found == [i for i in range(depth) if share[0] <= i / depth <= share[1]]
    assert band([3, 1, 3], [0.0, 0.1], 6, "lora") == [1, 3]  # a list wins over a band
    for blocks, share in (([6], [0.0, 1.0]), ([-1], [0.0, 1.0]), ([], [0.51, 0.52])):
        with pytest.raises(UserError, match="--steer_b"):
            band(blocks, share, 6, "steer")


def check_every_loop_uses_its_own_lists():
    one, other = small_config(PRESETS), small_config(PRESETS)
    assert Config().targets is not Config().targets
    assert one == other
