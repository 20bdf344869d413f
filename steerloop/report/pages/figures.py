"""The two figures of a run as plain plotly JSON: the map, and what each round cost.

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
SPOTS = {  # where a label can stand, as its lower left corner in widths and heights of it
    "top center": (-0.5, 0.4), "bottom center": (-0.5, -1.4), "middle right": (0.1, -0.5),
    "middle left": (-1.1, -0.5), "top right": (0.0, 0.2), "top left": (-1.0, 0.2),
    "bottom right": (0.0, -1.2), "bottom left": (-1.0, -1.2),
}
LETTER, HEIGHT, MARK = 0.017, 0.05, 0.015  # sizes of a letter, a line and a mark, shares of a map
PAD = 0.06  # what a map has around its marks
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
            "hovertext": hovers, "hoverinfo": "text", "cliponaxis": False,
            "textfont": {"color": colour, "size": 12}} | how


def spread(texts: list[str], places: list[tuple[float, float]]) -> list[str]:
    """Where each label of a map goes, so that it covers no mark and no label before it as far as
    that can be; labels stay inside of the map."""
    low, size = zip(*((min(v), max(max(v) - min(v), 1e-9)) for v in zip(*places, strict=True)),
                    strict=True)
    at = [tuple((v - a) / b for v, a, b in zip(p, low, size, strict=True)) for p in places]
    marks = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in at]
    labels, chosen = [], []

    def over(a: tuple[float, ...], boxes: list[tuple[float, ...]]) -> float:
        return sum((max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
                    * max(0.0, min(a[3], b[3]) - max(a[1], b[1])) for b in boxes), 0.0)

    for text, (x, y) in zip(texts, at, strict=True):
        w, h = LETTER * len(text), HEIGHT
        boxes = {spot: (x + i * w, y + j * h, x + (i + 1) * w, y + (j + 1) * h)
                 for spot, (i, j) in SPOTS.items()}

        outside = {spot: max(0.0, -a[0] - PAD, a[2] - 1 - PAD) * h for spot, a in boxes.items()}
        costs = {spot: over(a, marks) + 4 * over(a, labels) + outside[spot]
                 for spot, a in boxes.items()}
        chosen.append(min(costs, key=costs.__getitem__))
        labels.append(boxes[chosen[-1]])
    return chosen


def base_layout(**more: Any) -> Figure:
    """What both figures share."""
    return {"paper_bgcolor": "--paper", "plot_bgcolor": "--paper", "hovermode": "closest",
            "font": {"family": FONT, "size": 12, "color": "--muted"}, "dragmode": False,
            "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
            "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "align": "left",
                           "font": {"family": FONT, "size": 12, "color": "--ink"}},
            "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top",
                       "font": {"size": 12}}} | more


def axis_style(title: str = "", **more: Any) -> Figure:
    """One axis: a quiet grid, a zero line that can be seen."""
    return {"title": {"text": title, "standoff": 8}, "gridcolor": "--grid", "zeroline": True,
            "zerolinecolor": "--line", "zerolinewidth": 1, "ticks": "", "automargin": True} | more


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
    from base, steered points faint, everything else that was measured as a labelled mark. Without
    a state there is the note of `titles` alone. `rounds`: how each went."""
    layout = base_layout(
        xaxis=axis_style(escape(titles.x)), yaxis=axis_style(escape(titles.y)),
        annotations=[{"text": escape(titles.note), "xref": "paper", "yref": "paper", "x": 0,
                      "y": 1, "xanchor": "left", "yanchor": "top", "showarrow": False,
                      "font": {"size": 12, "color": "--muted"}}])
    if not measured:
        return {"data": [], "layout": layout}
    base = measured[0]
    path = [base] + [e for e in measured if e["state"] == "healed"]
    steered = [e for e in measured if e["state"] == "steered"]
    others = list({(e["state"], e.get("folder")): e for e in measured
                   if e["state"] not in STEPS}.values())  # of each the last one, after more rounds
    texts = ["base", *(str(e["round"] + 1) for e in path[1:] + steered),
             *(label(e["state"]) for e in others)]
    spots = spread(texts, [tuple(x[0] for x in e["place"]) for e in path + steered + others])

    def told(events: list[dict[str, Any]], word: str) -> list[str]:
        return [hover(f"round {e['round'] + 1}, {word}", e, base,
                      (rounds or {}).get(e["round"], ())) if e["state"] != "base"
                else hover("base", e, base) for e in events]

    traces = []
    if steered:
        healed = {e["round"]: e for e in path[1:]}
        pairs = [(e, healed[e["round"]]) for e in steered if e["round"] in healed]
        ends = [[x["place"] for x in pair] for pair in pairs]
        traces.append({
            "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "x": [v for a, b in ends for v in (a[0][0], b[0][0], None)],
            "y": [v for a, b in ends for v in (a[1][0], b[1][0], None)],
            "line": {"color": "--warm-soft", "width": 1, "dash": "dot"}})
        traces.append(points(
            "steered: the vector applied", steered, told(steered, "steered"), "--warm",
            "--warm-soft", mode="markers+text", opacity=0.75,
            text=texts[len(path):len(path) + len(steered)],
            textposition=spots[len(path):len(path) + len(steered)],
            marker={"size": 8, "symbol": "circle-open", "color": "--warm"}))
    traces.append(points(
        "healed: the student by round", path, told(path, "healed"), "--ink", "--accent-soft",
        mode="lines+markers+text", text=texts[:len(path)], textposition=spots[:len(path)],
        line={"color": "--accent", "width": 2},
        marker={"size": [9] + [11] * (len(path) - 1), "color": "--accent",
                "symbol": ["circle-open"] + ["circle"] * (len(path) - 1)}))
    for e, symbol, spot in zip(others, SYMBOLS, spots[len(path) + len(steered):], strict=False):
        name = label(e["state"])
        traces.append(points(
            name, [e], [hover(name, e, base)], "--muted", "--line", showlegend=False,
            mode="markers+text", text=[escape(name)], textposition=spot,
            marker={"size": 10, "symbol": symbol, "color": "--muted"}))
    return {"data": traces, "layout": layout}


def line(name: str, x: list[int], y: list[float], row: int, colour: str, **how: Any) -> Figure:
    """One measure by round, in a row of the second figure."""
    return {"type": "scatter", "name": name, "x": x, "y": y, "yaxis": f"y{row}",
            "mode": "lines+markers", "line": {"color": colour, "width": 2},
            "marker": {"size": 7, "color": colour}, "cliponaxis": False,
            "hovertext": [f"<b>{'base' if i == 0 else f'round {i}'}</b><br>{name} {v:.3f}"
                          for i, v in zip(x, y, strict=True)], "hoverinfo": "text"} | how


def rounds_figure(
    measured: list[dict[str, Any]], samples: dict[int, dict[str, Any]],
    drifts: dict[int, dict[str, Any]], floor: float, budget: float,
) -> Figure:
    """Coherence, direction cosines and the KL ledger above one round axis (0 is the base)."""
    def coherence(*states: str) -> tuple[list[int], list[float]]:
        rows = [(0 if e["state"] == "base" else e["round"] + 1, e["measures"]["coherence"])
                for e in measured if e["state"] in states and "coherence" in e["measures"]]
        return [x for x, _ in rows], [y for _, y in rows]

    spent = [drifts[r]["kl_base"] for r in drifts]
    new = [b - a for a, b in zip([0.0, *spent], spent, strict=False)]
    traces = [
        line("coherence, healed", *coherence("base", "healed"), 1, "--accent"),
        line("coherence, steered", *coherence("steered"), 1, "--warm", mode="markers",
             marker={"size": 7, "symbol": "circle-open", "color": "--warm"}),
        line("cos(v<sub>r</sub>, v<sub>0</sub>)", [r + 1 for r in samples],
             [e["cos_first"] for e in samples.values()], 2, "--accent"),
        line("cos(shift, v<sub>r</sub>)", [r + 1 for r in drifts],
             [e["cos_teacher"] for e in drifts.values()], 2, "--warm", line={
                 "color": "--warm", "width": 2, "dash": "dot"}),
        {"type": "bar", "name": "KL to base", "x": [r + 1 for r in drifts], "y": spent,
         "yaxis": "y3", "width": 0.4, "marker": {"color": "--accent-soft"}, "hoverinfo": "text",
         "hovertext": [f"<b>round {r + 1}</b><br>KL to base {k:.4f} nats per token"
                       f"<br>of it this round {d:+.4f}"
                       for r, k, d in zip(drifts, spent, new, strict=True)]}]
    rounds = max([1, *(r + 1 for r in samples)])
    titles = ("coherence", "direction cosines", "KL ledger: nats per token, student to base")
    tops = (1.0, 0.64, 0.28)
    limits = [("y1", floor, f"floor {floor:.3f}")] if floor else []
    limits += [("y3", budget, f"budget {budget:g}")] if budget else []
    layout = base_layout(
        xaxis=axis_style("round", tickmode="linear", dtick=max(1, rounds // 10), zeroline=False,
                         range=[-0.35, rounds + 0.35], anchor="y3"),
        yaxis=axis_style(domain=[0.76, 0.95], zeroline=False, nticks=4),
        yaxis2=axis_style(domain=[0.40, 0.59], nticks=4),
        yaxis3=axis_style(domain=[0.0, 0.23], nticks=4, rangemode="tozero",
                          exponentformat="none"),
        annotations=[{"text": text, "xref": "paper", "yref": "paper", "x": 0, "y": y,
                      "xanchor": "left", "yanchor": "middle", "showarrow": False,
                      "font": {"size": 12, "color": "--ink"}}
                     for text, y in zip(titles, tops, strict=True)]
        + [{"text": text, "xref": "paper", "x": 1, "yref": ref, "y": y, "xanchor": "right",
            "yanchor": "bottom", "showarrow": False, "font": {"size": 11, "color": "--bad"}}
           for ref, y, text in limits],
        shapes=[{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": ref, "y0": y, "y1": y,
                 "line": {"color": "--bad", "width": 1, "dash": "dash"}} for ref, y, _ in limits])
    return {"data": traces, "layout": layout}
