"""Do nothing: the no-op row that every table shows.

It returns the model it was given, so it bounds every metric from the side of "nothing was forgotten".
There is no paper.

Deviations: none.
"""

from __future__ import annotations

from fedforget.exchange import Card
from fedforget.strategy import UnlearningStrategy


class DoNothing(UnlearningStrategy):
    """Leave the model as it is."""

    @property
    def card(self):
        """Nothing is assumed."""
        return Card(retained_online=False)

    def unlearn(self, request, history, cohort):
        """Yield the model unchanged; no round is spent."""
        yield history.final
