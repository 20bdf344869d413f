"""A bundle says what is the same elsewhere, what is not, and what it took on trust; and whatever
somebody did to it ends in one line, in little memory."""

import gzip
import io
import json
import re
import resource
import shutil
import tarfile
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from random import Random

import polars as pl
import pytest
from loguru import logger
from safetensors.torch import load, save

from steerloop import UserError
from steerloop.checks.families import save_family
from steerloop.checks.forged import damaged, fitting, members, packed, with_one_field_changed
from steerloop.checks.small import save_small, short_run, small_config
from steerloop.export.bundle import compare_bundle, from_tables, verify, write_bundle
from steerloop.export.proof import FAULTS, TRUSTED, restated
from steerloop.export.student import config_of
from steerloop.export.unpack import RATIO, SLACK, unpack
from steerloop.report.ledger import ARM
from steerloop.runfolder.events import event_line
from steerloop.runfolder.folder import digest

PARTS = ["files", "versions", "data", "records", "tables", "summary", "words", "model",
         "answers of base", "answers after round 1", "vector of round 1", "answers after round 2",
         "vector of round 2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """(bundle, folder of its model, run)."""
    root = tmp_path_factory.mktemp("bundle")
    model = save_family(root / "model", "gemma3")
    run = short_run(root, small_config(model, quant="none", coh_drop=1.0))
    return write_bundle(run, root / "one.tar.gz"), model, run


@pytest.fixture(autouse=True)
def beside_its_model(bundle, monkeypatch):
    """A bundle has the name of its model, and not where it lay."""
    monkeypatch.chdir(bundle[1].parent)


@pytest.fixture(scope="module")
def files(bundle):
    """Its members, the manifest first."""
    return members(bundle[0])


def tables_of(path):
    """The parts that need no model, by name; 'files' too."""
    with tempfile.TemporaryDirectory() as name:
        manifest, wrong = unpack(path, Path(name) / "unpacked")
        folder = (Path(name) / "unpacked").rename(Path(name) / manifest["run"])
        return {"files": not wrong} | {x.part: x.same for x in from_tables(folder, manifest)[0]}


def edited(files, name, change):
    """The members with another JSON document of this name."""
    document = json.loads(files[name])
    change(document)
    return files | {name: json.dumps(document).encode()}


def check_a_bundle_is_reproduced_where_it_was_made(bundle, tmp_path):
    path, _, run = bundle
    (run / "rounds/01/work").mkdir(exist_ok=True)  # of a run that was cut short
    found = compare_bundle(path)
    assert [x.part for x in found] == PARTS and all(x.same for x in found)
    assert write_bundle(run, tmp_path / "two.tar.gz").read_bytes() == path.read_bytes()
    manifest, wrong = unpack(path, tmp_path / "there")
    assert not wrong and {"rounds/01/adapter.safetensors", "rounds/01/vector.safetensors",
                          "events.jsonl", "data/vignettes.jsonl"} <= set(manifest["files"])


def check_what_was_recomputed_and_what_was_trusted_stand_apart(bundle):
    lines = []
    sink = logger.add(lines.append, format="{message}")
    try:
        verify(bundle[0])
    finally:
        logger.remove(sink)
    text = "".join(lines)
    again, trusted = text.split("taken on trust:")
    assert "recomputed here" in again and all(f"| {x} " in again for x in PARTS)
    assert all(f"| {x} " in trusted and x not in again for x in TRUSTED)


def check_a_changed_file_differs(files, tmp_path):
    changed = files | {"events.jsonl": files["events.jsonl"] + b" "}
    with pytest.raises(UserError, match="not reproduced here: files"):
        verify(packed(list(changed.items()), tmp_path / "x.tar.gz"))


def check_other_weights_tables_and_versions_are_told_apart(bundle, files, tmp_path):
    """Other weights under the same name; a record that was forged, and all hashes with it."""
    path, model, _ = bundle
    kept = shutil.copytree(model, tmp_path / "kept")
    save_small(model, softcap=3.0)
    try:
        found = {x.part: x.same for x in compare_bundle(path)}
    finally:
        shutil.copytree(kept, model, dirs_exist_ok=True)
    assert found["files"] and found["tables"] and not found["answers of base"]
    assert not found["model"] or not found["answers after round 2"]

    lines = [json.loads(x) for x in files["events.jsonl"].splitlines()]
    for x in lines:
        if x["stage"] == "evaluate":
            x["measures"]["care_nats"] += 0.1
        del x["crc"]
    forged = edited(files, "bundle.json", lambda x: x["versions"].update(torch="0.1"))
    forged |= {"events.jsonl": "".join(map(event_line, lines)).encode()}
    found = {x.part: x.same for x in compare_bundle(fitting(forged, tmp_path / "f.tar.gz"))}
    assert found["versions"] is None and found["tables"] is False and found["answers of base"]


@pytest.mark.parametrize(("part", "name", "change"), [
    ("summary", "summary.json", lambda x: x.update(best_round=1 - x["best_round"] if x[
        "best_round"] is not None else 0)),
    ("summary", "summary.json", lambda x: x["healed"][1]["measures"].update(coherence=0.99)),
    ("summary", "summary.json", lambda x: x["verdicts"][1].update(verdict="PASS")),
    ("summary", "summary.json", lambda x: x["rivals"][0].update(beaten="yes")),
    ("summary", "summary.json", lambda x: x["arm"].update(lam=99.0)),
    ("summary", "summary.json", lambda x: x.update(run="another")),
    ("summary", "config.json", lambda x: x["config"].update(lam=99.0)),
    ("records", "rounds/01/heal.json", lambda x: x["value"].update(nll=0.1)),
    ("records", "rounds/00/kappa.json", lambda x: x.update(value=0.9)),
    ("records", "limit.json", lambda x: x.update(value=1.0)),
    ("records", "bundle.json", lambda x: x.update(seed=5)),
    ("records", "config.json", lambda x: x["config"].update(coh_drop=0.5)),
])
def check_a_forged_number_differs_though_its_hash_fits(files, tmp_path, part, name, change):
    found = tables_of(fitting(edited(files, name, change), tmp_path / "x.tar.gz"))
    assert found["files"] and found[part] is False


@pytest.mark.parametrize("name", ["verdicts.md", "diary.md"])
def check_forged_words_differ(files, tmp_path, name):
    changed = files | {name: files[name].replace(b"FAIL", b"PASS") + b"better\n"}
    assert tables_of(fitting(changed, tmp_path / "x.tar.gz"))["words"] is False


def smaller(adapter):
    """The bytes of an adapter of which every number is half as large, and whose digest fits."""
    tensors = {k: x / 2 for k, x in load(adapter).items()}
    size = int.from_bytes(adapter[:8], "little")
    said = json.loads(adapter[8 : 8 + size])["__metadata__"]
    return save(tensors, said | {"digest": digest(said["steerloop"], tensors)})


@pytest.mark.parametrize(("part", "name"), [
    ("vector of round 2", "rounds/01/vector.safetensors"),
    ("answers after round 1", "rounds/00/adapter.safetensors"),
    ("answers of base", "data/vignettes.jsonl"), ("vector of round 1", "data/persona.toml"),
    ("answers of base", "data/mundane.jsonl")])
def check_what_the_model_makes_of_it_differs(files, tmp_path, part, name):
    """Vectors, adapters and data that are sound files and say something else."""
    old = files[name]
    new = {"vector": lambda: old[:-64] + bytes(64), "adapter": lambda: smaller(old),
           "vignettes": lambda: old.replace(b"You see", b"He hits"),
           "persona": lambda: old.replace(b"Be kind.", b"Be mean."),
           "mundane": lambda: old.replace(b"It is 2.", b"It is 3.")}[
        Path(name).name.partition(".")[0]]()
    assert new != old
    found = {x.part: x.same for x in compare_bundle(
        fitting(files | {name: new}, tmp_path / "x.tar.gz"))}
    assert found["files"] and found[part] is False


@pytest.mark.parametrize("name", ["config.json", "events.jsonl", "rounds/00/adapter.safetensors",
                                  "rounds/00/base.eval.parquet", "rounds/01/healed.items.parquet",
                                  "rounds/01/completions.parquet", "planted.parquet", "limit.json",
                                  "rounds/01/drift.json", "data/contexts.txt"])
def check_a_missing_kind_of_file_is_noticed(files, tmp_path, name):
    path = fitting({k: x for k, x in files.items() if k != name}, tmp_path / "x.tar.gz")
    with pytest.raises(UserError, match=r"x\.tar\.gz") as e:
        verify(path)
    assert "\n" not in str(e.value) and "/unpacked" not in str(e.value)


@pytest.mark.parametrize(("change", "said"), [
    (lambda x: x.update(schema=99), "schema 99, and this version knows 1"),
    (lambda x: x.update(schema=True), "no schema"),
    (lambda x: x.update(files={}), "lists no file"),
    (lambda x: x.update(files=[]), "no files of type dict"),
    (lambda x: x.update(files={"a": "b"}), "a hash that is none"),
    (lambda x: x.update(versions={"torch": 3}), "no text"),
    (lambda x: x.update(weights=None), "no weights of type dict"),
    (lambda x: x.update(run="../../x"), "no folder can be called"),
    (lambda x: x.update(run="\ud800"), "no folder can be called"),
    (lambda x: x.update(run="x" * 4000), "no folder can be called"),
    (lambda x: x.pop("seed"), "no seed of type int"),
    (lambda x: x["files"].pop("events.jsonl"), "'events.jsonl', which its bundle.json does not"),
])
def check_a_manifest_of_another_kind_is_one_line(files, tmp_path, change, said):
    path = packed(list(edited(files, "bundle.json", change).items()), tmp_path / "x.tar.gz")
    with pytest.raises(UserError, match=re.escape(said)) as e:
        compare_bundle(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("kind", "said"), [
    ("extra", "'extra.txt', which its bundle.json does not list"),
    ("twice", "'config.json' twice"), ("manifest twice", "'bundle.json' twice"),
    ("manifest last", "not the first thing"), ("after the end", "goes on after its end"),
    ("no tar", "no bundle, or damaged"), ("no gzip", "no bundle, or damaged"),
    ("empty", "no bundle, or damaged"), ("folder", "no bundle, or damaged"),
])
def check_members_that_should_not_be_there(files, tmp_path, kind, said):
    first, rest, out = ("bundle.json", files["bundle.json"]), [
        x for x in files.items() if x[0] != "bundle.json"], tmp_path / "x.tar.gz"
    entries = {"extra": [first, *rest, ("extra.txt", b"x")],
               "twice": [first, *rest, ("config.json", files["config.json"])],
               "manifest twice": [first, first, *rest], "manifest last": [*rest, first]}
    if kind in entries:
        packed(entries[kind], out)
    elif kind == "after the end":
        out.write_bytes(gzip.compress(gzip.decompress(packed([first, *rest], out).read_bytes())
                                      + b"more"))
    elif kind == "folder":
        out.mkdir()
    else:
        out.write_bytes({"no tar": gzip.compress(b"x" * 5000), "no gzip": b"x" * 99,
                         "empty": b""}[kind])
    with pytest.raises(UserError, match=said) as e:
        unpack(out, tmp_path / "there")
    assert str(out) in str(e.value)


@pytest.mark.parametrize(("name", "kind"), [
    ("../out", tarfile.REGTYPE), ("/tmp/out", tarfile.REGTYPE), ("a/../../b", tarfile.REGTYPE),
    ("./config.json", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("link", tarfile.LNKTYPE),
    ("pipe", tarfile.FIFOTYPE), ("null", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE),
    ("folder", tarfile.DIRTYPE), ("long", tarfile.GNUTYPE_LONGNAME),
    ("sparse", tarfile.GNUTYPE_SPARSE), ("extension", tarfile.XHDTYPE),
    ("for all", tarfile.XGLTYPE)])
def check_only_plain_files_below_it_are_unpacked(files, tmp_path, name, kind):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        manifest = tarfile.TarInfo("bundle.json")
        manifest.size = len(files["bundle.json"])
        tar.addfile(manifest, io.BytesIO(files["bundle.json"]))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "bundle.json"
        tar.addfile(entry, io.BytesIO(b""))
    with pytest.raises(UserError, match="not unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "there")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """A gzip stream of 6 GB of zeros in 6 MB: pieces of 64 MB, compressed once."""
    piece = gzip.compress(bytes(2**26), 9)
    return piece * 96


@pytest.mark.parametrize("kind", ["one", "long name", "manifest", "end"])
def check_a_gzip_bomb_ends_at_once_in_little_memory(files, tmp_path, zeros, kind):
    """6 GB in 6 MB: as a member, as a name that a tar reader takes whole, as the manifest, and past
    the end of the tar."""
    names = ["config.json", *(f"{i}.txt" for i in range(9))]
    manifest = edited(files, "bundle.json", lambda x: x.update(
        files=dict.fromkeys(names, "0" * 64)))["bundle.json"]
    raw = io.BytesIO()

    def add(name, size, body=b"", type=tarfile.REGTYPE):
        entry = tarfile.TarInfo(name)
        entry.size, entry.type = size, type
        raw.write(entry.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512))

    if kind != "manifest":
        add("bundle.json", len(manifest), manifest)
    {"one": lambda: add("config.json", 6 * 2**30), "manifest": lambda: add("bundle.json", 2**32),
     "long name": lambda: add("x", 6 * 2**30, type=tarfile.GNUTYPE_LONGNAME),
     "end": lambda: raw.write(bytes(512))}[kind]()
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue()) + zeros)
    assert path.stat().st_size < 7 * 2**20
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UserError, match=r"x\.tar\.gz.*(unpacked|too large)"):
            unpack(path, tmp_path / "there")
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20 and time.monotonic() - start < 20
    finally:
        tracemalloc.stop()
    there = sum(x.stat().st_size for x in (tmp_path / "there").rglob("*") if x.is_file())
    assert there <= SLACK + RATIO * path.stat().st_size


@pytest.mark.parametrize(("knob", "value"), [
    ("rounds", 10**9), ("r", 10**6), ("bootstrap", 10**9), ("think_tokens", 10**9),
    ("batch_rows", 10**9), ("max_contexts", 10**9), ("threads", 10**6), ("max_new_tokens", 10**9),
    ("n_prompts", 10**9), ("dose_tokens", 10**9), ("device", "meta"), ("every", 10**9),
    ("steer_blocks", [10**9]), ("lora_blocks", list(range(10**4))), ("alpha", 1e300),
    ("targets", ["x"]), ("r", 0), ("rounds", 1), ("quant", "int3"), ("dtype", 3), ("seed", "x"),
    ("betas", [0.9]), ("model", ""), ("prompts", "x" * 10**5), ("probes", ["os:getcwd"]),
    ("vignettes", "/dev/zero"), ("split", {}), ("checkpointing", 1), ("unknown", 1)])
def check_no_setting_of_a_bundle_takes_the_machine(files, tmp_path, knob, value):
    """Whatever its config asks for: noticed, or of no matter, in little memory and time."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    changed = edited(files, "config.json", lambda x: x["config"].update({knob: value}))
    try:
        found = compare_bundle(fitting(changed, tmp_path / "x.tar.gz"))
    except UserError as e:
        assert "x.tar.gz" in str(e) and "\n" not in str(e)
        assert "unpacked" not in str(e) and "/tmp/tmp" not in str(e) and "--resume" not in str(e)
    else:
        assert (knob not in ARM) or any(x.same is False for x in found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.monotonic() - start < 20


def check_the_config_of_a_bundle_is_not_how_it_is_opened(bundle, tmp_path):
    manifest, _ = unpack(bundle[0], tmp_path / "there")
    cfg = from_tables(tmp_path / "there", manifest)[1]
    asked = replace(cfg, rounds=999, batch_rows=cfg.batch_rows + 999, threads=9, probes=["os:x"])
    here = restated(tmp_path / "there", asked, tmp_path / "opened")
    assert config_of(tmp_path / "opened") == here
    assert here.rounds == 2 and here.threads == 0 and here.batch_rows <= 48 and not here.probes


def check_a_table_may_not_promise_more_than_it_can_hold(files, tmp_path):
    """A column of one value takes no room, however long it is."""
    pl.select(pl.repeat(0.0, 2 * 10**7).alias("p_care")).write_parquet(tmp_path / "x.parquet")
    changed = files | {"planted.parquet": (tmp_path / "x.parquet").read_bytes()}
    with pytest.raises(UserError, match=r"x\.tar\.gz: planted\.parquet holds 20000000 rows"):
        compare_bundle(fitting(changed, tmp_path / "x.tar.gz"))


def check_any_damage_to_an_archive_is_noticed_or_changes_nothing(files, tmp_path):
    """500 archives: bits turned, pieces cut, doubled, put in, of the gzip stream and of the tar in
    it. Either a line says so, or every file is what it was."""
    few = {k: files[k] for k in ("bundle.json", "checksums.txt", "config.json", "events.jsonl",
                                 "limit.json", "rounds/00/vector.safetensors")}
    files = members(fitting(few, tmp_path / "few.tar.gz"))
    raw, path, noticed = (tmp_path / "few.tar.gz").read_bytes(), tmp_path / "x.tar.gz", 0
    for seed in range(500):
        rng = Random(seed)
        path.write_bytes(damaged(raw, rng) if seed % 2 else gzip.compress(
            damaged(gzip.decompress(raw), rng), 1))
        there = tmp_path / str(seed)
        try:
            _, wrong = unpack(path, there)
        except UserError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            noticed += 1
        else:
            same = {k: (there / k).read_bytes() == x for k, x in files.items()
                    if k != "bundle.json" and k not in wrong}
            assert all(same.values())
            noticed += bool(wrong)
        shutil.rmtree(there, ignore_errors=True)
    assert noticed > 450


ON_TRUST = re.compile(  # what TRUSTED names, as fields; `model` and the part of that name see more
    r"config\.json: (config/(?!rounds|r$)|packages|hardware|source|inputs|schema|resumed)"
    r"|bundle\.json: (weights|versions|model)"
    r"|summary\.json: ended"
    r"|events\.jsonl: (axis|evaluate/dose|heal_nll|heal_taught|evaluate/state)")


def forgeries(files, path, seeds):
    """How many bundles with one field changed, all hashes made to fit, are noticed."""
    noticed = 0
    for seed in seeds:
        changed, where = with_one_field_changed(files, Random(seed))
        if where.endswith(": crc"):  # a hash, which is made to fit
            continue
        listed = where.startswith("bundle.json: files")
        record = not where.startswith("events.jsonl")  # what was forged there stays forged
        whole = packed(list(changed.items()), path) if listed else fitting(changed, path, record)
        try:
            found = tables_of(whole)
        except FAULTS:  # `compare_bundle` makes one line of these
            noticed += 1
            continue
        wrong = [k for k, same in found.items() if same is not True]
        assert wrong or ON_TRUST.match(where), where
        noticed += bool(wrong)
    return noticed


def check_a_forged_field_is_noticed_or_was_taken_on_trust(files, tmp_path):
    assert forgeries(files, tmp_path / "x.tar.gz", range(12)) > 6


@pytest.mark.long
def check_a_thousand_forged_fields(files, tmp_path):
    assert forgeries(files, tmp_path / "x.tar.gz", range(12, 1012)) > 700
