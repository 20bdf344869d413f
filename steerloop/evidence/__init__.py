"""What stands around the loop of a run: its journal, what people read, what ends a loop; and the
evidence that gates.md rests on beside the loop's own records: how the filter does on completions
whose verdict is known, how far from the base training took the student, whether along the vector.
"""
