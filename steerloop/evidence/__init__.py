"""What gates.md rests on beside the loop's own records: how the filter does on completions whose
verdict is known, how far from the base training took the student, and whether along the vector.
And what people read: the diary's answers, one whole example a stage.
"""

from steerloop.evidence.diary import diary, examples
from steerloop.evidence.drift import drift
from steerloop.evidence.planted import planted

__all__ = ["diary", "drift", "examples", "planted"]
