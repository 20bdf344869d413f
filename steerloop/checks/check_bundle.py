"""A bundle says what is the same elsewhere, and what is not."""

import io
import json
import shutil
import tarfile

import pytest

from steerloop import UserError
from steerloop.checks.exported import measured_run
from steerloop.checks.families import save_family
from steerloop.checks.small import data_files, save_small, small_config
from steerloop.export.bundle import compare_bundle, unpack, verify, write_bundle
from steerloop.runfolder.events import event_line

PARTS = ["files", "versions", "data", "tables", "model", "answers of base", "answers of healed",
         "vector of round 1"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(bundle, folder of its model, run)."""
    root = tmp_path_factory.mktemp("bundle")
    model = save_family(root / "model", "gemma3")
    run = measured_run(root, small_config(model, quant="none", **data_files(root)))
    return write_bundle(run, root / "one.tar.gz"), model, run


def repacked(bundle, out, change):
    """A copy whose files went through `change(name, bytes)`."""
    with tarfile.open(bundle) as old, tarfile.open(out, "w:gz") as new:
        for entry in old:
            content = change(entry.name, old.extractfile(entry).read())
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    return out


def check_a_bundle_is_reproduced_where_it_was_made(packed, tmp_path):
    bundle, _, run = packed
    (run / "rounds/01/work").mkdir(exist_ok=True)  # of a run that was cut short
    found = compare_bundle(bundle)
    assert [x.part for x in found] == PARTS and all(x.same for x in found)
    assert write_bundle(run, tmp_path / "two.tar.gz").read_bytes() == bundle.read_bytes()
    manifest = unpack(bundle, tmp_path / "there")
    assert {"rounds/01/adapter.safetensors", "rounds/01/vector.safetensors", "events.jsonl",
            "data/vignettes.jsonl"} <= set(manifest["files"])


def check_a_changed_file_differs(packed, tmp_path):
    def change(name, content):
        return content + b" " if name == "events.jsonl" else content

    with pytest.raises(UserError, match="not reproduced here: files"):
        verify(repacked(packed[0], tmp_path / "x.tar.gz", change))


def check_other_weights_tables_and_versions_are_told_apart(packed, tmp_path):
    """Other weights under the same name; a manifest that was made to fit a forged record."""
    bundle, model, _ = packed
    kept = shutil.copytree(model, tmp_path / "kept")
    save_small(model, softcap=3.0)
    try:
        found = {x.part: x.same for x in compare_bundle(bundle)}
    finally:
        shutil.copytree(kept, model, dirs_exist_ok=True)
    assert found["files"] and found["tables"] and not found["answers of base"]

    def forge(name, content):
        if name == "bundle.json":
            manifest = json.loads(content)
            del manifest["files"]["events.jsonl"]
            manifest["versions"]["torch"] = "0.1"
            return json.dumps(manifest).encode()
        lines = [json.loads(x) for x in content.splitlines()] if name == "events.jsonl" else []
        for x in lines:
            if x["stage"] == "evaluate":
                x["measures"]["care_nats"] += 0.1
            del x["crc"]
        return "".join(map(event_line, lines)).encode() if lines else content

    found = {x.part: x.same for x in compare_bundle(repacked(bundle, tmp_path / "f.tar.gz", forge))}
    assert found["versions"] is None and found["tables"] is False and found["answers of base"]


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "link"])
def check_only_plain_files_below_it_are_unpacked(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.SYMTYPE if name == "link" else tarfile.REGTYPE
        tar.addfile(entry, io.BytesIO(b""))
    with pytest.raises(UserError, match="not unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "there")
