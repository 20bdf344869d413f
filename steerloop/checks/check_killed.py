"""Wherever a run is killed, it goes on to the same end; wherever the disk is full or read only, it
says so in one line, nothing is lost, and it goes on to the same end when that is mended. See
checks/killed.py for how every place is tried."""

import pytest

from steerloop.checks.killed import FAULTS, surveyed
from steerloop.checks.small import short_config, small_config
from steerloop.config import parse

OPS = {"open", "write", "half", "save", "fsync", "replace", "mkdir", "unlink", "rmdir", "log"}


def judged(found):
    """Every state that was tried went on to the same end, and was shown or refused in one line;
    every broken disk was one line."""
    for x in found["resumed"]:
        assert x["same"], x
        assert "\n" not in x["report"] and x["report"][:7] in ("", "error: ") and not x.get(
            "ledger"), x
    for x in found["broken"]:
        assert x["said"].startswith("error: ") and "\n" not in x["said"], x
    for x in found["died"]:
        assert x["killed"] and x["same"], x


def check_a_run_killed_at_a_place_of_each_kind_goes_on(folders, tmp_path):
    small = small_config(folders(), quant="none")
    cfg = short_config(tmp_path, small, epochs=2, rounds=1, bootstrap=20)
    found = surveyed(cfg, tmp_path / "kill", most=5, dies=1, share=0.03)
    assert {x["op"] for x in found["places"]} == OPS | {"end"} and found["states"] > 200
    assert len(found["resumed"]) == 5 and len(found["died"]) == 1 and len(found["broken"]) > 9
    judged(found)


@pytest.mark.long
def check_a_run_killed_at_every_place_goes_on(tmp_path):
    """A `--tiny` run of two epochs (so that a heal is kept on its way) on a few lines of data: what
    it writes is the same."""
    cfg = parse(["--tiny", "--device", "cpu", "--labelled", ""])
    cfg = short_config(tmp_path, cfg, epochs=2, bootstrap=20, every=1)
    found = surveyed(cfg, tmp_path / "kill")
    judged(found)
    assert len(found["resumed"]) == found["states"]
    print(f"{len(found['places'])} places, {found['states']} states of the folder: "
          f"{sum(x['same'] for x in found['resumed'])} of them resumed to the same end; "
          f"{len(found['broken'])} broken disks (full, read only), each one line; "
          f"{sum(x['same'] for x in found['died'])} of {len(found['died'])} real kills left the "
          "state that was noted")
    assert len(found["broken"]) == len(FAULTS) * (
        sum(x["op"] not in ("half", "end") and not x["page"] for x in found["places"]))
