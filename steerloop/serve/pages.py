"""The pages of the served run, as they lie in its folder, under /run/."""

import base64
import hmac
from pathlib import Path

from plotly.offline import get_plotlyjs
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from steerloop.report.pages.frame import digest, scripts
from steerloop.runfolder import layout

OURS = " ".join(f"'sha256-{digest(x)}'" for x in [get_plotlyjs(), *scripts()])
SAFE = {  # a page that somebody else wrote runs no script of its own, whatever it says itself
    "Content-Security-Policy": f"default-src 'none'; script-src 'self' {OURS}; "
                               "img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}
ASK = {"WWW-Authenticate": 'Basic realm="the key of this server, as the password"'}
ALONE = ("This server has the pages of one run. The index of all runs lies beside the run folders: "
         "open its file.")


def given(request: Request) -> str:
    """The key that came along: of a program as Bearer, of a browser as the password."""
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return said.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(said, validate=True).decode().partition(":")[2]
    except ValueError:  # no base64 of UTF-8
        return ""


def run_pages(run: Path, key: str) -> list[Route]:
    """Routes to the pages of a run and to the chart script that they load; with a `key` for those
    alone who have it."""
    def allowed(request: Request) -> bool:
        return not key or hmac.compare_digest(given(request).encode(), key.encode())

    async def page(request: Request) -> Response:
        if not allowed(request):
            return PlainTextResponse("the key of this server, please", 401, ASK)
        name = request.path_params["name"]
        path = run / name
        if name not in layout.PAGES or not path.is_file() or path.is_symlink():
            there = [x for x in layout.PAGES if (run / x).is_file()]
            return PlainTextResponse(f"there are {', '.join(there) or 'no pages yet'}", 404)
        return FileResponse(path, media_type="text/html", headers=SAFE)

    async def charts(request: Request) -> Response:
        return Response(get_plotlyjs(), media_type="text/javascript", headers=SAFE)

    async def index(request: Request) -> Response:
        return PlainTextResponse(ALONE, 404)

    async def first(request: Request) -> Response:
        return RedirectResponse(f"/run/{layout.REPORT}")

    script = layout.SCRIPT.format("{version}")  # pages of another version ask for theirs
    return [Route("/run", first), Route("/run/", first), Route("/run/{name}", page),
            Route(f"/{script}", charts), Route(f"/{layout.INDEX}", index)]
