"""The seven moral foundations and their names; no torch, so that reports can read run folders."""

import re

FOUNDATIONS = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social norms")
H = [f"h_{f}" for f in FOUNDATIONS]  # columns of what people said, where they were asked


def foundation(name: str) -> str:
    """A foundation however it is spelt ("SocialNorms", "Care") → its name here.

    Raises ValueError for a word that names none.
    """
    plain = {re.sub(r"[^a-z]", "", x): x for x in FOUNDATIONS}
    word = re.sub(r"[^a-z]", "", name.lower())
    if word not in plain:
        raise ValueError(f"{name!r} is none of the foundations: {', '.join(FOUNDATIONS)}")
    return plain[word]
