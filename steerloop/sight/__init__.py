"""Can the instruments see, and is what they see the vector? Asked once of a run, on the untouched
base, before anything is sampled for training: gate U0 (docs/spec.md).

`look` measures, report/sight.py judges; `glance` is what can be asked without a vector; `bands`
holds candidate bands of blocks against one another.
"""

from steerloop.sight.bands import bands, settled
from steerloop.sight.responses import glance, look

__all__ = ["bands", "glance", "look", "settled"]
