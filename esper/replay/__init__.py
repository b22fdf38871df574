"""Replay: a flight record is held against the code and the machine of today.

Three levels, each stricter than the one before: `decision` lets policies decide again from recorded
observations and masks, `pass` sends recorded proposals through the pass manager, `full` runs the
whole program again. Each names the first event that comes out otherwise, and what is to blame.
"""

from esper.replay.continuing import resume
from esper.replay.decision_level import decision
from esper.replay.full_level import full
from esper.replay.pass_level import passes
from esper.replay.report import Divergence, Report

__all__ = ["Divergence", "Report", "decision", "full", "passes", "resume"]
