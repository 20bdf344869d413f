"""Rooms have an order, and imports run one way through it; kernels are arithmetic; the package does
not call itself by strings; the core is short, plain and documented."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import steerloop
from steerloop.checks import lines

PACKAGE = Path(steerloop.__file__).parent
ROOMS = [  # from the ground up: a room imports what is below it, and itself
    {"kernels", "texts", "runfolder.layout", "ranks"},
    {"cli", "loading"},
    {"config", "runfolder"},
    {"lora", "barrier", "report", "trackers"},
    {"model"},
    {"bridge", "healing"},
    {"readouts", "teacher"},
    {"steer"},
    {"sample"},
    {"filter", "heal"},
    {"readouts.said"},
    {"dose", "evaluate", "harness"},
    {"sight"},
    {"evidence"},
    {"baselines"},
    {"train"},
    {"tinyworld", "export", "sweep"},
    {"chat", "score", "models", "serve", "traits"},
    {"bench"},
]
APART = {"runfolder.layout", "readouts.said"}  # modules with a place of their own
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
CORE = {"config", "lora", "barrier", "model", "steer", "sample", "filter", "heal", "dose",
        "evaluate", "train"}
ONLY = {  # rooms that take less than what is below them
    "kernels": set(),
    "texts": set(),
    "ranks": set(),
    "cli": {"runfolder.layout"},
    "config": {"cli", "texts"},
    "loading": {"kernels", "texts"},
    "runfolder": {"runfolder.layout", "loading", "kernels", "texts", "ranks"},
    "trackers": {"runfolder", "runfolder.layout", "ranks"},
    "report": {"cli", "runfolder", "runfolder.layout", "texts"},
}
SAID = {"UserError"}
FILES = sorted(x for x in PACKAGE.rglob("*.py") if "checks" not in x.parts)


def name_of(path):
    """A file's dotted name below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module):
    """The room of a dotted name below the package."""
    return module if module in APART else module.partition(".")[0]


def imports(tree):
    """Dotted names of what a module takes from this package, e.g. 'lora', 'kernels.batch'."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {x.name for x in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            whole = node.module in ("steerloop", "steerloop.runfolder")
            modules |= {f"{node.module}.{x.name}" for x in node.names} if whole else {node.module}
    return {x.removeprefix("steerloop.") for x in modules if x.split(".")[0] == "steerloop"}


TREES = {name_of(path): ast.parse(path.read_text()) for path in FILES}
MODULES = [name for name in TREES if name != "__init__"]
PLAIN = [name for name in MODULES if room_of(name) in CORE | {
    "kernels", "texts", "loading", "readouts", "runfolder", "healing", "cli", "evidence"}]


def functions(tree):
    """Every function of a module, methods too."""
    return [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]


def check_every_module_has_its_room():
    assert {room_of(x) for x in MODULES} == set(RANK)
    assert {x.stem for x in PACKAGE.glob("*.py")} == CORE | {"__init__"}


@pytest.mark.parametrize("name", MODULES)
def check_imports_point_down_through_the_rooms(name):
    mine = room_of(name)
    for module in imports(TREES[name]) - SAID:
        room = room_of(module)
        if room == mine:
            assert mine not in CORE
            continue
        assert RANK[room] < RANK[mine], f"{name} imports {module}"
        assert mine not in ONLY or room in ONLY[mine], f"{name} imports {module}"


def check_there_is_no_cycle_inside_a_room():
    known = set(MODULES)
    graph = {name: {x for x in imports(TREES[name]) & known if x != name} for name in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


ARITHMETIC = {"pathlib", "json", "polars.io", "tomllib", "shutil", "tempfile", "subprocess"}


@pytest.mark.parametrize("name", [x for x in MODULES if room_of(x) == "kernels"])
def check_kernels_are_arithmetic(name):
    """No paths, no config, no model of any kind."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            taken = {x.name for x in node.names} | {getattr(node, "module", None)}
            assert not taken & ARITHMETIC, f"{name} imports {taken & ARITHMETIC}"
    for f in functions(TREES[name]):
        args = f.args.args + f.args.kwonlyargs
        assert not {x.arg for x in args} & {"cfg", "config", "model", "path", "folder"}, f.name
        loose = [x.arg for x in args if x.annotation is not None
                 and ast.unparse(x.annotation) == "Any" and x.arg in ("layer", "hf", "chat")]
        assert not loose, f"{name}: {f.name} takes {loose} of any kind"


NAMED = re.compile(r"steerloop(\.\w+)+(:\w+)?")
BY_NAME = {"import_module", "resolve_name", "run_module", "__import__", "run_path"}
CALLERS = {  # what users and data name, other people's packages
    "readouts.probes", "bridge", "export.extras", "cli.commands"}


@pytest.mark.parametrize("name", MODULES)
def check_the_package_does_not_call_itself_by_strings(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not NAMED.fullmatch(node.value), f"{name}: import {node.value} instead"
        elif isinstance(node, ast.JoinedStr):
            first = node.values[0] if node.values else None
            text = first.value if isinstance(first, ast.Constant) else ""
            assert not re.fullmatch(r"steerloop\.[\w.]*", text), f"{name}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            assert called not in BY_NAME or name in CALLERS, f"{name} calls {called}"


LATE = {  # dense runs stay clear of bitsandbytes, and all but those on such files of gguf
    ("loading.weights", "steerloop.loading.streaming"), ("loading.hub", "steerloop.loading.gguf"),
    ("loading.weights", "steerloop.loading.packed"),
    ("loading.vectors", "steerloop.loading.controls"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def check_no_import_hides_in_a_function(name):
    for f in functions(TREES[name]):
        hidden = [x for x in ast.walk(f) if isinstance(x, ast.Import | ast.ImportFrom)
                  and (name, getattr(x, "module", None)) not in LATE]
        assert not hidden, f"{name}: {f.name}"


@pytest.mark.parametrize("name", PLAIN)
def check_only_loading_imports_model_classes(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module == "transformers":
            names = {x.name for x in node.names}
            assert name in ("loading.weights", "loading.gguf") or not any(
                x.startswith("AutoModel") or "CAUSAL" in x or x.endswith("ForCausalLM")
                for x in names), name


OPENS = {"open": "r", "fdopen": "r", "NamedTemporaryFile": "wb", "TemporaryFile": "wb",
         "SpooledTemporaryFile": "wb"}  # and in which mode, where none is said
RUNS = {"run", "Popen", "check_output", "check_call"}


def says_its_encoding(call):
    """Whether a call that reads or writes text says how it is encoded; so does any other call."""
    where, _, name = ast.unparse(call.func).rpartition(".")
    said = {x.arg: x.value for x in call.keywords}
    if "encoding" in said:
        return True
    if name in ("read_text", "write_text", "TextIOWrapper"):
        first = 1 if name == "read_text" else 2  # where the encoding may stand by its place
        return not where or len(call.args) >= first  # texts.reader has a function of this name
    if name in RUNS:
        return not {"text", "universal_newlines", "errors"} & said.keys()
    if name not in OPENS or (where in ("os", "tarfile") and name == "open"):
        return True
    constants = [x.value for x in [*call.args, said.get("mode")] if isinstance(x, ast.Constant)]
    modes = [x for x in constants if isinstance(x, str) and set(x) <= set("rwxabt+")]
    if name == "open" and where not in ("", "io") and call.args and not modes:
        return True  # a method of this name that takes no mode opens no file
    return "b" in (modes or [OPENS[name]])[0]


@pytest.mark.parametrize("name", MODULES)
def check_text_is_utf_8_whatever_the_locale(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            assert says_its_encoding(node), f"{name}: {ast.unparse(node)}"


@pytest.mark.parametrize(("call", "says"), [
    ("path.read_text()", False), ("path.read_text(encoding='utf-8')", True),
    ("path.write_text(text)", False), ("path.write_text(text, 'utf-8')", True),
    ("path.read_text('utf-8')", True), ("read_text(path)", True),
    ("path.open()", False), ("path.open('w')", False), ("path.open('rb')", True),
    ("path.open(mode='a')", False), ("open(path)", False), ("open(path, 'a')", False),
    ("open(path, 'rb')", True), ("open('p', encoding='utf-8')", True), ("io.open(path)", False),
    ("os.fdopen(1, 'w')", False), ("tarfile.open(path)", True), ("self.open(round, stage)", True),
    ("subprocess.run(argv, text=True)", False), ("subprocess.run(argv)", True),
    ("Popen(argv, universal_newlines=True)", False), ("NamedTemporaryFile('w')", False),
    ("NamedTemporaryFile(mode='w')", False), ("TemporaryFile()", True), ("run(options)", True),
    ("gzip.open(path, 'rt')", False), ("io.TextIOWrapper(raw)", False),
])
def check_a_call_that_leaves_the_encoding_to_the_locale_is_seen(call, says):
    assert says_its_encoding(ast.parse(call).body[0].value) is says


BROKEN_UP = {("runfolder.files", "checksums")}  # no text, but names of ours


@pytest.mark.parametrize("name", MODULES)
def check_texts_are_split_at_line_ends_alone(name):
    """`splitlines` breaks at U+2028, form feeds and the like, too. First lines of errors may be."""
    firsts = {x.value for x in ast.walk(TREES[name]) if isinstance(x, ast.Subscript)
              and ast.unparse(x.slice) == "0"}
    allowed = {x for f in functions(TREES[name]) if (name, f.name) in BROKEN_UP
               for x in ast.walk(f)}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".splitlines"):
            assert node in firsts | allowed, f"{name}: {ast.unparse(node)}"


NO_TORCH = [x for x in MODULES if room_of(x) in ("report", "texts", "runfolder.layout")
            or x in ("runfolder", "runfolder.files", "runfolder.events", "cli.entry",
                     "cli.options", "cli.knobs")]


@pytest.mark.parametrize("name", NO_TORCH)
def check_reports_need_neither_torch_nor_the_core(name):
    tree = TREES[name]
    outside = {x.name for n in ast.walk(tree) if isinstance(n, ast.Import) for x in n.names}
    outside |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {x.partition(".")[0] for x in outside} & {"torch", "transformers"}
    assert imports(tree) - SAID <= {*NO_TORCH}


def check_the_core_is_within_its_budget():
    whole = lines.total(list(lines.core().values()))
    assert len(lines.core()) == len(CORE)  # __init__ counts, config does not
    assert whole.lines <= lines.LIMIT and whole.packed <= lines.PACKED, whole


def check_no_file_is_longer_than_a_room():
    counts = {x: lines.count(x.read_text()).lines for x in FILES if "tinyworld" not in x.parts}
    assert not {name_of(x): n for x, n in counts.items() if n > lines.LONGEST}


@pytest.mark.parametrize("name", [x for x in MODULES if "tinyworld" not in x])
def check_no_path_is_read_as_a_pattern(name):
    """polars expands what it is given, and takes `s3:` for an address; so do patterns that are
    made of a path. Tables of run folders are read and written by runfolder.files alone."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            taken = {x.name for x in node.names} | {getattr(node, "module", None)}
            assert not taken & {"glob", "fnmatch"}, f"{name} imports {taken}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = node.func.attr
        opens = re.match(r"(read|scan|sink|write)_(parquet|csv|ipc|json|ndjson)", called)
        inside = name == "runfolder.files" or "glob=False" in ast.unparse(node)
        assert inside or not opens, f"{name} calls {called}: read_table and write_table do"
        made = [x for x in node.args if isinstance(x, ast.JoinedStr | ast.BinOp)]
        assert called not in ("glob", "rglob") or not made, f"{name}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", sorted(CORE))
def check_no_function_of_the_core_takes_more_than_six(name):
    for f in functions(TREES[name]):
        taken = [x.arg for x in f.args.args + f.args.kwonlyargs if x.arg != "self"]
        assert len(taken) <= 6, f"{name}: {f.name}{taken}"


def check_the_counter_counts_code():
    source = '"""Doc\nstring."""\n\n# remark\nx = [\n    1,\n\n    2,  # two\n]\n\n' \
             'def f():\n    """Doc."""\n    return """a\nb"""\n'
    assert lines.count(source) == (4 + 1 + 2, (3 + 2 + 2 + 1) + 5 + 2)
    assert lines.count("") == lines.count('"""Only a docstring."""\n') == (0, 0)
    assert lines.count('x = f"{a + b} and {c}"\n') == (1, 3)  # an f-string is one token


def check_both_counts_are_printed(capsys, monkeypatch):
    lines.main([])
    said = capsys.readouterr().out
    assert re.search(r"\d+ lines +\d+\.\d tokens a line  total", said) and "config.py" in said
    for bound in ("LIMIT", "PACKED"):
        with monkeypatch.context() as m:
            m.setattr(lines, bound, 1)
            with pytest.raises(SystemExit, match="what does not fit is not method"):
                lines.main([])


@pytest.mark.parametrize("name", PLAIN)
def check_everything_public_is_documented(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}: {node.name}"
