"""The pages of a served run: as they lie in its folder, with its charts, and for no one without the
key."""

import base64

import pytest

from steerloop.checks.browser import visit
from steerloop.checks.exported import made_run
from steerloop.checks.served import serving
from steerloop.checks.small import small_config
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report import finish
from steerloop.runfolder import layout


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A run that can be served, with the pages of one that was measured."""
    root = tmp_path_factory.mktemp("pages")
    drawn = write_run(root / "drawn", [tilted({"authority": -0.9})], [tilted({"authority": -1.2})])
    finish(drawn)
    made = made_run(root, small_config(folders(), quant="none", max_new_tokens=20))
    for name in layout.PAGES:
        if (drawn / name).is_file():
            (made / name).write_bytes((drawn / name).read_bytes())
    return made


def check_the_pages_of_the_run_draw_over_http(run):
    """The map's marks are there, no request leaves, and the chat page leads there."""
    with serving(run) as there:
        page, console = visit(f"{there.url}/run/{layout.REPORT}")
        assert console == [] and len(page.find("path", "point")) == 3
        text = (run / layout.VERDICTS_PAGE).read_text()
        assert there.send(f"/run/{layout.VERDICTS_PAGE}")[1] == text
        assert f'href="run/{layout.REPORT}"' in there.send("/")[1]
        assert there.send("/run")[0] == 307  # to the first of them


def check_nothing_else_of_the_folder_is_served(run):
    (run / layout.MAP).unlink(missing_ok=True)
    with serving(run) as there:
        for name in (layout.EVENTS, layout.CONFIG, layout.MAP, "..%2fdrawn%2freport.html",
                     "%2e%2e/drawn/report.html", "rounds/00/completions.parquet", ""):
            status, said = there.send(f"/run/{name}")
            assert status in (307, 404) and "html" not in str(said)[:20], name
        assert there.send(f"/{layout.INDEX}")[0] == 404


def check_what_others_put_there_runs_no_script(run, tmp_path):
    """A link to a file elsewhere is none of the pages; a page with scripts of its own, under a
    policy of its own, is shown without them; one that another version wrote gets its charts."""
    (tmp_path / "secret").write_text("secret")
    (run / layout.MAP).unlink(missing_ok=True)
    (run / layout.MAP).symlink_to(tmp_path / "secret")
    whole = (run / layout.REPORT).read_text()
    mark = "<script>document.title = 'pwned'</script>"
    try:
        (run / layout.REPORT).write_text(f"<title>fine</title>{mark}<p>text</p>")
        with serving(run) as there:
            assert there.send(f"/run/{layout.MAP}")[0] == 404
            page, console = visit(f"{there.url}/run/{layout.REPORT}")
            assert page.find("title") == ["fine"] and page.find("p") == ["text"]
            assert len(console) == 1 and "Content Security Policy" in console[0]
            status, script = there.send("/plotly-9.9.9.min.js")
            assert status == 200 and "plotly" in script[:300]
    finally:
        (run / layout.REPORT).write_text(whole)
        (run / layout.MAP).unlink()


def check_the_pages_want_the_key(run):
    """As the password that a browser asks for, or as clients send it; /v1 takes no password."""
    with serving(run, "--key", "se:cret") as there:
        path = f"/run/{layout.REPORT}"
        password = "Basic " + base64.b64encode(b"me:se:cret").decode()
        assert there.send(path)[0] == 401
        assert there.send(path, authorization=password)[0] == 200
        assert there.send(path, authorization="Bearer se:cret")[0] == 200
        for wrong in ("Basic x", "Basic " + base64.b64encode(b"me:").decode(), "Bearer", "Basic é"):
            assert there.send(path, authorization=wrong.encode("latin-1").decode("latin-1"))[
                0] == 401
        assert there.send("/v1/models", authorization=password)[0] == 401
