"""What gates.md rests on beside the loop's own records: how the filter does on completions whose
verdict is known, how far from the base training took the student, and whether along the vector.
"""

from steerloop.evidence.drift import drift
from steerloop.evidence.planted import planted

__all__ = ["drift", "planted"]
