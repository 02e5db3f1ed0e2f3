"""Writes docs/methods.md from the code: ``python docs/methods.py > docs/methods.md`` (a test compares them).

What a method needs is read from its card; what it spends is measured on the toy federation of `fedforget.testing`.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from fedforget.strategy import Card, UnlearningStrategy, all_strategies
from fedforget.testing import REQUESTS, Toy, serve

HEADER = """# Methods

One row a strategy, with its default settings. *Rounds* and *sent up* are measured on the toy federation (T = 4
rounds of learning; softmax regression, d = 650; a request for one client if the method serves that, else for the
first scope it serves). *Sent up* is what a client sends in a round on average, in units of d float32 numbers, the
size of the model (float64 counts twice). *Server keeps* is what must be stored from learning on, in numbers: T
rounds, K clients in a round, F forgotten clients. *Server holds* is the most that it has at once while it unlearns,
beside the model: vectors sent along, answers (of each client, or their sum) and what it keeps meanwhile. *Source* is
what the formulas were taken from: the paper, released code (where the paper could not be read, or the code says more),
the abstract only (what it leaves open is this project's choice), or secondary sources. Each file says more, and how it
deviates. `python docs/methods.py > docs/methods.md` writes this page.

| strategy | what it is | paper | source | serves | needs | rounds | sent up | server keeps | server holds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def row(name: str, strategy_class: type[UnlearningStrategy]) -> str:
    """The table's row of one strategy."""
    text = sys.modules[strategy_class.__module__].__doc__ or ""
    title = text.strip().split("\n")[0].rstrip(".")
    cited = re.search(r"^Paper: .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    paper = re.search(r"arXiv\s+(\d{4}\.\d{4,5})", cited[0] if cited else "")
    source = re.search(r"^Source: ([a-z ]+)", text, re.MULTILINE)
    link = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else "-"
    scope = "client" if "client" in strategy_class.scopes else sorted(strategy_class.scopes)[0]
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(Path(folder))
        strategy = strategy_class(None, toy.learning)
        _, cohort, _ = serve(toy, strategy, REQUESTS[scope])
    asked = sum(len(work.clients) for work in toy.grid.work)
    sent = f"{cohort.cost.bytes_up / (4 * toy.start.layout.size * asked):.3g} d" if asked else "-"
    scopes = ", ".join(sorted(strategy_class.scopes))
    needs, keeps = _needs(strategy.card), _keeps(strategy.card)
    holds = f"{cohort.held / (4 * toy.start.layout.size):.3g} d" if asked else "0"
    return (
        f"| `{name}` | {title} | {link} | {source[1] if source else '-'} | {scopes} | {needs} | "
        f"{cohort.cost.rounds} | {sent} | {keeps} | {holds} |"
    )


def _needs(card: Card) -> str:
    needs = {
        "the forgotten data": card.target_online,
        "retained clients": card.retained_online,
        "data at the server": card.server_data,
        "records at the clients": card.client_records,
    }
    return ", ".join(what for what, needed in needs.items() if needed) or "nobody"


def _keeps(card: Card) -> str:
    share = "" if card.keep == 1 else f"{card.keep:g} "
    every = "T" if card.every == 1 else f"(T/{card.every})"
    if card.storage == "sums":
        return "K d"
    if card.storage == "updates":
        return f"{share}K {every} d"
    updates = {"nothing": "", "globals": "", "targets": f" + {share}F {every} d", "all": f" + {share}K {every} d"}
    return "0" if card.records == "nothing" else f"(1 + {every}) d{updates[card.records]}"


def page() -> str:
    """The whole page."""
    return "\n".join([HEADER, *(row(name, strategy) for name, strategy in all_strategies().items()), ""])


if __name__ == "__main__":
    sys.stdout.write(page())
