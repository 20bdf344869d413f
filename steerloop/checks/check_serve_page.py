"""The page of a server, clicked through in Chromium: what it shows is what the server says, as
text, whatever that is."""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.responses import Response

from steerloop.checks.browser import visit
from steerloop.checks.exported import made_run
from steerloop.checks.served import serving
from steerloop.checks.small import small_config

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><b>&amp;"
LATER = """
const later = (test, then) => {
  const look = () => test() ? then() : setTimeout(look, 20);
  look();
};
const click = (id) => document.getElementById(id).click();
const ready = () => !document.querySelector("main").hidden;
const done = () => /done|failed/.test(document.getElementById("status").textContent);
const release = () => fetch("release");
const last = document.createElement("link");
last.rel = "stylesheet";
last.href = "last.css";
document.head.append(last);
"""
ASKS = LATER + """
later(ready, () => {
  const slider = document.querySelector("#sliders input[name='round 1']");
  slider.value = 0.5;
  slider.dispatchEvent(new Event("input"));
  click("pin");
  click("student");
  click("go");
  later(done, () => {
    document.body.dataset.link = location.href;
    document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
    release();
  });
});
"""
ONLY_ASKS = LATER + 'later(ready, () => { click("go"); later(done, release); });'
STOPS = LATER + """
later(ready, () => {
  click("go");
  later(() => document.querySelector(".text").textContent, () => {
    click("stop");
    later(done, release);
  });
});
"""
HELD = 30  # seconds that a page is not loaded at most


def driven(script):
    """The application with a script of ours behind its page, from the server itself: no other is
    allowed there. The page counts as loaded when the script lets its last style come."""
    def wrap(app):
        released = asyncio.Event()

        async def page(scope, receive):
            parts = []

            async def hold(message):
                parts.append(message)

            await app(scope, receive, hold)
            text = b"".join(x.get("body", b"") for x in parts).replace(
                b"</body>", b'<script src="drive.js"></script></body>')
            headers = {k.decode(): v.decode() for k, v in parts[0]["headers"]
                       if k != b"content-length"}
            return Response(text, headers=headers)

        async def run(scope, receive, send):
            path, answer = scope["path"], Response("", media_type="text/css")
            if path == "/drive.js":
                answer = Response(script, media_type="text/javascript")
            elif path == "/release":
                released.set()
            elif path == "/last.css":
                await asyncio.wait_for(released.wait(), HELD)
            elif path == "/":
                answer = await page(scope, receive)
            else:
                answer = app
            await answer(scope, receive, send)

        return run

    return wrap


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    cfg = small_config(folders(), quant="none", max_new_tokens=20)
    return made_run(tmp_path_factory.mktemp("page"), cfg)


def settings(**fields):
    """The fragment of a link."""
    return "#" + quote(json.dumps({"p": "Why?", "n": 12, "s": 3, "t": 1} | fields))


def shown(document):
    """Name, dial and answer of each column."""
    return list(zip(document.find("h2"), document.find("p", "under"), document.find("p", "text"),
                    strict=True))


def check_columns_show_what_the_server_says(run):
    """Base, the student without its last round, the student, and what was pinned."""
    with serving(run, app=driven(ASKS)) as there:
        document, said = visit(there.url + "/", settings())
        assert not said
        found = shown(document)
        assert [(name.strip("×"), under) for name, under, _ in found] == [
            ("base", "gates 0 0 0 · dose 0"), ("previous", "gates 1 0 0 · dose 0"),
            ("student", "gates 1 1 0 · dose 0"), ("pinned 1", "gates 0.5 1 0 · dose 0")]
        for (_, _, text), gates in zip(found, ([0, 0, 0], [1, 0, 0], [1, 1, 0], [0.5, 1, 0]),
                                       strict=True):
            body = {"model": "student", "messages": [{"role": "user", "content": "Why?"}],
                    "seed": 3, "gates": gates, "max_tokens": 12, "temperature": 1}
            answer = there.send("/v1/chat/completions", body)[1]["choices"][0]["message"]
            assert text == answer["content"]
        assert document.find("mark") and document.find(kind="end")
        link = next(a["data-link"] for tag, a, _ in document.elements if tag == "body")
    with serving(run, app=driven(ONLY_ASKS)) as there:  # a link holds all of it
        document, _ = visit(there.url + "/" + link[link.index("#"):])
        assert shown(document) == found


def check_hostile_texts_stay_texts(run):
    """In the link, in the name of the run, and in what the model says."""
    odd = run.with_name("<i>run")
    odd.symlink_to(run)
    with serving(odd, app=driven(ONLY_ASKS)) as there:
        engine = there.served.engine
        engine.model.to_text = lambda ids, special=False: "".join(
            f"<img/src=x{i}/onerror=alert(1)> " for i in ids)
        document, said = visit(there.url + "/", settings(p=HOSTILE, g=[HOSTILE, 1], n="<b>", c=[5]))
        assert not said
        assert {tag for tag, _, _ in document.elements}.isdisjoint({"img", "b", "i"})
        assert document.find("title") == ["steerloop: the dial"]
        assert all("<img/src=x" in x for x in document.find("p", "text"))
        assert any("<img/src=x" in x for x in document.find("mark"))
        assert "<i>run" in document.find("p")[0]
        assert document.find("textarea") == [""]  # its value is no text of the document
        names = {"base", "previous", "dial", "student", "pinned 1"}
        assert {x.strip("×") for x in document.find("h2")} <= names


def check_a_failure_is_said_in_its_column_and_answers_can_be_stopped(run):
    with serving(run, app=driven(ONLY_ASKS)) as there:
        document, _ = visit(there.url + "/", settings(n=100_000))
        assert all("shorter prompt" in x or "max_tokens" in x for x in document.find("p", "end"))
    with serving(run, "--context", "1024", "--rows", "8", app=driven(STOPS)) as there:
        there.served.engine.model.stop_ids[:] = [0]
        document, _ = visit(there.url + "/", settings(n=900, t=0))
        assert "stopped" in document.find("p", "end")
        there.until(0)


def check_it_asks_for_the_key(run):
    """And sends it, nowhere else than to its server."""
    script = LATER + """
    later(() => !document.getElementById("key").hidden, () => {
      document.getElementById("secret").value = "hush-8017";
      document.querySelector("#key button").click();
      later(ready, () => { click("go"); later(done, release); });
    });
    """
    with serving(run, "--key", "hush-8017", app=driven(script)) as there:
        document, _ = visit(there.url + "/", settings())
        assert len(shown(document)) == 3 and "done" in document.find("span")[-1]
        assert "hush-8017" not in str(document.elements)


def check_it_fits_a_phone(run):
    """Nothing is wider than a narrow window."""
    with serving(run, app=driven(ASKS)) as there:
        document, _ = visit(there.url + "/", settings(p="long" * 200), ["--window-size=390,2000"])
        wide = next(a["data-wide"] for tag, a, _ in document.elements if tag == "body")
        assert int(wide) <= 0


def check_the_page_has_nothing_inline():
    text = (Path(__file__).parents[1] / "serve/page.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script>|\son\w+=|style=", text)
    assert "http" not in text and "innerHTML" not in (
        Path(__file__).parents[1] / "serve/page.js").read_text(encoding="utf-8")
