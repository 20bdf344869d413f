"""Files are read with errors that name them, and written whole or not at all."""

import json

import polars as pl
import pytest
import torch
from safetensors import safe_open

from steerloop import UserError
from steerloop.checks.small import data_files, small_config
from steerloop.runfolder.events import read_events
from steerloop.runfolder.files import checksums, write_whole
from steerloop.runfolder.folder import Folder
from steerloop.texts.data import lines, persona, read, read_data, vignettes
from steerloop.texts.foundations import FOUNDATIONS


def check_read_data_reads_what_is_there(tmp_path):
    cfg = small_config(tmp_path, **data_files(tmp_path), max_contexts=2, n_prompts=2)
    data = read_data(cfg)
    assert data.pairs == [("Be kind.", "Obey."), ("Be good to all.", "Follow each order.")]
    assert (data.up, data.down) == ("care", "authority")
    assert data.contexts == ["How are you?", "What now?"]  # the comment is none, the limit holds
    assert data.prompts == ["He told me to lie. Well?", "Must I go?"]
    assert data.vignettes.columns == ["text", "label"] and len(data.vignettes) == 3
    assert data.mundane.rows() == [(f"1 + {n}?", f"It is {n + 1}.") for n in (1, 2, 3)]


def check_split_is_filled_in(tmp_path):
    names = data_files(tmp_path)
    rows = [{"text": f"You see dev {n}.", "foundation_coarse": "care"} for n in range(4)]
    (tmp_path / "v.dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names["vignettes"] = str(tmp_path / "v.{split}.jsonl")
    assert len(read_data(small_config(tmp_path, **names, split="dev")).vignettes) == 4
    with pytest.raises(UserError, match=r"v\.test\.jsonl"):
        read_data(small_config(tmp_path, **names, split="test"))


def check_an_own_file_wins_over_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = read("tinyworld/data/prompts.txt", lines)
    (tmp_path / "tinyworld/data").mkdir(parents=True)
    (tmp_path / "tinyworld/data/prompts.txt").write_text("Mine?\n")
    assert read("tinyworld/data/prompts.txt", lines) == ["Mine?"] != packaged


def check_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep/file.txt"
    write_whole(path, lambda part: part.write_text("old"))

    def fails(part):
        part.write_text("half of")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert [x.name for x in path.parent.iterdir()] == ["file.txt"]


def check_a_folder_is_never_reused(tmp_path):
    Folder(tmp_path / "run").event("one", value=1)
    assert [Folder(tmp_path / "run").path.name for _ in range(2)] == ["run-2", "run-3"]
    assert read_events(tmp_path / "run") == [{"stage": "one", "value": 1}]


def check_events_are_appended_and_finite(tmp_path):
    folder = Folder(tmp_path / "run")
    folder.event("one", value=1)
    with pytest.raises(ValueError, match="JSON"):
        folder.event("two", value=float("nan"))
    folder.event("three", value=[1.5, None])
    folder.event("three", value=[1.5, None])  # again: it is there
    assert read_events(tmp_path / "run") == [
        {"stage": "one", "value": 1}, {"stage": "three", "value": [1.5, None]}]
    with pytest.raises(ValueError, match="JSON"):
        folder.json("config.json", value=float("inf"))
    assert not (tmp_path / "run/config.json").exists()


def check_tables_and_tensors_come_back(tmp_path):
    folder, frame = Folder(tmp_path / "run"), pl.DataFrame({"a": [[1, 2], []], "b": ["x", None]})
    folder.table("rounds/00/rows", frame)
    assert pl.read_parquet(tmp_path / "run/rounds/00/rows.parquet").equals(frame)
    tensors = {"x.A": torch.randn(3, 4), "x.B": torch.randn(2, 3).bfloat16()}
    folder.tensors("rounds/00/adapter", tensors, round=0, targets=["q_proj"])
    with safe_open(tmp_path / "run/rounds/00/adapter.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(k), x) for k, x in tensors.items())
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["steerloop"]) == {
            "schema": 1, "round": 0, "targets": ["q_proj"]}


def check_work_in_progress_that_was_damaged_is_not_gone_on_from(tmp_path):
    folder = Folder(tmp_path / "run")
    tensors = {"x": torch.randn(30), "y": torch.ones(3).bfloat16()}
    assert folder.latest("heal") is None
    folder.tensors("heal", tensors, done=3, log=[0.5])
    found, note = folder.latest("heal")
    assert note == {"schema": 1, "done": 3, "log": [0.5]}
    assert all(torch.equal(found[k], x) for k, x in tensors.items())
    path = tmp_path / "run/heal.safetensors"
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[:40], b""):
        path.write_bytes(cut)
        with pytest.raises(UserError, match="damaged: delete it and resume"):
            folder.latest("heal")
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        try:
            again, said = folder.latest("heal")  # a letter of padding, say: then nothing is lost
        except UserError as e:
            assert "damaged: delete it and resume" in str(e)
        else:
            assert said == note and all(torch.equal(again[k], x) for k, x in tensors.items())


def check_published_vignettes_load_as_they_are():
    """Labels however they are spelt; where people rated them, shares of their ratings."""
    plain = [{"text": "A", "foundation_coarse": "SocialNorms", "id": 3},
             {"text": "B", "foundation_coarse": "Authority", "id": 4}]
    found = vignettes("\n".join(map(json.dumps, plain)))
    assert found.rows() == [("A", "social norms"), ("B", "authority")]
    names = ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "Social Norms"]
    rated = [x | {f"human_{n}": 10 * i + j for j, n in enumerate(names)} | {"human_Care": 90 * i}
             for i, x in enumerate(plain)]
    found = vignettes("\n".join(map(json.dumps, rated)))
    assert found["label"].to_list() == ["social norms", "care"]
    assert found.select("^h_.*$").columns == [f"h_{f}" for f in FOUNDATIONS]
    assert found.select(pl.sum_horizontal("^h_.*$")).to_series().to_list() == pytest.approx([1, 1])
    assert found["h_care"].to_list() == pytest.approx([0, 90 / (90 + 6 * 10 + 21)])


@pytest.mark.parametrize(("changes", "says"), [
    ({"foundation_coarse": "Honour"}, "Honour"),
    ({"text": None}, "every line needs text"),
    ({"human_Care": 1.0}, "ratings lack h_authority"),
    ({"human_Honour": 1.0}, "Honour"),
])
def check_vignettes_of_another_kind_are_refused(tmp_path, changes, says):
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps({"text": "A", "foundation_coarse": "Care"} | changes))
    with pytest.raises(UserError, match=says):
        read(str(path), vignettes)


def check_an_unrated_vignette_keeps_its_label():
    names = ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms"]
    row = {"text": "A", "foundation_coarse": "Loyalty"} | {f"human_{n}": 0.0 for n in names}
    rated = row | {"text": "B", "human_Care": 3.0}
    found = vignettes("\n".join(map(json.dumps, [row, rated])))
    assert found["label"].to_list() == ["loyalty", "care"]
    assert found.select(pl.sum_horizontal("^h_.*$")).to_series().to_list() == [0, 1]


@pytest.mark.parametrize(("text", "says"), [
    ('positive = "abc"\nnegative = "abd"', "two poles"),
    ('positive = ["a"]\nnegative = ["b"]\ndown = "Honour"', "named alone"),
    ('positive = ["a"]\nnegative = ["b"]\nup = "care"\ndown = "Honour"', "Honour"),
    ('positive = ["a"]\nnegative = ["b"]\nup = "care"\ndown = "Care"', "both care"),
])
def check_a_persona_file_without_an_axis_is_refused(tmp_path, text, says):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UserError, match=says):
        read(str(tmp_path / "p.toml"), persona)


def check_a_damaged_list_of_checksums_is_refused(tmp_path):
    (tmp_path / "checksums.txt").write_text(f"{'0' * 64}  a b.json\n")
    assert checksums(tmp_path) == {"a b.json": "0" * 64}
    (tmp_path / "checksums.txt").write_text("0123  a.json\n")
    with pytest.raises(UserError, match=r"checksums.txt is damaged: delete it"):
        checksums(tmp_path)
