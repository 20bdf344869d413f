"""How a round's dose was found: KL over dose with c*, and what the filter let through."""

import json
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.pages.drawing import Panel, Scale, figure, legend, panels
from steerloop.report.pages.markup import table
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table


def doses(run: Path, cfg: dict[str, Any], sample: dict[str, Any], round: int) -> str:
    """The section of a round, of which `sample` is the record ({}: none yet); '' before it has a
    dose."""
    path = run / layout.of_round(round, f"{layout.CURVE}.parquet")
    rows = layout.completions(run, round)
    c_star = kept(run, round, layout.DOSE)
    kappa, target = sample.get("kappa"), cfg["target_kl"]
    judged = read_table(rows) if rows.is_file() else None
    if not path.is_file() and judged is None:
        return ""
    rows = [] if judged is None else survived(judged, c_star)
    parts = [solved(c_star, kappa, target)]
    if path.is_file():
        parts.append(pictures(read_table(path), target, c_star, kappa, rows))
    else:
        parts.append('<p class="quiet">This round has no curve.parquet.</p>')
    if rows:
        parts.append(f"<h3>What survived the filter</h3>{table(rows)}")
    return "".join(parts)


def kept(run: Path, round: int, name: str) -> Any:
    """What a stage of a round came to, None where that is not there."""
    path = run / layout.of_round(round, f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))["value"] if path.is_file() else None


def solved(c_star: float | None, kappa: float | None, target: float) -> str:
    """The dose in words."""
    if c_star is None:
        return '<p class="quiet">This round has no dose.json.</p>'
    said = (f"At c* = {c_star:.3g} the 95th percentile of the tokens' KL(steered ‖ unsteered) is "
            f"{target:g} nats.")
    if kappa is not None:
        said += f" The survival walk settled at κ = {kappa:.2f} of it: {kappa * c_star:.3g}."
    return f"<p>{escape(said)}</p>"


def pictures(curve: pl.DataFrame, target: float, c_star: float | None, kappa: float | None,
             rows: list[dict[str, Any]]) -> str:
    """KL over dose, both logarithmic; below which dose texts stay alive; and of the `survived`
    rows, if there are some, what share the filter kept."""
    at, sampled = curve["dose"].to_list(), [x["dose"] for x in rows]
    xs = Scale([*at, *sampled, *(x for x in [c_star] if x)], log=True)
    kls = {x: curve[x].to_list() for x in ("p95", "mean")}
    kl = Panel("KL(steered ‖ unsteered) by token (nats)", xs, Scale(
        [*kls["p95"], *kls["mean"], target], log=True), "dose (units of the vector)")
    living = Panel("share of rollouts that are alive", xs, Scale([0.0, 1.0], zero=True),
                   "dose (units of the vector)")
    passed = Panel("share that the filter kept", xs, Scale([0.0, 1.0], zero=True),
                   "dose (units of the vector)")
    for panel in (kl, living, passed):
        if c_star:
            panel.upright(c_star, "c*", "ink")
        if c_star and kappa and kappa < 0.98:
            panel.upright(kappa * c_star, "κ c*", "warm")
    kl.level(target, f"target {target:g}")
    for name, colour, more in (("mean", "muted", "dashed"), ("p95", "accent", "")):
        kl.line(at, kls[name], colour, name, more)
        kl.dots(at, kls[name], colour,
                [f"dose {x:.3g}: {name} {y:.3g} nats" for x, y in zip(at, kls[name], strict=True)])
    living.line(at, curve["alive"].to_list(), "accent")
    living.dots(at, curve["alive"].to_list(), "accent", [
        f"dose {x:.3g}: {y:.0%} alive" for x, y in zip(at, curve["alive"], strict=True)])
    passed.dots(sampled, [x["share kept"] for x in rows], "warm", [
        f"dose {x['dose']:.3g}: {x['kept']} of {x['sampled']} kept" for x in rows])
    names = [("95th percentile", "accent", ""), ("mean", "muted", "dashed")]
    drawn = [figure(x.svg()) for x in ([kl, living, passed] if rows else [kl, living])]
    return (f'{panels(drawn)}{legend(names)}<p class="quiet">Each dot is a dose that was '
            "rolled out. c* is the smallest dose at which the 95th percentile reaches the target; "
            "κ c* is where the walk settled, drawn where it is another. Alive: a text that neither "
            "loops nor repeats. Kept: of all rows that were sampled at a dose, also on the way to "
            "κ.</p>")


def survived(judged: pl.DataFrame, c_star: float | None) -> list[dict[str, Any]]:
    """Rows by dose: how many were sampled and kept, and why others were not."""
    found = []
    for (dose,), rows in sorted(judged.partition_by("dose", as_dict=True).items()):
        why = rows["drop_reason"].drop_nulls().value_counts(sort=True).sort(
            ["count", "drop_reason"], descending=[True, False]).rows()
        kept = int(rows["keep"].sum())
        found.append({"dose": dose} | ({"of c*": dose / c_star} if c_star else {}) | {
            "sampled": len(rows), "kept": kept, "share kept": kept / len(rows)} | (
            {"chosen to train on": int(rows["train"].sum())} if "train" in rows.columns else {}) | {
            "dropped because": ", ".join(f"{x} {n}" for x, n in why)})
    return found
