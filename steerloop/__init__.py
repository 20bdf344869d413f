"""steerloop: steer, sample, filter, heal, fold; round after round.

Set STEERLOOP_TYPECHECK=1 before the first import and every annotated shape and dtype in the
package is checked at run time (jaxtyping + beartype); `--tiny` and the gate do so.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a busy machine

if os.environ.get("STEERLOOP_TYPECHECK") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("steerloop", "beartype.beartype")


class UserError(Exception):
    """Bad input, or a run that cannot go on; the message is one line and names the remedy."""
