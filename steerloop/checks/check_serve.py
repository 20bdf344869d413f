"""A server of a run: what clients of the protocol get is what the library says, whoever else asks;
and nothing that is sent ends it."""

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
import torch

from steerloop.checks.exported import made_run
from steerloop.checks.served import WAIT, Client, serving
from steerloop.checks.small import small_config
from steerloop.export.student import open_student, read_vector
from steerloop.sample import jobs, sample
from steerloop.serve.app import BODY
from steerloop.serve.batch import Flight
from steerloop.serve.spoken import Spoken

C_STAR = 0.5  # of a made run
TOKENS = 24
ASK = {"model": "student", "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    cfg = small_config(folders(), quant="none", max_new_tokens=TOKENS)
    return made_run(tmp_path_factory.mktemp("serve"), cfg)


@pytest.fixture(scope="module")
def there(run):
    with serving(run, "--waiting", "24") as client:
        yield client


@pytest.fixture
def client(there):
    return openai.OpenAI(base_url=f"{there.url}/v1", api_key="none", max_retries=0, timeout=WAIT)


@pytest.fixture(scope="module")
def library(run):
    """What `sample` says to a prompt: gates, dose (multiples of c*), seed, which of several."""
    student = open_student(run, "3")
    vector = read_vector(run, 1, torch.device("cpu"))

    def say(prompt: str, gates: list[float], dose: float, seed: int, copy: int = 0,
            cfg=student.cfg, **fields) -> list[int]:
        table = jobs(student.model, [prompt], [C_STAR * dose], copy)
        with torch.no_grad(), student.model.gates(torch.tensor(gates).float()):
            told = sample(student.model, table, vector if dose else {},
                          replace(cfg, seed=seed, **fields), "serve")
        return told["completion_ids"].to_list()[0]

    say.model = student.model
    return say


def said(library, ids):
    """The text of an answer."""
    return library.model.to_text([x for x in ids if x not in library.model.stop_ids])


def check_models_are_base_student_and_every_round(client):
    models = {x.id: x.gates for x in client.models.list()}
    assert models == {"base": [0, 0, 0], "student": [1, 1, 0], "round-1": [1, 0, 0],
                      "round-2": [1, 1, 0], "round-3": [1, 1, 1]}
    assert client.models.retrieve("round-2").gates == [1, 1, 0]


def check_ten_clients_at_once_get_what_the_library_says(client, library):
    """Each under other gates and another dose, some as a stream, some twice at once."""
    rng = random.Random(0)
    wanted = []
    for i in range(10):
        gates = [rng.choice([0.0, 1.0, 0.5, -1.0]) for _ in range(3)]
        wanted.append((f"Why {i % 3}?", gates, rng.choice([0.0, 0.5, 1.0]), i, i % 2 == 0))

    def ask(what):
        prompt, gates, dose, seed, stream = what
        found = client.chat.completions.create(
            model="student", messages=[{"role": "user", "content": prompt}], seed=seed, n=2,
            stream=stream, extra_body={"gates": gates, "dose": dose})
        if not stream:
            return [x.message.content for x in found.choices]
        texts = ["", ""]
        for chunk in found:
            for x in chunk.choices:
                texts[x.index] += x.delta.content or ""
        return texts

    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(ask, wanted))
    for (prompt, gates, dose, seed, _), texts in zip(wanted, answers, strict=True):
        for copy, text in enumerate(texts):
            assert text == said(library, library(prompt, gates, dose, seed, copy))


def check_ways_of_a_request_are_its_own(client, library):
    ways = {"temperature": 0.6, "top_p": 0.7, "max_tokens": 9}
    found = client.chat.completions.create(**ASK, **ways, seed=3, extra_body={"top_k": 7})
    (choice,) = found.choices
    ids = library("Why?", [1, 1, 0], 0, 3, temperature=0.6, top_p=0.7, max_new_tokens=9, top_k=7)
    assert choice.message.content == said(library, ids)
    assert found.usage.completion_tokens == len(ids)
    assert found.usage.prompt_tokens == len(library.model.render("Why?"))
    assert choice.finish_reason == ("stop" if ids[-1] in library.model.stop_ids else "length")
    assert found.steerloop == {"gates": [1, 1, 0], "dose": 0, "seed": 3}


def check_without_a_seed_the_one_that_was_drawn_is_said(client):
    first = client.chat.completions.create(**ASK)
    again = client.chat.completions.create(**ASK, seed=first.steerloop["seed"])
    other = client.chat.completions.create(**ASK)
    texts = [x.choices[0].message.content for x in (first, again, other)]
    assert texts[0] == texts[1] and other.steerloop["seed"] != first.steerloop["seed"]


def check_a_conversation_is_rendered_whole(client, library):
    turns = [("system", "You."), ("user", "Why? "), ("assistant", "So.\n"), ("user", "And?")]
    turns += [("assistant", " So.\n"), ("user", "And? ")] * 30  # in time that does not double each
    found = client.completions.create(
        model="base", prompt=library.model.conversation(turns), temperature=0, max_tokens=8)
    talked = client.chat.completions.create(
        model="base", messages=[{"role": r, "content": x} for r, x in turns], temperature=0,
        max_tokens=8)
    assert talked.choices[0].message.content == found.choices[0].text
    assert talked.usage.prompt_tokens == found.usage.prompt_tokens


def check_log_probabilities_by_the_protocol(client, library):
    """Of a chat, whole and streamed, and of a completion with its prompt."""
    model = library.model
    found = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3, seed=1)
    tokens = found.choices[0].logprobs.content
    ids = library("Why?", [1, 1, 0], 0, 1)
    prompt = model.render("Why?")
    with torch.no_grad(), model.gates(torch.tensor([1.0, 1, 0])):
        logp = model.hf(input_ids=torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
    assert [x.token for x in tokens] == [model.to_text([i], special=True) for i in ids]
    for at, (token, i) in enumerate(zip(tokens, ids, strict=True)):
        row = logp[len(prompt) - 1 + at]
        assert abs(token.logprob - row[i].item()) < 1e-4
        best = row.topk(3).values.tolist()
        assert [x.logprob for x in token.top_logprobs] == pytest.approx(best, abs=1e-4)
    streamed = []
    for chunk in client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3, seed=1,
                                                stream=True):
        streamed += [t for x in chunk.choices for t in x.logprobs.content]
    assert [x.token for x in streamed] == [x.token for x in tokens]
    assert [x.logprob for x in streamed] == pytest.approx([x.logprob for x in tokens], abs=1e-4)
    echoed = client.completions.create(model="student", prompt=[prompt, prompt[:4]], max_tokens=1,
                                       echo=True, logprobs=1, temperature=0)
    for choice, asked in zip(echoed.choices, (prompt, prompt[:4]), strict=True):
        words = [model.to_text([i], special=True) for i in asked]
        assert choice.logprobs.tokens[:-1] == words
        own = [logp[at - 1, i].item() for at, i in enumerate(asked) if at]
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(own, abs=1e-4)
    only = client.completions.create(model="student", prompt=prompt, max_tokens=0, echo=True,
                                     logprobs=0)
    assert len(only.choices[0].logprobs.tokens) == len(prompt)
    assert only.usage.completion_tokens == 0


def check_an_answer_is_sent_back_as_it_came(client):
    """With the fields of the protocol that say nothing."""
    first = client.chat.completions.create(**ASK, max_tokens=2, seed=1)
    turns = [*ASK["messages"], first.choices[0].message.model_dump(),
             {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model="base", messages=turns, max_tokens=2).choices


def check_what_is_no_number_is_an_error_of_the_protocol(run):
    """Also of a prompt that is only read."""
    with serving(run) as there:
        head = there.served.engine.model.head
        there.served.engine.model.head = lambda h: head(h) * float("nan")
        for ask in ({"max_tokens": 0, "echo": True, "logprobs": 1}, {"max_tokens": 4}):
            status, answer = there.send("/v1/completions", {"model": "base", "prompt": "abc"} | ask)
            assert status == 500 and "take less" in answer["error"]["message"]
        there.served.engine.model.head = head
        alive(there)


def check_a_stream_tells_its_usage_where_that_is_asked(client):
    chunks = list(client.chat.completions.create(
        **ASK, seed=1, stream=True, stream_options={"include_usage": True}))
    whole = client.chat.completions.create(**ASK, seed=1)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {x.id for x in chunks} == {chunks[0].id}
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def check_stops_end_a_text_before_them(client, library):
    text = said(library, library("Why?", [1, 1, 0], 0, 5))
    assert len(text) > 6
    for stop in (text[3:5], text[4:6], text[-1:]):
        for stream in (False, True):
            found = client.chat.completions.create(**ASK, seed=5, stop=[stop, "never so"],
                                                   stream=stream)
            parts = found if stream else [found]
            got = "".join((x.choices[0].delta if stream else x.choices[0].message).content or ""
                          for x in parts)
            assert got == text[: text.index(stop)]


BAD = {
    "no JSON": (b"{", 400, None),
    "no object": ([], 400, None),
    "deep": (b"[" * 100_000, 400, None),
    "no model": ({"messages": ASK["messages"]}, 404, "model"),
    "another model": (ASK | {"model": "round-4"}, 404, "model"),
    "unknown field": (ASK | {"doze": 1}, 400, "doze"),
    "unsupported": (ASK | {"tools": [{}]}, 400, "tools"),
    "penalty": (ASK | {"presence_penalty": 1}, 400, "presence_penalty"),
    "no messages": ({"model": "base"}, 400, "messages"),
    "empty": (ASK | {"messages": []}, 400, "messages"),
    "role": (ASK | {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    "roles": (ASK | {"messages": ASK["messages"] * 2}, 400, "messages"),
    "assistant last": (ASK | {"messages": [*ASK["messages"], {"role": "assistant",
                                                             "content": "x"}]}, 400, "messages"),
    "content": (ASK | {"messages": [{"role": "user", "content": 1}]}, 400, "messages[0].content"),
    "image": (ASK | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
              "messages[0].content"),
    "surrogate": (b'{"model":"base","messages":[{"role":"user","content":"\\ud800"}]}', 400,
                  "messages[0].content"),
    "hot": (ASK | {"temperature": 3}, 400, "temperature"),
    "NaN": (b'{"model":"base","temperature":NaN}', 400, "temperature"),
    "huge": (b'{"model":"base","max_tokens":1' + b"0" * 5000 + b"}", 400, None),
    "truth": (ASK | {"n": True}, 400, "n"),
    "many": (ASK | {"n": 10**6}, 400, "n"),
    "long": (ASK | {"max_tokens": 10**4}, 400, "max_tokens"),
    "too long": (ASK | {"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
    "stops": (ASK | {"stop": ["a"] * 5}, 400, "stop"),
    "empty stop": (ASK | {"stop": ""}, 400, "stop"),
    "gates": (ASK | {"gates": [1]* 2}, 400, "gates"),
    "loud": (ASK | {"gates": 1e9}, 400, "gates"),
    "both": (ASK | {"gates": 1, "round": 1}, 400, "round"),
    "round": (ASK | {"round": 4}, 400, "round"),
    "dose": (ASK | {"dose": "much"}, 400, "dose"),
    "top": (ASK | {"top_logprobs": 2}, 400, "top_logprobs"),
    "seed": (ASK | {"seed": 1.5}, 400, "seed"),
    "name": (b'{"model":"base","\\ud800":1}', 400, "\ufffd"),
    "rows": (ASK | {"n": 32}, 400, "n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def check_what_cannot_be_served_is_refused_by_the_protocol(name, there):
    body, status, param = BAD[name]
    got, answer = there.send("/v1/chat/completions", body)
    assert got == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param and answer["error"]["message"].isprintable()


def check_other_requests_are_refused_too(there):
    chat = "/v1/chat/completions"
    cases = [("/nothing", None, "GET", 404), (chat, None, "GET", 405),
             ("/v1/models", {}, "PUT", 405), (chat, b"x" * (BODY + 1), "POST", 413),
             ("/v1/completions", {"model": "base", "prompt": [[999]]}, "POST", 400),
             ("/v1/completions", {"model": "base", "prompt": [[10**30]]}, "POST", 400),
             ("/v1/completions", {"model": "base", "prompt": []}, "POST", 400),
             ("/v1/completions", {"model": "base", "prompt": {}}, "POST", 400)]
    for path, body, method, status in cases:
        got, answer = there.send(path, body, method)
        assert got == status and answer["error"]["message"], (path, got, answer)
    assert there.send(chat, json.dumps(ASK).encode(), content_type="text/plain")[0] == 415
    assert there.send("/health", host="evil.example")[0] == 400


def check_errors_reach_the_clients_own_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="take one of base, student"):
        client.chat.completions.create(**ASK | {"model": "gpt"})
    with pytest.raises(openai.BadRequestError, match="shorter prompt, or less max_tokens"):
        client.completions.create(model="base", prompt="x" * 4000, max_tokens=200)


def noise(rng: random.Random) -> bytes:
    """A body that is wrong somewhere, most often."""
    odd = [None, True, -1, 0, 1e308, -0.5, "", "x", "\ud800", [], [[]], {}, {"a": 1}, [1, "a"],
           10**40, "student", ASK["messages"], [{"role": "user"}], "\x00", "é" * 300]
    body = dict(ASK) | {"max_tokens": rng.choice([0, 1, 2])}
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice([*body, "prompt", "gates", "dose", "round", "n", "stop", "stream", "seed",
                           "logprobs", "top_logprobs", "top_p", "stream_options", "echo", "zz"])
        body[name] = rng.choice(odd)
    raw = json.dumps(body).encode()
    if rng.random() < 0.3:
        at = rng.randrange(len(raw))
        raw = raw[:at] + rng.randbytes(rng.randrange(4)) + raw[at + rng.randrange(4):]
    return raw


def fuzz(there: Client, count: int) -> None:
    """Bodies that are wrong; then the server is as it was."""
    rng = random.Random(7)
    statuses: dict[int, int] = {}
    for _ in range(count):
        path = rng.choice(["/v1/chat/completions", "/v1/completions"])
        status, answer = there.send(path, noise(rng))
        statuses[status] = statuses.get(status, 0) + 1
        assert status == 200 or answer["error"]["message"], (status, answer)
    assert set(statuses) <= {200, 400, 404}, statuses
    assert statuses[400] > count / 2
    alive(there)


def alive(there: Client) -> None:
    """It answers, nobody is in flight, its thread lives."""
    there.until(0)
    status, answer = there.send("/v1/chat/completions", ASK | {"seed": 1})
    assert status == 200 and answer["choices"]
    there.until(0)
    assert there.send("/health")[1] == {"alive": True, "rows": 0, "waiting": 0}


def check_malformed_bodies_do_not_stop_it(there):
    fuzz(there, 200)


@pytest.mark.long
def check_thousands_of_malformed_bodies_do_not_stop_it(there):
    fuzz(there, 2500)


def check_clients_that_stall_or_go_away_stop_nobody(run):
    """Slow readers, half a request, half-closed streams, connections that are reset."""
    ask = ASK | {"max_tokens": 900, "stream": True, "temperature": 0}
    with serving(run, "--context", "1024", "--rows", "8") as there:
        there.served.engine.model.stop_ids[:] = [0]  # so that answers are long
        slow = [there.socket(ask) for _ in range(2)]
        gone = [there.socket(ask | {"stream": stream}) for stream in (True, False)]
        half = there.socket(ask)
        half.shutdown(socket.SHUT_WR)
        stalled = socket.create_connection(("127.0.0.1", there.port))
        stalled.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-len")
        body = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n" \
               b"content-type: application/json\r\n\r\n{"
        waits = socket.create_connection(("127.0.0.1", there.port))
        waits.sendall(body)
        there.until(4)  # a client that closed its half is gone, as far as the server can tell
        for x in gone:
            x.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            x.close()
        there.until(2)
        status, answer = there.send("/v1/chat/completions", ASK | {"seed": 1})
        assert status == 200 and len(answer["choices"]) == 1
        for x in (*slow, half, stalled, waits):
            x.close()
        alive(there)


def check_the_queue_has_a_bound_and_rows_are_freed(run):
    ask = ASK | {"max_tokens": 900, "stream": True, "temperature": 0}
    with serving(run, "--context", "1024", "--rows", "2", "--waiting", "3") as there:
        there.served.engine.model.stop_ids[:] = [0]
        first = [there.socket(ask) for _ in range(2)]
        there.until(2)
        flight = there.served.engine.flight
        flying = [*flight.seats]
        rest = [there.socket(ask) for _ in range(3)]
        there.until(2, 3)
        status, answer = there.send("/v1/chat/completions", ASK)
        assert status == 429 and answer["error"]["code"] == "queue_full"
        for x in rest:  # before they had a row
            x.close()
        there.until(2)
        assert flight.seats == flying
        late = there.socket(ask | {"max_tokens": 3})
        there.until(2, 1)
        first[0].close()
        assert b"[DONE]" in read(late)
        assert sum(x in flight.seats for x in flying) == 1
        first[1].close()
        alive(there)


def read(there: socket.socket) -> bytes:
    """All that comes until the end of a stream."""
    got, end = b"", time.monotonic() + WAIT
    while b"[DONE]" not in got and time.monotonic() < end and (part := there.recv(65536)):
        got += part
    return got


@pytest.mark.parametrize("where", ["prompts", "join", "step"])
def check_a_step_that_fails_ends_its_rows_and_no_more(where, run, monkeypatch):
    """Also while others are in flight; whoever waits hears of it."""
    with serving(run, "--context", "1024", "--rows", "8") as there:
        there.served.engine.model.stop_ids[:] = [0]
        works = getattr(Flight, where)

        def fails(*args):
            monkeypatch.setattr(Flight, where, works)
            raise RuntimeError("planted")

        other = there.socket(ASK | {"max_tokens": 900, "stream": True, "temperature": 0})
        there.until(1)
        monkeypatch.setattr(Flight, where, fails)
        status, answer = there.send("/v1/chat/completions", ASK | {"temperature": 0})
        planted = status == 500 and "planted" in answer["error"]["message"]
        if where == "prompts":  # the other is none the worse
            assert planted and sum(there.served.engine.load) == 1
            other.close()
        elif where == "join":
            assert planted and b"planted" in read(other)
        else:  # it befell whoever was in flight then
            assert planted or b"planted" in read(other)
            other.close()
        there.until(0)
        alive(there)


def check_rows_are_admitted_by_what_they_may_come_to(run):
    """Not by what they are as yet."""
    with serving(run, "--context", "1024") as there:
        engine = there.served.engine
        engine.model.stop_ids[:] = [0]
        assert engine.room == 16 * (256 + TOKENS)
        asks = [ASK | {"max_tokens": 900, "stream": True, "temperature": 0}] * 6
        sockets = [there.socket(x) for x in asks]
        longest = len(engine.model.render("Why?")) + 900
        fit = engine.room // longest
        assert 1 < fit < len(asks)
        there.until(fit, len(asks) - fit)
        for x in sockets:
            x.close()
        there.until(0)


def check_others_need_the_key(run):
    with pytest.raises(Exception, match="give a --key"), serving(run, "--host", "0.0.0.0"):
        pass
    with serving(run, "--host", "0.0.0.0", "--key", "secret") as there:
        for path in ("/v1/models", "/v1/models/base"):
            assert there.send(path)[0] == 401
            assert there.send(path, authorization="Bearer other")[0] == 401
            assert there.send(path, authorization="Bearer secret")[0] == 200
        assert there.send("/v1/chat/completions", ASK)[0] == 401
        assert there.send("/", host="elsewhere.example")[0] == 200


def check_it_ends_while_somebody_listens(run):
    """And its rows say so."""
    with serving(run, "--context", "1024") as there:
        there.served.engine.model.stop_ids[:] = [0]
        late = there.socket(ASK | {"max_tokens": 900, "stream": True, "temperature": 0})
        there.until(1)
        there.served.engine.end()
        assert b'"error"' in read(late)


def check_pieces_make_the_text(library):
    """Half characters wait, a stop that only begins is given out after all."""
    to_text = library.model.to_text
    rng = random.Random(2)
    for _ in range(200):
        text = "".join(rng.choice("aé€😀 \n") for _ in range(rng.randrange(12)))
        ids = library.model.to_ids(text)
        stops = [x for x in (text[2:4], "zz") if x] * (rng.random() < 0.5)
        spoken, got, met = Spoken(to_text, stops), "", False
        for at, x in enumerate(ids):
            new, met = spoken.add([x], at + 1 == len(ids))
            got += new
            assert "\ufffd" not in new
            if met:
                break
        cut = min((at for x in stops if (at := text.find(x)) >= 0), default=None)
        assert (got, met) == (text[:cut], cut is not None)


def check_bytes_that_are_no_text_are_given_out_all_the_same(library):
    """Soon, and as the whole would be read."""
    rng = random.Random(4)
    for _ in range(100):
        ids = [rng.randrange(6, 262) for _ in range(60)]
        spoken, got = Spoken(library.model.to_text), ""
        for at, x in enumerate(ids, 1):
            got += spoken.add([x], at == len(ids))[0]
            assert len(spoken.ids) - spoken.end <= 8
        assert got == spoken.whole() == library.model.to_text(ids)
