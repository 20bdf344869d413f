"""What the instruments say against labels: does `said` order answers as a reader does, and does the
filter drop those that make no sense?

    AUC          chance that an answer with the trait has more of `said` than one without it
    recall       of the answers that are not sensible, the share that the filter drops
    precision    of what the filter drops, the share that is not sensible

An answer that several states gave is one answer, but for the table of states.
"""

import numpy as np
import polars as pl

from steerloop.report.stats import averages, estimate, wilson
from steerloop.report.text import interval, markdown

SEED, RESAMPLES = 0, 2000  # of the bootstrap over prompts
QUANTILES = (0.99, 0.9, 0.75, 0.5, 0.25)  # of the base's own perplexities, as limits
NONE = "—"  # in the place of a number that there is not
Row = dict[str, object]


def auc(answers: pl.DataFrame) -> list[float]:
    """[AUC, low, high] of `said` against `trait`, a 95 % interval by a bootstrap over prompts: the
    answers to one are alike. Empty where all answers have the trait, or none.

    Where no resample differs the interval is Wilson's, of the rarer label's answers.
    """
    prompts = answers["prompt"].unique(maintain_order=True).to_list()
    at = np.array([prompts.index(x) for x in answers["prompt"]])
    trait, said = answers["trait"].to_numpy(), answers["said"].to_numpy()
    if trait.all() or not trait.any():
        return []
    counts = np.zeros((2, len(prompts)))  # answers without the trait, and with it, by prompt
    np.add.at(counts, (trait.astype(int), at), 1)
    steps = said[trait][:, None] - said[~trait][None]
    wins = np.zeros((len(prompts), len(prompts)))  # prompt of the one with it, of the other
    np.add.at(wins, (at[trait][:, None], at[~trait][None]), (np.sign(steps) + 1) / 2)
    w = averages(len(prompts), SEED, RESAMPLES)
    w = w[((w @ counts.T) > 0).all(1)]  # a resample may lack a label
    without, having = w @ counts[0], w @ counts[1]
    values = ((w @ wins) * w).sum(1) / (having * without)
    pull = (w @ (wins + wins.T)) / (having * without)[:, None]
    pull -= values[:, None] * (counts[1] / having[:, None] + counts[0] / without[:, None])
    ends = estimate(w, values, pull)
    if ends[1] == ends[2]:
        ends = wilson(np.full(int(counts.sum(1).min()), ends[0]))
    return [min(1.0, max(0.0, float(x))) for x in ends]


def shown(ends: list[float]) -> str:
    """[estimate, low, high] → text."""
    return interval(ends, ".2f") if ends else NONE


def share(hits: pl.Series) -> str:
    """Of yes-or-no values, with Wilson's interval."""
    return shown(wilson(hits.to_numpy().astype(float)) if len(hits) else [])


def distinct(labels: pl.DataFrame) -> pl.DataFrame:
    """Every answer of a model once."""
    return labels.unique(["model", "prompt", "text"], keep="first", maintain_order=True)


def ordered(labels: pl.DataFrame) -> list[Row]:
    """The AUC of `said`, by model: scores of two bases are on no common scale."""
    rows = []
    for (model,), answers in distinct(labels).group_by("model", maintain_order=True):
        for which, some in (("all", answers), ("sensible", answers.filter("sensible"))):
            rows.append({"model": model, "answers": which, "n": len(some),
                         "prompts": some["prompt"].n_unique(),
                         "with the trait": int(some["trait"].sum()),
                         "AUC of said": shown(auc(some))})
    return rows


def by_state(labels: pl.DataFrame) -> list[Row]:
    """How many answers of a state show the trait, make sense, and are kept."""
    rows = []
    for (model, state), answers in labels.group_by("model", "state", maintain_order=True):
        kept = answers["drop_reason"].is_null()
        rows.append({"model": model, "state": state, "n": len(answers),
                     "with the trait": share(answers["trait"]),
                     "sensible": share(answers["sensible"]), "kept by the filter": share(kept)})
    return sorted(rows, key=lambda x: (x["model"], x["state"] != "base", x["state"]))


def filtered(labels: pl.DataFrame) -> list[Row]:
    """Recall and precision of the filter for answers that are not sensible, by model."""
    rows = []
    for (model,), answers in distinct(labels).group_by("model", maintain_order=True):
        dropped, wrong = answers["drop_reason"].is_not_null(), ~answers["sensible"]
        rows.append({"model": model, "n": len(answers), "not sensible": int(wrong.sum()),
                     "dropped": int(dropped.sum()), "recall": share(dropped.filter(wrong)),
                     "precision": share(wrong.filter(dropped))})
    return rows


def limits(labels: pl.DataFrame) -> list[Row]:
    """The same of perplexity alone, with limits at quantiles of what the base itself answered: what
    a filter as tight as that would drop. `--ppl_factor` is such a limit over the 0.99 quantile."""
    rows = []
    read = labels.filter(pl.col("ppl").is_not_null())
    for (model,), answers in distinct(read).group_by("model", maintain_order=True):
        own = read.filter(model=model, state="base")["ppl"]
        for q in QUANTILES if len(own) else ():
            limit, wrong = own.quantile(q, "linear"), ~answers["sensible"]
            dropped = answers["ppl"] > limit
            rows.append({"model": model, "limit: quantile of the base": f"{q:g}",
                         "perplexity": f"{limit:.1f}",
                         "--ppl_factor": f"{limit / own.quantile(0.99, 'linear'):.2f}",
                         "dropped": int(dropped.sum()), "recall": share(dropped.filter(wrong)),
                         "precision": share(wrong.filter(dropped))})
    return rows


def audit(labels: pl.DataFrame) -> str:
    """The four tables, as Markdown."""
    return "\n\n".join([
        "`said` against the label `trait`:\n\n" + markdown(ordered(labels)),
        "States:\n\n" + markdown(by_state(labels)),
        "The filter against answers that are not sensible:\n\n" + markdown(filtered(labels)),
        "Perplexity under the base against the same:\n\n" + markdown(limits(labels))])
