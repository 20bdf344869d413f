"""The map of a run as plain plotly JSON, and the labels of its marks, which charts.js places where
there is room.

Colours are names of CSS variables ("--accent"): the page puts in what the reader's light or dark
scheme says. All text that plotly shows is escaped, since it reads a subset of HTML.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from steerloop.report.text import interval

Figure = dict[str, Any]
LABELS = {
    "matched": "steering, nearest shift",
    "calibrated": "steering, iso-KL dose",
    "prompted": "persona prompt",
    "nll": "plain distillation",
    "nll_turned": "distillation, same shift",
    "healed_as_nll": "student at distillation's shift",
    "taught": "distilled persona prompt",
    "taught_turned": "distilled prompt, same shift",
    "healed_as_taught": "student at the distilled prompt's shift",
    "healed_as_prompted": "student at the prompt's shift",
}
SYMBOLS = ("diamond", "square", "triangle-up", "cross", "star", "triangle-down", "hexagon") * 3
STEPS = ("base", "steered", "healed")
FONT = 'ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


class Titles(NamedTuple):
    """Of the map: its axes, and what a reader should know."""

    x: str
    y: str
    note: str


def label(state: str) -> str:
    """What a measured state beside the loop is called on the page."""
    return LABELS.get(state, state.replace("_", " "))


def hover(title: str, event: dict[str, Any], base: dict[str, Any], loop: Sequence[str] = ()
          ) -> str:
    """A state's numbers as the lines of a hover box; `loop` says how its round went."""
    now, was = event["measures"], base["measures"]
    lines = [f"<b>{escape(title)}</b>"]
    lines += [f"{escape(k)} {interval(x)} nats" for k, x in event["moved"].items()]
    lines += [f"score {interval(event['score'])}"] if event["score"] else []
    lines += [f"coherence {now['coherence']:.3f}"] if "coherence" in now else []
    lines += [f"mundane ppl × {now['ppl_mundane'] / was['ppl_mundane']:.3f}"]
    lines += [f"{escape(k.replace('_', ' '))} {now[k]:.3f}"
              for k in ("opening_mass", "sentence_validity") if k in now]
    return "<br>".join(lines + ([f"dose {event['dose']:.2f}"] if event["dose"] else []) + [*loop])


def bars(values: list[list[float]], colour: str) -> Figure:
    """Error bars of [estimate, low, high] rows."""
    return {"type": "data", "array": [high - x for x, _, high in values],
            "arrayminus": [x - low for x, low, _ in values], "color": colour, "thickness": 1,
            "width": 3}


def points(name: str, events: list[dict[str, Any]], hovers: list[str], colour: str, soft: str,
           **how: Any) -> Figure:
    """States as one trace of the map, with intervals both ways."""
    xs, ys = ([e["place"][i] for e in events] for i in (0, 1))
    return {"type": "scatter", "name": escape(name), "x": [x[0] for x in xs],
            "y": [y[0] for y in ys], "error_x": bars(xs, soft), "error_y": bars(ys, soft),
            "hovertext": hovers, "hoverinfo": "text", "cliponaxis": False, "mode": "markers",
            "marker": {"size": 11, "color": colour}} | how


def tag(text: str, event: dict[str, Any], colour: str) -> dict[str, Any]:
    """The label of a state: what it says, and where its mark is."""
    return {"text": escape(text), "x": event["place"][0][0], "y": event["place"][1][0],
            "colour": colour}


def base_layout(titles: Titles) -> Figure:
    """Axes, colours and letters of the map."""
    note = {"text": escape(titles.note), "xref": "paper", "yref": "paper", "x": 0, "y": 1,
            "xanchor": "left", "yanchor": "top", "showarrow": False,
            "font": {"size": 12, "color": "--muted"}}
    return {"paper_bgcolor": "--paper", "plot_bgcolor": "--paper", "hovermode": "closest",
            "font": {"family": FONT, "size": 12, "color": "--muted"}, "dragmode": False,
            "margin": {"l": 56, "r": 16, "t": 12, "b": 44}, "annotations": [note],
            "xaxis": axis_style(titles.x), "yaxis": axis_style(titles.y),
            "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "align": "left",
                           "font": {"family": FONT, "size": 12, "color": "--ink"}},
            "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top",
                       "font": {"size": 12}}}


def axis_style(title: str) -> Figure:
    """One axis: a quiet grid, a zero line that can be seen."""
    return {"title": {"text": escape(title), "standoff": 8}, "gridcolor": "--grid",
            "zeroline": True, "zerolinecolor": "--line", "zerolinewidth": 1, "ticks": "",
            "automargin": True}


def went(sample: dict[str, Any], heal: dict[str, Any], drift: dict[str, Any]) -> list[str]:
    """How a round went, by its records, as lines of a hover box."""
    said = [("c* {c_star:.2f}, sampled at κ = {kappa:.2f} of it", sample),
            ("loss {nll:.3f} nats per token, operating KL {operating_kl:.3f}", heal),
            ("{active:.0%} of rows over τ = {tau:.3g}", heal),
            ("KL to base {kl_base:.3f} nats per token", drift)]
    return [text.format(**record) for text, record in said if record]


def map_figure(measured: list[dict[str, Any]], titles: Titles,
               rounds: dict[int, list[str]] | None = None) -> Figure:
    """Where states stand (their `place`: x and y, each [estimate, low, high]): one node per round
    from base, steered points faint, everything else that was measured as a mark of its own; and
    their `labels`. Without a state there is the note of `titles` alone. `rounds`: how each went."""
    if not measured:
        return {"data": [], "layout": base_layout(titles), "labels": []}
    base = measured[0]
    healed = [e for e in measured if e["state"] == "healed"]
    steered = [e for e in measured if e["state"] == "steered"]
    others = list({(e["state"], e.get("folder")): e for e in measured
                   if e["state"] not in STEPS}.values())  # of each the last one, after more rounds

    def told(events: list[dict[str, Any]], word: str) -> list[str]:
        return [hover(f"round {e['round'] + 1}, {word}", e, base,
                      (rounds or {}).get(e["round"], ())) for e in events]

    traces = [*tethers(steered, healed), points(
        "base: the untouched model", [base], [hover("base", base, base)], "--accent",
        "--accent-soft", marker={"size": 9, "symbol": "circle-open", "color": "--accent"})]
    labels = [tag("base", base, "--ink"), *(tag(str(e["round"] + 1), e, "--ink") for e in healed)]
    if healed:
        way = [base, *healed]
        traces.append({"type": "scatter", "mode": "lines", "hoverinfo": "skip", "meta": "path",
                       "showlegend": False, "line": {"color": "--accent", "width": 2},
                       "x": [e["place"][0][0] for e in way], "y": [e["place"][1][0] for e in way]})
        traces.append(points("healed: the student after each round", healed,
                             told(healed, "healed"), "--accent", "--accent-soft"))
    if steered:
        traces.append(points(
            "steered: with the vector applied", steered, told(steered, "steered"), "--warm",
            "--warm-soft", opacity=0.75,
            marker={"size": 8, "symbol": "circle-open", "color": "--warm"}))
        labels += [tag(str(e["round"] + 1), e, "--warm") for e in steered]
    for e, symbol in zip(others, SYMBOLS, strict=False):
        name = label(e["state"])
        traces.append(points(name, [e], [hover(name, e, base)], "--muted", "--line",
                             showlegend=False,
                             marker={"size": 10, "symbol": symbol, "color": "--muted"}))
        labels.append(tag(name, e, "--muted"))
    return {"data": traces, "layout": base_layout(titles), "labels": labels}


def tethers(steered: list[dict[str, Any]], healed: list[dict[str, Any]]) -> list[Figure]:
    """A dotted line from each steered state to the student that learned from it."""
    students = {e["round"]: e for e in healed}
    ends = [(e["place"], students[e["round"]]["place"]) for e in steered if e["round"] in students]
    if not ends:
        return []
    return [{"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
             "x": [v for a, b in ends for v in (a[0][0], b[0][0], None)],
             "y": [v for a, b in ends for v in (a[1][0], b[1][0], None)],
             "line": {"color": "--warm-soft", "width": 1, "dash": "dot"}}]
