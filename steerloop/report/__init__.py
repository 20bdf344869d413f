"""What a run folder says: pages, tables with intervals, `summary.json`, the ledger of all runs.

Reads run folders only; needs no torch and no model.
"""

from steerloop.report.ledger import ledger_table
from steerloop.report.measures import measures
from steerloop.report.run import run_table
from steerloop.report.stats import survival
from steerloop.report.summary import after_round, finish, follow, stopped

__all__ = ["after_round", "finish", "follow", "ledger_table", "measures", "run_table", "stopped",
           "survival"]
