"""`bench gpu`, rehearsed on a CPU: every step says what it found; one that fails, hangs or is wrong
costs its own line alone; what was done is there in one archive whatever happens."""

import json
import tarfile
import time

import pytest

from steerloop.bench import gpu
from steerloop.bench.__main__ import options
from steerloop.bench.gpu import Bench, Row, Step, names, of, share, speed

SAMPLE = ["gates"]
HERE = "steerloop.checks.planted"
PLANTED = ["fails", "hangs"]
ARGV = ["gpu", "--device", "cpu", "--shape", "tiny", "--minutes", "8"]


def planted(name, **more):
    return Step(name, HERE, [name], 8, **more)


def cells(table):
    """Table lines by their names."""
    lines = [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines()]
    assert tuple(lines[0]) == gpu.HEAD and {len(x) for x in lines} == {len(gpu.HEAD)}
    return {x[0]: x[1:] for x in lines[2:]}


def rehearsed(folder, capsys, only):
    """Table lines of a rehearsal with what is planted; and its folder."""
    out = folder / "gpu"
    chosen = options([*ARGV, "--out", str(out), *(["--only", *only] if only else [])])
    with pytest.raises(SystemExit) as end:
        gpu.run(chosen, [planted(x) for x in PLANTED])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert said == (out / gpu.TABLE).read_text(), "the last lines that it prints"
    return cells(said), out


def whole(found, out, steps, verdicts):
    """All steps that are known did what they do, and the planted ones what they were to."""
    assert found["fails"] == ["FAILED", "", "", "", "ValueError: the planted failure"]
    assert "Traceback (most recent call last)" in (out / "fails.log").read_text()
    assert found["hangs"][0].startswith("TIME") and "I was here" in (out / "hangs.log").read_text()
    others = {k: x for k, x in found.items() if k not in PLANTED}
    assert {x[0] for x in others.values()} == verdicts
    assert all(x[1] and not x[4] for x in others.values())
    with tarfile.open(out / gpu.ARCHIVE) as tar:
        packed = set(tar.getnames())
    assert {f"gpu/{x}.json" for x in steps} <= packed
    assert {f"gpu/{x}.log" for x in [*steps, *PLANTED]} <= packed and f"gpu/{gpu.TABLE}" in packed


def check_a_rehearsal_of_some_steps(tmp_path, capsys):
    found, out = rehearsed(tmp_path, capsys, SAMPLE)
    whole(found, out, SAMPLE, {"right"})
    assert found["gates"][1] == "12 of 12 bitwise"


@pytest.mark.long
def check_a_rehearsal_of_all_steps(tmp_path, capsys):
    found, out = rehearsed(tmp_path, capsys, [])
    whole(found, out, names(options([*ARGV, "--out", str(tmp_path)])),
          {"right", "measured"})
    steps = [x for x in found if x.startswith("decoding step")]
    assert [x.split()[2] for x in steps] == ["1", "6", "24"] and all(found[x][2] for x in steps)


def bench(folder, steps, minutes=1.0, targets=False):
    """The lines that these steps leave."""
    done = Bench(folder / "gpu", minutes, targets)
    done.run(steps)
    return cells(done.table())


def check_what_is_wrong_is_said(tmp_path):
    found = bench(tmp_path, [planted("wrong", right=True)])
    assert found == {"wrong": ["WRONG", "3 of 4 rows", "", "", ""]}
    assert "WRONG" in gpu.BAD


def check_a_figure_stands_beside_its_floor_and_its_target(tmp_path):
    seconds, least = of("a.seconds"), share("a.seconds", "a.share")
    rows = [Row("soon enough", seconds, "s", least, 3.0), Row("too late", seconds, target=1.0),
            Row("ms", of("a.seconds", 1e3), "ms"), Row("absent", of("a.b")),
            Row("times", seconds, "x", target=2.0, least=True),
            Row("too few", seconds, "x", target=5.0, least=True)]
    step = planted("fast", rows=rows)
    found = bench(tmp_path, [step], targets=True)
    assert found["soon enough"] == ["met", "2 s", "0.5 s", "≤ 3 s", ""]
    assert found["too late"][:4] == ["missed", "2 s", "", "≤ 1 s"]
    assert found["ms"][:4] == ["measured", "2e+03 ms", "", ""]
    assert found["absent"] == ["FAILED", "", "", "", "no figure 'b' in fast.json"]
    assert found["times"][0] == "met" and found["too few"][0] == "missed"
    assert {x[0] for x in bench(tmp_path, [step]).values()} == {"measured", "FAILED"}


def check_time_that_is_over_leaves_what_was_done(tmp_path):
    """Of a step in hand its log; those after it are named."""
    steps = [planted("fast", rows=[Row("a", of("a.seconds"))]), planted("hangs"), planted("fails")]
    found = bench(tmp_path, steps, minutes=0.1)
    assert found["a"][0] == "measured" and found["hangs"][0].startswith("TIME")
    assert found["fails"] == ["not run", "", "", "", ""]
    with tarfile.open(tmp_path / "gpu" / gpu.ARCHIVE) as tar:
        known = json.load(tar.extractfile("gpu/fast.json"))
        assert known["a"] and "gpu/hangs.log" in tar.getnames()


def check_what_is_not_run_or_is_killed_is_said(tmp_path):
    found = bench(tmp_path, [planted("fast", rows=[Row("a", of("a.seconds"))])], minutes=0.0)
    assert found["fast"][0] == "not run" and "not run" in gpu.BAD
    found = bench(tmp_path, [planted("killed")])
    assert found["killed"][0] == "FAILED" and "killed by signal 9" in found["killed"][4]
    found = bench(tmp_path, [planted("says nothing", rows=[Row("a", of("a.seconds"))])])
    assert found["says nothing"][0] == "FAILED" and "no figures" in found["says nothing"][4]


def check_a_traceback_that_lies_elsewhere_comes_along(tmp_path):
    found = bench(tmp_path, [planted("says where")])
    assert found["says where"][4].startswith("error: KeyError: 'x'; its traceback is in")
    with tarfile.open(tmp_path / "gpu" / gpu.ARCHIVE) as tar:
        assert b"deep inside" in tar.extractfile("gpu/says where.log").read()


def check_a_step_that_just_began_can_be_ended(tmp_path):
    """Before it has a group of its own, too."""
    found = bench(tmp_path, [planted("hangs")], minutes=0.002)
    assert found["hangs"][0].startswith("TIME")


def check_what_ends_the_bench_ends_its_steps(tmp_path, monkeypatch):
    done, started = Bench(tmp_path / "gpu", 1.0, targets=False), []
    start = done.start
    monkeypatch.setattr(done, "start", lambda step: started.append(start(step)) or started[-1])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(done, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        done.run([planted("hangs")])
    assert started and all(x.poll() is not None for x in started)


def check_steps_that_go_together_do(tmp_path):
    start = time.monotonic()
    steps = [planted("hangs", together=True), Step("again", HERE, ["hangs"], 8, together=True)]
    assert all(x[0].startswith("TIME") for x in bench(tmp_path, steps).values())
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(("shape", "device"), [("tiny", "cpu"), ("gemma-3-1b", "cuda")])
def check_no_two_steps_write_the_same_file(shape, device, tmp_path):
    argv = ["gpu", "--out", str(tmp_path), "--shape", shape, "--device", device]
    steps = gpu.steps_of(options(argv), tmp_path)
    assert len(steps) == len({x.name for x in steps}) > 15
    lines = [row.name for x in speed(shape, device, tmp_path, True) for row in x.rows]
    assert len(lines) == len(set(lines))


def check_what_gpu_takes_is_said(tmp_path, capsys):
    for argv, said in (
            (["gpu"], "gpu takes --out"), (["limits", "--out", "x"], "limits takes no --out"),
            (["gpu", "--out", "x", "--rows", "3"], "gpu takes no --rows"),
            (["heal", "--smoke"], "heal takes no --smoke"),
            (["gpu", "--out", "x", "--models", str(tmp_path)], "has no folder with a config.json"),
            (["gpu", "--out", "x", "--only", "hoeren"], "no step hoeren; there are")):
        with pytest.raises(SystemExit) as end:
            options(argv)
        assert end.value.code == 2 and said in capsys.readouterr().err
    chosen = options(["gpu", "--out", str(tmp_path)])
    assert (chosen.shape, chosen.device, chosen.minutes) == ("gemma-3-1b", "cuda", 8)
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "models" / "one" / "config.json").touch()
    for name in ("two-0.5B.gguf", "two-0.5B-it.gguf", "one/mmproj.gguf"):
        (tmp_path / "models" / name).touch()
    models = ["gpu", "--out", str(tmp_path), "--models", str(tmp_path / "models")]
    known = {x for x in names(options(models)) if x.startswith("model")}
    assert known == {"model-one", "model-two-0.5B.gguf", "model-two-0.5B-it.gguf"}
