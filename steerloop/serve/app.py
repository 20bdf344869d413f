"""The HTTP side: routes, limits, keys; every request is answered or refused here."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from steerloop.kernels.decode import draws
from steerloop.serve.engine import Engine, Full, Piece, Row
from steerloop.serve.pages import run_pages
from steerloop.serve.protocol import Ask, Refused, States, read_ask
from steerloop.serve.replies import Reply
from steerloop.serve.spoken import Spoken

BODY = 4 * 2**20  # bytes of a request's body
SLOW = 30.0  # seconds in which it has to be there
PAGES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}  # fmt: skip


class Served(NamedTuple):
    """What requests are answered from. `c_star`: the dose 1, in units of the vector; `context`:
    most tokens of a prompt and its answer; `key`: '' where everybody may ask."""

    engine: Engine
    states: States
    c_star: float
    context: int
    key: str


def draws_of(ask: Ask, choice: int) -> Float[Tensor, "m"]:
    """Those of `sample` for the only prompt of a table of jobs, at its only dose, for the copy
    `choice`, with the seed of the request."""
    return draws(f"{ask.ways.seed}|serve|0|0|{choice}", ask.ways.tokens)


def rows(ask: Ask, served: Served, hear: Callable[[Piece], None]) -> list[Row]:
    """The rows of a request, choices of a prompt after each other."""
    how, model, found = ask.ways, served.states.student.model, []
    for place, prompt in enumerate(ask.prompts):
        for copy in range(how.n):
            found.append(Row(
                prompt=prompt, gates=ask.dial.gates, dose=served.c_star * ask.dial.dose,
                draws=draws_of(ask, copy), temperature=how.temperature, k=how.k, p=how.p,
                top=how.top, prompt_top=how.top if ask.echo else None,
                choice=place * how.n + copy, hear=hear, streams=ask.stream,
                spoken=Spoken(model.to_text, how.stops),
            ))
    return found


async def body_of(request: Request) -> bytes:
    """The body of a request, if it comes in time and is not too long."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused("send JSON, with content-type application/json", status=415)
    parts, size = [], 0
    try:
        async with asyncio.timeout(SLOW):
            async for part in request.stream():
                size += len(part)
                if size > BODY:
                    raise Refused(f"the body is longer than {BODY} bytes: a shorter prompt",
                                  code="too_long", status=413)
                parts.append(part)
    except TimeoutError as e:
        raise Refused(f"the body was not there after {SLOW:g} s", status=408) from e
    return b"".join(parts)


class Asked:
    """A request on its way, its rows in the queue; what is left of them is dropped when the block
    ends, whoever ends it. Raises Refused where the queue is full."""

    def __init__(self, ask: Ask, served: Served) -> None:
        loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def hear(piece: Piece) -> None:  # in the engine's thread
            with suppress(RuntimeError):  # the loop is closed: nobody hears
                loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        self.engine, self.rows = served.engine, rows(ask, served, hear)
        try:
            self.engine.ask(self.rows)
        except Full as e:
            raise Refused(f"too much is asked at once ({e}): try again soon", None,
                          "queue_full", 429, "rate_limit_error") from e

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *end: Any) -> None:
        if self.rows:
            self.engine.drop(self.rows)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces until every row ended. Raises Refused for one that failed."""
        while self.rows:
            piece = await self.pieces.get()
            if piece.finish == "error":
                raise Refused(piece.text, None, "failed", 500, "server_error")
            if piece.finish:
                self.rows = [x for x in self.rows if x.choice != piece.choice]
            yield piece


async def hung_up(request: Request) -> None:
    """Until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def whole(request: Request, ask: Ask, served: Served) -> Response:
    """An answer in one piece; its rows are freed when the client goes."""
    async def collect() -> dict[str, Any]:
        with Asked(ask, served) as asked:
            pieces = [x async for x in asked]
        pieces.sort(key=lambda x: x.choice)
        return Reply(ask, served.states.student.model).whole(pieces)

    tasks = [asyncio.create_task(x) for x in (collect(), hung_up(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return JSONResponse(tasks[0].result())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def chunks(ask: Ask, served: Served, asked: Asked) -> AsyncIterator[str]:
    """A stream of server-sent events."""
    reply, seen = Reply(ask, served.states.student.model), set()
    try:
        async for piece in asked:
            yield event(reply.chunk(piece, piece.choice not in seen))
            seen.add(piece.choice)
        if ask.usage:
            yield event(reply.last())
    except Refused as e:
        yield event({"error": e.error})
    yield "data: [DONE]\n\n"


class Stream(StreamingResponse):
    """Whose rows are dropped when it ends, also by a client that went away."""

    def __init__(self, ask: Ask, served: Served) -> None:
        self.asked = Asked(ask, served)
        super().__init__(chunks(ask, served, self.asked), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store"})

    async def __call__(self, *args: Any) -> None:
        with self.asked:
            await super().__call__(*args)


def event(found: dict[str, Any]) -> str:
    """As a server-sent event."""
    return f"data: {json.dumps(found, ensure_ascii=False, separators=(',', ':'))}\n\n"


def refused(e: Refused) -> Response:
    """The protocol's own error object."""
    return JSONResponse({"error": e.error}, e.status)


def allowed(request: Request, served: Served) -> None:
    """Raises Refused for a request without the key."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), served.key.encode())
    if served.key and not (right and scheme.lower() == "bearer"):
        raise Refused("send the key of this server, as the Authorization: Bearer that clients "
                      "make of their api_key", None, "invalid_api_key", 401)


def application(served: Served, hosts: list[str]) -> Starlette:
    """The server as an ASGI application; `hosts` are the names it goes by."""
    states = served.states

    def guarded(serve: Callable[[Request], Awaitable[Response]]) -> Callable[..., Any]:
        async def run(request: Request) -> Response:
            try:
                allowed(request, served)
                return await serve(request)
            except Refused as e:
                return refused(e)
            except ClientDisconnect:
                return Response(status_code=499)

        return run

    def completions(chat: bool) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            raw = await body_of(request)
            ask = await asyncio.to_thread(read_ask, raw, chat, states, served.context,
                                          served.engine.waiting)
            if not ask.stream:
                return await whole(request, ask, served)
            return Stream(ask, served)

        return run

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "steerloop",
                "gates": states.dial({"model": name})[1].gates.tolist()[: states.student.rounds]}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card(x) for x in states.rounds],
                             "run": states.student.run.name, "c_star": served.c_star})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in states.rounds:
            raise Refused(f"there is no model {name!r:.80}", "model", "model_not_found", 404)
        return JSONResponse(card(name))

    async def health(request: Request) -> Response:
        in_flight, waiting = served.engine.load
        fine = served.engine.is_alive()
        return JSONResponse({"alive": fine, "rows": in_flight, "waiting": waiting},
                            200 if fine else 503)

    async def page(request: Request) -> Response:
        name, kind = PAGES[request.url.path]
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers=SAFE)

    async def other(request: Request, e: Exception) -> Response:
        status = e.status_code if isinstance(e, HTTPException) else 500
        said = f"{request.method} {request.url.path}: {getattr(e, 'detail', 'failed')}"
        there = ("/v1/models, /v1/chat/completions, /v1/completions, a page at / and those of the "
                 "run at /run")
        return refused(Refused(f"{said}; there are {there}", status=status))

    routes = [
        Route("/v1/models", guarded(models)), Route("/v1/models/{name}", guarded(model)),
        Route("/v1/chat/completions", guarded(completions(True)), methods=["POST"]),
        Route("/v1/completions", guarded(completions(False)), methods=["POST"]),
        Route("/health", health), *(Route(x, page) for x in PAGES),
        *run_pages(states.student.run, served.key),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: other, Exception: other},
                     middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])
