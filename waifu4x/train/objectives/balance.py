"""Whether generator and discriminator learn from each other, judged by the reports of a stage."""

from __future__ import annotations

from waifu4x.train.metering import Report
from waifu4x.train.recipe import StageOptions

REPORTS = 5
"""So many in a row make a note."""
_CERTAIN = 0.95
_UNDECIDED = 0.05
# Of these alone logits say how probable "real" is.
_PROBABILITIES = ("vanilla", "ragan")


class BalanceWatch:
    """Watches one stage, and speaks once about each of the two ways in which it can be stuck."""

    def __init__(self, stage: StageOptions, *, number: int, from_start: bool) -> None:
        self._watches = stage.losses.gan in _PROBABILITIES
        self._rate = stage.discriminator_rate or stage.learning_rate
        self._place = f"stages.{number}"
        self._gan_weight = stage.losses.gan_weight
        self._certain = 0
        self._undecided = 0
        self._may_be_undecided = from_start

    def see(self, report: Report) -> str | None:
        """A sentence that says what is wrong and what to try; None when nothing is."""
        real, fake = report.d_real, report.d_fake
        if not self._watches or real is None or fake is None:
            return None
        self._certain = self._certain + 1 if real > _CERTAIN and fake < 1.0 - _CERTAIN else 0
        both_half = max(abs(real - 0.5), abs(fake - 0.5)) < _UNDECIDED
        self._may_be_undecided = self._may_be_undecided and both_half
        self._undecided += self._may_be_undecided
        judged = f"D(real) {real:.2f}, D(fake) {fake:.2f} for {REPORTS} reports"
        if self._certain == REPORTS:
            return (
                f"the discriminator is never deceived ({judged}), so the generator learns little "
                f"from it: try --set {self._place}.discriminator_rate={self._rate / 4.0:g}, or "
                f"--set {self._place}.losses.gan_weight={self._gan_weight * 2.0:g}"
            )
        if self._may_be_undecided and self._undecided == REPORTS:
            return (
                f"the discriminator has learned nothing yet ({judged}): unless that changes soon, "
                f"try --set {self._place}.discriminator_rate={self._rate * 4.0:g}, or another "
                f"--discriminator"
            )
        return None
