"""A vector from files steers as one that was extracted, or is refused in one line; packs and files
add up as plain sums; what a run read of them is in its record."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from steerloop import UserError, train
from steerloop.checks.small import DEPTH, WIDTH, data_files, short_config, small_config
from steerloop.checks.world import World
from steerloop.cli.parsing import parse as parse_options
from steerloop.cli.parsing import preset
from steerloop.config import Config, parse
from steerloop.dose import dose
from steerloop.export import __main__ as export
from steerloop.export.bundle import compare_bundle, write_bundle
from steerloop.export.vectors import write_gguf, write_vector
from steerloop.loading.vectors import given
from steerloop.model import load
from steerloop.report.ledger import row_of
from steerloop.report.run import run_table
from steerloop.runfolder.events import read_events
from steerloop.steer import extract
from steerloop.texts.data import given_file, read_data
from steerloop.texts.parts import Part, joined, parts, steering

BLOCKS = [1, 2]


def control(path, vector, arch="controlvector", kind=np.float32):
    """A GGUF file by hand, with the package alone."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", "gemma3")
    writer.add_uint32("controlvector.layer_count", len(vector))
    for name, x in vector.items():
        writer.add_tensor(name, np.asarray(x, dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ours(path, vector):
    """A safetensors file as a run folder holds it."""
    save_file({f"block.{b}": v.contiguous() for b, v in vector.items()}, path)
    return path


def some(seed=0, blocks=BLOCKS, width=WIDTH):
    """Random directions."""
    rng = torch.Generator().manual_seed(seed)
    return {b: torch.randn(width, generator=rng) for b in blocks}


@pytest.fixture(scope="module")
def bare(folders):
    """A small model, and a config that steers blocks 1 and 2."""
    cfg = small_config(folders(), quant="none")
    return cfg, load(cfg)


def read(model, *files, blocks=BLOCKS):
    """What (path, weight) come to in a model."""
    return given([given_file(str(path), weight) for path, weight in files], blocks, model.hf)


@torch.no_grad()
def check_rows_belong_to_the_blocks_that_the_formats_say(bare, tmp_path):
    """Written from the library's own hidden states, and read back: what we extract. repeng has
    direction.<i> from hidden_states[i + 1], persona vectors row i from hidden_states[i]. (The last
    of these is behind the final norm, so no block's; blocks 0 and 1 do not see the persona.)"""
    cfg, model = bare
    data = read_data(replace(cfg, **data_files(tmp_path)))
    steered = list(range(2, DEPTH - 1))
    wanted = extract(model, data, replace(cfg, steer_blocks=steered))
    rows = []
    for i, context in enumerate(data.contexts):
        states = []
        for persona in data.pairs[i % len(data.pairs)]:
            ids = torch.tensor([model.render(context, persona)])
            found = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
            states.append(torch.stack([h[0, -1] for h in found]))
        rows.append(states[0] - states[1])
    table = torch.stack(rows).mean(0)
    assert table.shape == (DEPTH + 1, WIDTH)
    torch.save(table, tmp_path / "persona.pt")
    control(tmp_path / "repeng.gguf", {f"direction.{i}": table[i + 1] for i in range(1, DEPTH)})
    for name in ("persona.pt", "repeng.gguf"):
        found = read(model, (tmp_path / name, 1.0), blocks=steered)
        assert found.keys() == set(steered) and len(steered) > 1
        for b in steered:
            near = [(found[b] - x).norm() / x.norm() for x in wanted.values()]
            assert near[steered.index(b)] < 1e-4 and sum(x > 0.1 for x in near) == len(near) - 1


def check_what_is_read_is_what_was_written_to_the_bit(bare, tmp_path):
    vector, (_, model) = some(), bare
    table = torch.randn(DEPTH + 1, WIDTH)
    table[[2, 3]] = torch.stack([vector[1], vector[2]])
    torch.save(table, tmp_path / "v.pt")
    torch.save(torch.nn.Parameter(table), tmp_path / "parameter.pt")
    for path in (ours(tmp_path / "v.safetensors", vector), tmp_path / "v.pt",
                 tmp_path / "parameter.pt",
                 control(tmp_path / "v.gguf", {f"direction.{b}": v for b, v in vector.items()})):
        found = read(model, (path, 1.0))
        assert all(torch.equal(found[b], vector[b]) for b in BLOCKS), path


def check_a_sum_is_a_sum(bare, tmp_path):
    a, b, (_, model) = some(1), some(2), bare
    paths = ours(tmp_path / "a.safetensors", a), control(
        tmp_path / "b.gguf", {f"direction.{i}": v for i, v in b.items()})
    found = read(model, (paths[0], 2.0), (paths[1], -0.5))
    for i in BLOCKS:
        assert torch.allclose(found[i], 2 * a[i] - 0.5 * b[i])


class Harm:
    """What a hostile pickle does when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def nan(path, name="v.safetensors"):
    vector = some()
    vector[2][3] = float("nan")
    return ours(path / name, vector)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])
    return path


def saved(path, x, name="v.pt"):
    torch.save(x, path / name)
    return path / name


def text(path, name):
    (path / name).write_text("no vector")
    return path / name


def noted(path, raw):
    save_file({f"block.{b}": v for b, v in some().items()}, path / "v.safetensors",
              {"steerloop": json.dumps({"raw": raw})})
    return path / "v.safetensors"


def named(width, blocks=BLOCKS):
    return {f"direction.{b}": v for b, v in some(blocks=blocks, width=width).items()}


WRONG = {
    "missing": (lambda p: p / "no.pt", "No such file"),
    "a folder": (lambda p: p, "it is a folder: name the file in it"),
    "empty": (lambda p: Path(text(p, "v.gguf")).write_bytes(b"") or p / "v.gguf", "nothing in it"),
    "another end": (lambda p: text(p, "v.bin"), r"ends in none of \.safetensors, \.gguf, \.pt"),
    "text as safetensors": (lambda p: text(p, "v.safetensors"), "cannot read --vector"),
    "text as gguf": (lambda p: text(p, "v.gguf"), "cannot read --vector"),
    "text as pt": (lambda p: text(p, "v.pt"), "save the tensor alone"),
    "cut safetensors": (lambda p: cut(ours(p / "v.safetensors", some()), 200), "cannot read"),
    "cut gguf": (lambda p: cut(control(p / "v.gguf", named(WIDTH)), 300), "cannot read"),
    "cut pt": (lambda p: cut(saved(p, torch.randn(DEPTH + 1, WIDTH)), 900), "the tensor alone"),
    "width of ours": (lambda p: ours(p / "v.safetensors", some(width=8)), "8 numbers.* 32 wide"),
    "width of gguf": (lambda p: control(p / "v.gguf", named(8)), "has 8 numbers.* 32 wide"),
    "width of pt": (lambda p: saved(p, torch.randn(DEPTH + 1, 8)), "6 x 8 numbers.* 6 rows of 32"),
    "depth of pt": (lambda p: saved(p, torch.randn(DEPTH, WIDTH)), "5 x 32 numbers.* 6 rows of 32"),
    "one row": (lambda p: saved(p, torch.randn(WIDTH)), "32 numbers.* 6 rows"),
    "a block too deep": (lambda p: ours(p / "v.safetensors", some(blocks=[1, 2, DEPTH])),
                         "for block 5, and this model has blocks 0 to 4"),
    "a block that lacks": (lambda p: ours(p / "v.safetensors", some(blocks=[0, 1, 3])),
                           r"steered blocks \[2\]; --steer_blocks 0 1 3 are those"),
    "nan": (nan, "block 2 has numbers that are not finite"),
    "nan in pt": (lambda p: saved(p, torch.full((DEPTH + 1, WIDTH), float("nan"))), "not finite"),
    "nothing but zeros": (lambda p: ours(p / "v.safetensors", {b: torch.zeros(WIDTH)
                                                               for b in BLOCKS}), "the sum is 0"),
    "whole numbers": (lambda p: saved(p, torch.ones(DEPTH + 1, WIDTH, dtype=torch.long)),
                      "holds int64"),
    "sparse": (lambda p: saved(p, torch.eye(DEPTH + 1, WIDTH).to_sparse()), "no plain floating"),
    "another's tensors": (lambda p: save_file({"w": torch.ones(3)}, p / "v.safetensors")
                          or p / "v.safetensors", "holds 'w', and a vector of ours"),
    "another's block": (lambda p: save_file({"block.x": torch.ones(3)}, p / "v.safetensors")
                        or p / "v.safetensors", "holds 'block.x'"),
    "a model": (lambda p: control(p / "v.gguf", named(WIDTH), arch="llama"), "control vector, but"),
    "half precision": (lambda p: control(p / "v.gguf", named(WIDTH), kind=np.float16),
                       "no row of float32"),
    "weights in gguf": (lambda p: control(p / "v.gguf", {"blk.1": np.ones(WIDTH)}),
                        "holds 'blk.1'"),
    "multiplied by nothing": (lambda p: noted(p, "divide by 0"), "multiplied by 0"),
    "multiplied by a word": (lambda p: noted(p, "divide by x"), "cannot read"),
    "a dict": (lambda p: saved(p, {"v": torch.ones(2)}), "holds a dict, no tensor"),
    "a list": (lambda p: saved(p, [torch.ones(2)]), "holds a list, no tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def check_a_file_that_is_no_vector_here_is_one_line(bare, tmp_path, case):
    make, says = WRONG[case]
    with pytest.raises(UserError, match=says) as refused:
        read(bare[1], (make(tmp_path), 1.0))
    line = str(refused.value)
    assert "--vector" in line and "\n" not in line and len(line) < 700
    assert str(tmp_path) in line or case == "nothing but zeros"


@pytest.mark.parametrize("wrapped", [False, True])
def check_a_hostile_pickle_is_never_opened(bare, tmp_path, wrapped):
    path, harm = tmp_path / "v.pt", Harm(tmp_path / "harmed")
    if wrapped:
        torch.save({"v": torch.ones(2), "x": harm}, path)
    else:
        path.write_bytes(pickle.dumps(harm))
    with pytest.raises(UserError, match="more than tensors, or is damaged"):
        read(bare[1], (path, 1.0))
    assert not (tmp_path / "harmed").exists()
    torch.load(path, weights_only=False) if wrapped else pickle.loads(path.read_bytes())
    assert (tmp_path / "harmed").exists(), "it would have done harm"


def check_a_file_that_changes_while_a_run_goes_on_is_seen(bare, tmp_path):
    file = given_file(str(ours(tmp_path / "v.safetensors", some())), 1.0)
    given([file], BLOCKS, bare[1].hf)
    ours(tmp_path / "v.safetensors", some(3))
    with pytest.raises(UserError, match="not what it was when the run began"):
        given([file], BLOCKS, bare[1].hf)


def check_a_wrong_file_leaves_no_run_folder(folders, tmp_path, capsys):
    cfg = short_config(tmp_path, small_config(folders(), quant="none"))
    wrong = ours(tmp_path / "v.safetensors", some(blocks=[2, 3], width=8))
    with pytest.raises(UserError, match="has 8 numbers"):
        train.train(replace(cfg, vector=str(wrong)))
    assert not list((tmp_path / "runs").glob("*"))


@pytest.fixture(scope="module")
def steered(folders, tmp_path_factory):
    """A short run, and a second one steered by the vector of its first round."""
    folder = tmp_path_factory.mktemp("steered")
    cfg = short_config(folder, small_config(folders(), quant="none"))
    first = train.train(cfg)
    own = first / "rounds/00/vector.safetensors"
    return cfg, first, train.train(replace(cfg, vector=str(own), runs=str(folder / "again")))


def doses(run):
    """c* of each round."""
    return [x["c_star"] for x in read_events(run) if x["stage"] == "sample"]


def check_a_runs_own_vector_gives_its_own_first_round_and_every_round_after_it(steered):
    """Bit for bit, and in the second round still the first one's."""
    _, first, again = steered
    assert doses(first)[0] == doses(again)[0]
    names = [f"rounds/00/{x}" for x in ("completions.parquet", "adapter.safetensors")]
    wanted = load_file(first / names[1])
    assert (first / names[0]).read_bytes() == (again / names[0]).read_bytes()
    assert all(torch.equal(x, wanted[k]) for k, x in load_file(again / names[1]).items())
    own = load_file(first / "rounds/00/vector.safetensors")
    assert any(not torch.equal(x, own[k])
               for k, x in load_file(first / "rounds/01/vector.safetensors").items())
    for k in range(2):
        found = load_file(again / f"rounds/{k:02d}/vector.safetensors")
        assert all(torch.equal(x, own[b]) for b, x in found.items())


def check_record_log_and_tables_say_what_steered(steered):
    _, first, again = steered
    path = first / "rounds/00/vector.safetensors"
    file = given_file(str(path), 1.0)
    document = json.loads((again / "config.json").read_text())
    assert document["inputs"]["vector"] == {"path": str(path), "sha256": file.sha256}
    told = [x for x in read_events(again) if x["stage"] == "vector"]
    assert [x["round"] for x in told] == [0, 1]
    assert all(x["files"] == [[1.0, file.sha256]] and x["blocks"] == [2, 3] for x in told)
    said = "steered by a vector from 1 × vector.safetensors, in every round: nothing is extracted"
    assert said in run_table(again) and said in (again / "report.html").read_text()
    log = (again / "log.txt").read_text()
    assert log.count(said) >= 1 and f"vector: {path}" in log and "extract, positive" not in log
    summaries = [json.loads((x / "summary.json").read_text()) for x in (first, again)]
    assert summaries[1]["arm"]["steered_by"] in said
    assert row_of(summaries[0])["arm"] != row_of(summaries[1])["arm"], "seeds are not pooled"
    assert "steered by" not in run_table(first) + (first / "log.txt").read_text()
    assert not [x for x in read_events(first) if x["stage"] == "vector"]
    assert "extract, positive" in (first / "log.txt").read_text()


@pytest.mark.parametrize("kind", ["vector", "gguf-vector"])
def check_an_export_comes_back_with_the_same_dose(steered, tmp_path, kind):
    """Whatever scale 1 was: what is written at half or twice c* is divided by that again."""
    cfg, first, _ = steered
    for size in ("1", "0.5"):
        export.main([str(first), "--to", kind, "--dose", size, "--out", str(tmp_path / size)])
        (path,) = (x for x in (tmp_path / size).iterdir() if x.suffix in (".gguf", ".safetensors"))
        model = load(cfg)
        data = read_data(replace(cfg, vector=str(path)))
        own = load_file(first / "rounds/00/vector.safetensors")
        with torch.no_grad():
            found = extract(model, data, cfg)
            for b, v in found.items():
                assert torch.allclose(v, own[f"block.{b}"], rtol=1e-6)
            assert dose(model, found, data, cfg, "0")[0] == doses(first)[0]


def check_what_changes_between_two_rounds_is_refused(steered, tmp_path):
    cfg, first, _ = steered
    path = tmp_path / "v.safetensors"
    path.write_bytes((first / "rounds/00/vector.safetensors").read_bytes())
    cfg = replace(cfg, vector=str(path), runs=str(tmp_path / "runs"), rounds=1)
    run = train.train(cfg)
    on = replace(cfg, resume=str(run), rounds=2)
    for other, says in ((f"{path}:2", r"vector: \w{12} → none; vector/1 x 2.0: none → \w{12}"),
                        ("", r"vector: \w{12} → none")):
        with pytest.raises(UserError, match=says):
            train.train(replace(on, vector=other))
    ours(path, some(4, [2, 3]))
    with pytest.raises(UserError, match=r"vector: \w{12} → \w{12}.*--force"):
        train.train(on)
    path.write_bytes((first / "rounds/00/vector.safetensors").read_bytes())
    (moved := tmp_path / "elsewhere").mkdir()
    path.rename(moved / "w.safetensors")
    with pytest.raises(UserError, match="No such file"):
        train.train(on)
    train.train(replace(on, vector=str(moved / "w.safetensors")))
    assert len(doses(run)) == 2


@pytest.mark.long
def check_names_of_files_mean_what_they_meant_where_the_run_began(steered, tmp_path, monkeypatch):
    cfg, first, _ = steered
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            (first / "rounds/00/vector.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    cfg = replace(cfg, vector="a.safetensors:.75,b.safetensors:0.25", runs="runs", rounds=1)
    run = tmp_path / train.train(cfg)
    monkeypatch.chdir("/")
    again = parse(["--resume", str(run), "--rounds", "2"])
    assert again.vector == f"{tmp_path}/a.safetensors:0.75,{tmp_path}/b.safetensors:0.25"
    train.train(again)
    found = [load_file(run / f"rounds/{k:02d}/vector.safetensors") for k in range(2)]
    assert all(torch.equal(found[0][b], found[1][b]) for b in found[0])
    assert json.loads((run / "config.json").read_text())["config"]["vector"] == cfg.vector


def two_packs(folder: Path) -> list[str]:
    """Folders of two small traits."""
    found = []
    for name, up in (("one", "kind"), ("two", "brief")):
        (pack := folder / name).mkdir()
        data_files(pack)
        said = (pack / "persona.toml").read_text().replace("care", up).replace("kind.", f"{up}.")
        (pack / "trait.toml").write_text(said.replace("authority", f"un{up}"))
        (pack / "vignettes.jsonl").unlink()
        (pack / "reasons.toml").unlink()
        found.append(str(pack))
    return found


def of_packs(folders, trait, **fields):
    """A config of packs in folders, and what it reads."""
    cfg = small_config(folders(), quant="none", trait=trait, **fields)
    return cfg, read_data(cfg)


@torch.no_grad()
def check_packs_add_up_and_all_else_is_of_the_first(folders, tmp_path):
    one, two = two_packs(tmp_path)
    cfg, data = of_packs(folders, f"{one}:2,{two}:-.5")
    cfg = replace(cfg, steer_blocks=[2, 3])
    model = load(cfg)
    (_, alone), (_, other) = of_packs(folders, one), of_packs(folders, one, teacher=two)
    a = extract(model, alone, replace(cfg, trait=one))
    b = extract(model, other, replace(cfg, trait=one))
    found = extract(model, data, cfg)
    for i in (2, 3):
        assert torch.allclose(found[i], 2 * a[i] - 0.5 * b[i], atol=1e-5)
        assert (a[i] - b[i]).norm() > 0.05 * a[i].norm()
    same = ("pairs", "up", "down", "contexts", "prompts", "reasons")
    assert all(getattr(data, x) == getattr(alone, x) for x in same)
    assert data.contrast.equals(alone.contrast) and alone.guide == [] and len(data.packs) == 2
    single = extract(model, of_packs(folders, f"{one}:2")[1], cfg)
    assert all(torch.allclose(single[i], 2 * a[i]) for i in (2, 3))
    null = extract(model, data, replace(cfg, teacher="null"))
    assert all(abs(null[i] @ found[i]) < 1e-4 * null[i].norm() * found[i].norm() for i in (2, 3))
    assert all(null[i].norm() > 0 for i in (2, 3))


@pytest.mark.long
def check_a_run_of_packs_says_so_and_goes_on(folders, tmp_path):
    one, two = two_packs(tmp_path)
    cfg = small_config(folders(), quant="none", trait=f"{one},{two}:.5", said_prompts=3)
    cfg = replace(short_config(tmp_path, cfg, rounds=1), vignettes="", reasons="", persona="",
                  prompts="", contrast="", contexts="")
    run = train.train(cfg)
    said = "steered by the vectors of 1 × one + 0.5 × two, extracted in every round and added; all "
    assert said in run_table(run) and said in (run / "log.txt").read_text()
    inputs = json.loads((run / "config.json").read_text())["inputs"]
    assert inputs["guide"]["path"] == f"{two}/trait.toml:0.5"
    assert list(inputs["guide"]["sha256"]) == ["1 x 0.5"]
    on = parse(["--resume", str(run), "--rounds", "2"])
    with pytest.raises(UserError, match=r"trait"):
        train.train(replace(on, trait=f"{one},{two}:.6", guide=""))
    path = Path(two) / "trait.toml"
    before = path.read_text()
    path.write_text(before.replace("brief.", "curt."))
    with pytest.raises(UserError, match=r"guide/1 x 0.5: \w{12} → \w{12}"):
        train.train(on)
    path.write_text(before)
    train.train(on)
    assert len(doses(run)) == 2


@pytest.mark.long
@pytest.mark.parametrize("what", ["files", "packs"])
def check_a_bundle_takes_along_what_steered(folders, tmp_path, what):
    """And it is compared with what was packed, not with what lies here."""
    one, two = two_packs(tmp_path)
    fields = {"trait": f"{one}:1,{two}:.5"} if what == "packs" else {"trait": one}
    cfg = small_config(folders(), quant="none", said_prompts=3, **fields)
    cfg = replace(short_config(tmp_path, cfg, rounds=1), vignettes="", reasons="", persona="",
                  prompts="", contrast="", contexts="")
    if what == "files":
        names = [ours(tmp_path / f"{x}.safetensors", some(x, [2, 3])) for x in (1, 2)]
        cfg = replace(cfg, vector=f"{names[0]},{names[1]}:.5")
    run = train.train(cfg)
    path = write_bundle(run, tmp_path / "bundle.tar.gz")
    if what == "files":
        for x in names:
            x.unlink()
    found = {x.part: x for x in compare_bundle(path, model=cfg.model)}
    assert found["vector of round 1"].same and found["records"].same, found
    assert not [x for x in found.values() if x.same is False], found


@pytest.mark.long
@torch.no_grad()
def check_the_embedded_model_has_one_dose_for_a_vector_and_its_files(world: World, tmp_path):
    cfg = parse(["--tiny", "--device", "cpu"])
    model, data = world.model, read_data(cfg)
    vector = extract(model, data, cfg)
    wanted, _ = dose(model, vector, data, cfg, "0")
    baked = {b: wanted * v for b, v in vector.items()}
    write_vector(baked, tmp_path / "v.safetensors", {"format": "pt", "steerloop": json.dumps(
        {"raw": f"divide by {wanted!r}"})})
    write_gguf(baked, tmp_path / "v.gguf", "llama", "the base", wanted)
    table = torch.zeros(len(model.decoder.layers) + 1, len(next(iter(vector.values()))))
    for b, v in vector.items():
        table[b + 1] = v
    torch.save(table, tmp_path / "v.pt")
    for name in ("v.safetensors", "v.gguf", "v.pt"):
        mine = read_data(replace(cfg, vector=str(tmp_path / name)))
        found = extract(model, mine, cfg)
        assert dose(model, found, mine, cfg, "0")[0] == wanted, name
    write_gguf(baked, tmp_path / "theirs.gguf", "llama", "the base")  # says no size: as it is
    mine = read_data(replace(cfg, vector=str(tmp_path / "theirs.gguf")))
    scaled, _ = dose(model, extract(model, mine, cfg), mine, cfg, "0")
    assert abs(scaled - 1) < 0.05


def check_parts_are_read_as_they_are_written():
    for text, wanted in {
        "": [], "a": [("a", 1)], "a:2": [("a", 2)], "a:.5,b": [("a", 0.5), ("b", 1)],
        "x/y.pt:-1e-2, z:3": [("x/y.pt", -0.01), ("z", 3)], "a:b:2": [("a:b", 2)],
        "a:b": [("a:b", 1)], "a:1:1": [("a:1", 1)],
    }.items():
        found = parts(text, "vector")
        assert found == [Part(*x) for x in wanted], text
        assert parts(joined(found), "vector") == found
    for text in (",", "a,", ",a", ":2", "a:0", "a:nan", "a:inf", "a:-2000"):
        with pytest.raises(UserError, match="--trait"):
            parts(text, "trait")


def check_a_flag_that_is_given_twice_adds_a_part():
    one = parse(["--trait", "register:1", "--trait", "mood:.5"])
    assert one.trait == "register:1,mood:.5" == parse(["--trait", "register:1,mood:.5"]).trait
    assert parse(["--vector", "a.pt", "--vector", "b.pt:2"]).vector == "a.pt,b.pt:2"
    assert parse(["--trait", "register"]).trait == "register"
    plain = parse_options(Config, ["--seed", "1", "--seed", "2"], "")
    assert plain.seed == 2 and plain.trait == preset("embedded")["trait"]


@pytest.mark.parametrize(("fields", "says"), [
    ({"vector": "a.pt", "teacher": "null"}, "--vector is what steers"),
    ({"vector": "a.pt", "teacher": "base"}, "--vector is what steers"),
    ({"vector": "a.pt", "trait": "register,mood"}, "--vector is what steers"),
    ({"vector": "a.pt", "steer_band": []}, "--steer_band auto looks for"),
    ({"vector": "a.pt:0"}, "--vector a.pt:0"),
    ({"trait": "register:0,mood"}, "register counts 0"),
    ({"trait": "register,none"}, "none has no vector to add"),
])
def check_what_contradicts_itself_is_refused(fields, says):
    with pytest.raises(UserError, match=says):
        Config(**fields)


def check_words_for_what_steers():
    plain = {"vector": "", "trait": "register", "teacher": "vector"}
    assert steering({}) == steering(plain) == steering(plain | {"trait": "register:1"}) == ""
    assert "1 × v.pt - 0.5 × w.gguf" in steering(plain | {"vector": "/x/v.pt,w.gguf:-.5"})
    assert "1 × register + 2 × mood" in steering(plain | {"trait": "register,mood:2"})
    assert steering(plain | {"trait": "register,mood:2", "teacher": "base"}) == ""
