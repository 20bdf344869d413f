"""What stands around the loop of a run: its journal, what people read, what ends a loop; and the
evidence that verdicts.md rests on beside the loop's own records: how the filter does on known
cases, how far from the base training took the student, whether along the vector.
"""
