"""The report as one HTML page: no script, nothing loaded from anywhere, readable on a phone and in the dark.

The template is text in this module, because `flwr run` ships no other kind of file that would fit it.
"""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup  # a part of jinja2

from fedforget import claims, tables
from fedforget.figures import MOST, Drawing, inline
from fedforget.tables import Row, Table, View

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b626b; --paper: #ffffff; --raised: #f5f6f8; --line: #d9dde2;
  --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3abb5; --paper: #15181c; --raised: #1e2329; --line: #363d46; --good: #5fd097;
    --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
h1 { margin-top: .5rem; }
a { color: inherit; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.lead, .facts { background: var(--raised); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.lead p { margin: .3rem 0; }
.passed { color: var(--good); font-weight: 600; }
.void { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: .3rem 1rem; margin: 0; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .5rem; } }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; min-width: 0; }
figcaption { margin-bottom: .4rem; }
.title { font-weight: 600; }
.stamp, .note { font-size: .82rem; color: var(--soft); margin: .2rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem;
  font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3125rem .6rem; line-height: 1.3125rem; text-align: right;
  white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  border-right: 1px solid var(--line); }
thead th { background: var(--raised); vertical-align: bottom; white-space: normal; }
thead th:first-child { background: var(--raised); }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 500; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }
.drawings figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
svg { display: block; width: 100%; height: auto; max-width: 31rem; margin: 0 auto; }
svg text { font-family: system-ui, sans-serif !important; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; }
"""

PAGE = """
{%- macro show(table, stamp) %}
<figure>
<figcaption><span class="title">{{ table.title }}</span>{% if stamp %} <p class="stamp">{{ stamp }}</p>{% endif %}
</figcaption>
<div class="scroll" role="region" aria-label="{{ table.title }}" tabindex="0"><table>
<thead><tr>{% for cell in table.columns %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">{{ table.note }}</p>
</figure>
{% endmacro -%}
{%- macro show_all(drawings, stamp) %}
<div class="drawings">
{% for drawing, svg in drawings %}
<figure>
<figcaption class="title">{{ drawing.title }}</figcaption>
<div role="img" aria-label="{{ drawing.title }}. {{ drawing.caption }}">{{ svg }}</div>
<p class="stamp">{{ stamp }}</p>
<p class="note">{{ drawing.caption }}</p>
</figure>
{% endfor %}
</div>
{% endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ header.experiment }}: forgetting {{ header.requests|join(", then ") }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ header.experiment }}: forgetting {{ header.requests|join(", then ") }}</h1>
<div class="lead">
<p><strong>Evidence level {{ header.code }} ({{ header.level }}), K = {{ header.seeds }}
seed{{ "" if header.seeds == 1 else "s" }}.</strong> {{ header.claim }}</p>
{% for section in sections %}
<p>{% if sections|length > 1 %}Request {{ section.view.number }}: {% endif %}
<span class="{{ 'passed' if section.view.gate.state == 'passed' else 'void' }}">{{ section.gate[0] }}</span>:
{{ section.gate[1] }}.
Primary metric: <code>{{ section.view.gate.primary }}</code>.</p>
{% endfor %}
</div>
<nav aria-label="Contents"><ul>
{% if sequence %}
<li><a href="#sequence">The sequence</a></li>
{% endif %}
{% for section in sections %}
<li><a href="#request-{{ section.view.number }}">Request {{ section.view.number }}</a></li>
{% endfor %}
<li><a href="#assumptions">Assumptions</a></li>
<li><a href="#run">The run</a></li>
<li><a href="#reading">How to read it</a></li>
</ul></nav>
</header>
<main>
{% if sequence %}
<section id="sequence"><h2>The sequence of requests</h2>
{{ show_all(sequence, stamp) }}
</section>
{% endif %}
{% for section in sections %}
{% set view = section.view %}
<section id="request-{{ view.number }}" aria-labelledby="title-{{ view.number }}">
<h2 id="title-{{ view.number }}">Request {{ view.number }} of {{ sections|length }}: {{ view.name }}</h2>
{% if section.silent %}
<p>{{ section.silent }}</p>
{% endif %}
{% for table in section.first %}
{{ show(table, section.stamp) }}
{% endfor %}
{% if section.sentences %}
<details{% if section.sentences|length <= few %} open=""{% endif +%}>
<summary>In words ({{ section.sentences|length }})</summary>
<ul>
{% for sentence in section.sentences %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
</details>
{% endif %}
<h3>Figures</h3>
{{ show_all(section.drawings, section.stamp) }}
<h3>Details</h3>
{% for table in section.second %}
{{ show(table, section.stamp) }}
{% endfor %}
{% for table in section.metrics %}
<details><summary>{{ table.title }} ({{ table.rows|length }})</summary>
{{ show(table, section.stamp) }}
</details>
{% endfor %}
</section>
{% endfor %}
<section id="assumptions"><h2>Data, assumptions and tuning</h2>
{% for table in about %}
{{ show(table, stamp) }}
{% endfor %}
{% if settings %}
<details><summary>{{ settings.title }} ({{ settings.rows|length }})</summary>
{{ show(settings, stamp) }}
</details>
{% endif %}
</section>
<section id="run"><h2>The run</h2>
<div class="facts"><dl>
{% for name, value in facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl></div>
</section>
<section id="reading"><h2>How to read it</h2>
<dl>
{% for name, meaning in glossary %}
<dt>{{ name }}</dt><dd>{{ meaning }}</dd>
{% endfor %}
</dl>
</section>
</main>
<footer>A simulation shows that a method works, not that a server is honest. Settings are in config.yaml, every number
in results.jsonl, beside this page.</footer>
</body>
</html>
"""

GLOSSARY = (
    ("original", "the model before unlearning; doing nothing keeps it"),
    ("oracle", "the same federation trained again without the forgotten data; K seeds of it make a distribution"),
    ("floor", "an oracle scored against the other oracles: what a perfect method would get"),
    ("gate", "whether the original differs from the oracles by more than 3 standard deviations between oracles, and is "
     "better than a constant answer; one seed cannot check it"),
    ("nat", "unit of losses and margins: natural logarithms of probabilities, or of odds"),
    ("forget, retain, holdout, test", "data to forget, data that stays, the owner's never-trained data, a test set"),
    ("accuracy, AUC, rates", "fractions from 0 to 1 in the tables of all metrics, % or points where it says so"),
    ("canary/", "examples that a fair coin put into training: AUC of who was in (0.5 = nothing shows), its p value, "
     "epsilon's lower bound; calibrated = relative to the oracles"),
    ("matched/, rmia/, lira/", "membership attacks, forgotten examples against the same owner's holdout: AUC, or true "
     "positive rate at 1 % and 0.1 % false positives"),
    ("efficacy/", "share of the forget set that an attack calls non-member"),
    ("probe/, head/, weights/", "what the layers below the last still know, and the last layer's share of the change"),
    ("layer/n/", "likeness (CKA) of what comes out of layer n, on 64 forgotten examples, to the oracles' and to the "
     "original's"),
    (".../disagreement, js_divergence, activation_distance, cka", "how answers and features differ from the oracles'"),
    ("near/, far/, regions/", "share of points around forgotten examples, or test images, whose class differs from the "
     "oracles' (near, far) or the original's (regions); locality = near / (near + far)"),
    ("trigger/, confusion/", "how often a planted trigger works; mistakes between the two classes that were swapped"),
    ("noise/", "how the model leans along noise that forgotten examples carried (GUS): mean in deviations of a model "
     "that never saw it (0 expected), and its p value"),
    ("client/n, clients/", "accuracy on retained clients' own holdouts, one by one and as a distribution"),
    ("+r/...", "the same metric after r ordinary rounds on the retained clients"),
    ("relearn/", "accuracy on forgotten examples when they, or a few of them, are taught again, after each round; "
     "without a number, its mean"),
)  # fmt: skip


def render(header: Row, views: list[View], drawings: list[list[Drawing]], sequence: list[Drawing]) -> str:
    """The page; ``drawings`` has the figures of each view, ``sequence`` those of all. Every text is escaped."""
    sections = [
        {
            "view": view,
            "stamp": tables.stamp(header, view),
            "gate": claims.gate(view.gate),
            "silent": "" if view.scored else claims.no_scores(header, view.gate),
            "sentences": tables.sentences(header, view),
            "first": _known([*_verdicts(header, view), tables.accuracy_table(header, view)]),
            "drawings": [(drawing, Markup(inline(drawing))) for drawing in mine],  # matplotlib escaped it
            "second": _known(
                [
                    *([tables.limits_table(header, view), tables.attack_table(header, view)] if view.scored else []),
                    tables.memorised_table(view),
                    tables.client_table(header, view),
                    tables.ledger_table(view),
                    tables.residue_table(view),
                    *([tables.comparable_table(header, view)] if view.scored else []),
                ]
            ),
            "metrics": [tables.metric_table(view, label) for label in view.strategies],
        }
        for view, mine in zip(views, drawings, strict=True)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        header=header,
        few=MOST,  # more sentences than these are folded away
        sections=sections,
        sequence=[(drawing, Markup(inline(drawing))) for drawing in sequence],
        style=Markup(STYLE),
        about=_known([tables.data_table(header), tables.card_table(header), tables.tuning_table(header)]),
        settings=tables.settings_table(header),
        stamp=tables.overall(header, views),
        facts=_facts(header, views),
        glossary=GLOSSARY,
    )


def _verdicts(header: Row, view: View) -> list[Table]:
    return [tables.verdict_table(header, view)] if view.scored else []


def _known(several: list[Table | None]) -> list[Table]:
    return [table for table in several if table is not None]


def _facts(header: Row, views: list[View]) -> list[tuple[str, str]]:
    """What identifies the run."""
    marked = header["corruption"].get("positions", {})
    corruption = [header["corruption"].get("kind", "none")]
    corruption += [f"{len(positions)} examples of client {client}" for client, positions in marked.items()]
    durability = ", ".join(map(str, header["durability"])) or "no"
    tuning = header["tuning"]
    facts = [
        ("whole trainings", str(header["trainings"])),
        ("seeds", f"0 to {header['seeds'] - 1}; one seed drives an original and its oracle alike"),
        ("tuning", f"{tuning['trials']} trials for each method" if tuning else "none, methods ran as configured"),
        ("audited again after", f"{durability} ordinary rounds"),
        ("corruption", ", ".join(corruption)),
    ]
    for view in views:
        attacks = ", ".join(view.gate["attacks"]) or "none"
        facts.append((f"attacks that count, request {view.number}", attacks))
        asked = ", ".join(f"{name} {number}" for name, number in view.gate["examples"].items())
        facts.append((f"examples asked, request {view.number}", asked))
    facts += [
        ("configuration", header["config"]),
        ("data", header["data"]),
        ("trajectories of the originals", header["trajectory"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in header["versions"].items())),
    ]
    facts += [(f"{label} failed", why) for label, why in header["failed"].items()]
    facts += [(f"noted of {model}", why) for model, why in header["left_out"].items()]
    return facts
