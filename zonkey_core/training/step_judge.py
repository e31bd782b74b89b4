"""Which updates are left out: those whose loss or gradient is no number, and those far out of proportion.

One batch can undo hours of training: clipping holds the length of a step, but not its direction. The batch is passed
over, as are its effects on optimisers and averages, and the run goes on with the next.
"""

from __future__ import annotations

import math

from zonkey_core.checkpoint import TrainingRecord

SPIKE = 100.0
"""A gradient is out of proportion when its norm is so many times the running mean."""
JUDGED_FROM = 50
"""Steps of a stage after which the mean is trusted."""
MEAN_STEPS = 100
"""Steps over which the mean runs."""
MOST_SPIKES = 3
"""In a row; what goes on for longer is no accident of a batch, but the stage's new measure."""
MOST_BROKEN = 20
"""In a row; when so many batches give no number, the weights are at fault."""


class StepJudge:
    """Judges steps by the norms of their gradients; its state is in the run's record, so that runs resume exactly."""

    def __init__(self, record: TrainingRecord) -> None:
        self._record = record

    def fault(self, loss: float, norm: float) -> str | None:
        """Why the step with this loss and this gradient is to be left out, or None."""
        record = self._record
        if not (math.isfinite(loss) and math.isfinite(norm)):
            record.faults_in_row += 1
            return f"its loss is {loss:.4g} and its gradient {norm:.4g}"
        spikes = record.stage_step >= JUDGED_FROM and norm > SPIKE * record.gradient_norm
        if spikes and record.faults_in_row < MOST_SPIKES:
            record.faults_in_row += 1
            return f"its gradient is {norm:.4g}, and {record.gradient_norm:.4g} on average"
        if spikes:
            record.gradient_norm = norm
        record.faults_in_row = 0
        record.gradient_norm += (norm - record.gradient_norm) / min(MEAN_STEPS, record.stage_step + 1)
        return None

    @property
    def hopeless(self) -> bool:
        """Whether too many steps in a row were left out to go on."""
        return self._record.faults_in_row >= MOST_BROKEN
