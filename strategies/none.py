"""Do nothing: the no-op row that every table shows.

Paper: none.

It returns the model it was given, so it bounds every metric from the side of "nothing was forgotten".

Deviations: none.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedforget.strategy import Card, Cohort, History, Params, UnlearningRequest, UnlearningStrategy


class DoNothing(UnlearningStrategy):
    """Leave the model as it is."""

    card = Card(retained_online=False)  # nothing is assumed

    def unlearn(self, request: UnlearningRequest, history: History, cohort: Cohort) -> Iterator[Params]:
        """Yield the model unchanged; no round is spent."""
        yield history.final
