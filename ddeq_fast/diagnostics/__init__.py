"""What an equilibrium is worth: whether it is one, whether it is a distribution, whether it matters: `audit`."""

from ddeq_fast.diagnostics.auditing import audit
from ddeq_fast.diagnostics.results import Audit

__all__ = ["audit", "Audit"]
