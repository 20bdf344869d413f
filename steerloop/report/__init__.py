"""What a run folder says: tables with intervals, `summary.json`, the ledger of all runs.

Reads run folders only; needs no torch and no model.
"""

from steerloop.report.ledger import ledger_table
from steerloop.report.run import round_table, run_table
from steerloop.report.stats import measures, survival
from steerloop.report.summary import finish

__all__ = ["finish", "ledger_table", "measures", "round_table", "run_table", "survival"]
