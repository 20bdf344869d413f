"""Searches over a positive scale, for functions that are noisy and dear to call."""

import math
from collections.abc import Callable

from steerloop import UserError

GRID = [2.0**i for i in range(-3, 4)]
FINE = 6  # steps between the two points of the grid that bracket the target
REACH = 3  # grids at most, each a factor of 64 from the last
LEAST = 1 / 32  # of the upper end: what is taken where the goal lies below the start


def crossing(f: Callable[[list[float]], list[float]], target: float, hint: str) -> float:
    """The smallest x at which f rises through `target`, f given in batches of points.

    One call per grid of factors of two (moved until it brackets the target), one for FINE steps
    inside the bracket; then log f is interpolated in log x. Raises UserError, ending in `hint`,
    when no x within reach crosses.
    """
    start = 1.0
    for _ in range(REACH):
        grid = [start * x for x in GRID]
        values = f(grid)
        above = [y >= target for y in values]
        if True in above and not above[0]:
            break
        start *= 2.0 ** (-6 if above[0] else 6)
    else:
        raise UserError(f"{target} is not crossed anywhere up to {start:.3g}: {hint}")
    i = above.index(True)
    fine = [grid[i - 1] * 2 ** (j / FINE) for j in range(1, FINE)]
    points = [(grid[i - 1], values[i - 1]), *zip(fine, f(fine), strict=True), (grid[i], values[i])]
    j = next(j for j, (_, y) in enumerate(points) if y >= target)
    (x0, y0), (x1, y1) = points[j - 1], points[j]
    y0 = max(y0, 1e-9 * target)  # rounding can leave a KL of 0 just below the crossing
    return x0 * (x1 / x0) ** (math.log(target / y0) / math.log(y1 / y0))


def bisected(
    answers: list[bool], low: float, high: float, calls: int
) -> tuple[float, bool]:
    """A log bisection of [low, high] for the largest x that is ok, as far as its `answers` go: the
    point to try next and False; or, once it is over, the largest x seen to be ok and True. `high`
    is tried first, `low` is taken for ok."""
    x, bad = high, high
    for ok in answers[:calls]:
        low, bad = (x, bad) if ok else (low, x)
        if low >= bad:
            return low, True
        x = math.sqrt(low * bad)
    return (low, True) if len(answers) >= calls else (x, False)


def meeting(
    f: Callable[[float], float], start: float, goal: float, high: float, calls: int, close: float
) -> float:
    """Where in (0, high] a rising f comes nearest to a goal, f(0) being `start`: `high` where it
    falls short even there, else by secants between two points that have the goal between them
    (regula falsi, the Illinois variant: Dowell and Jarratt 1971), until one is as close as that.
    """
    if goal <= start:
        return LEAST * high
    (x0, y0), (x1, y1) = (0.0, start - goal), (high, f(high) - goal)
    if y1 <= 0:
        return high
    nearest = (y1, high)
    for _ in range(calls - 1):
        if nearest[0] <= close:
            break
        x = x1 - y1 * (x1 - x0) / (y1 - y0)
        y = f(x) - goal
        nearest = min(nearest, (abs(y), x))
        x0, y0 = (x1, y1) if y * y1 < 0 else (x0, y0 / 2)
        x1, y1 = x, y
    return nearest[1]
