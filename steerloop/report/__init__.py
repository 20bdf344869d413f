"""What a run folder says: tables with intervals, `summary.json`, the ledger of all runs.

Reads run folders only; needs no torch and no model.
"""

from steerloop.report.ledger import ledger_table
from steerloop.report.run import finish, round_table, run_table

__all__ = ["finish", "ledger_table", "round_table", "run_table"]
