"""The fleet's comparison for people: one HTML file that opens anywhere, prints well and asks the network for nothing.

Every figure is the `compare` document's own: rounded for the eye, whole in the element's `value`. Everything that comes
from outside (plant, class and environment names, reasons) is escaped. Not a place for computing: what the document
does not say, the report does not say. What is said of the fleet stands first; every plant has a page of its own, of
which the browser shows the one that was asked for, and of which printing shows all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs import report_audit as audit
from jobs import report_failures as failing
from jobs import report_fleet as fleet
from jobs import report_plant as plant
from jobs.cells import SYNTHETIC, Document, text
from jobs.donor_graph import donors_html
from jobs.glossary import glossary
from jobs.incumbent_section import incumbent_html
from jobs.learning import section
from jobs.matrix import picture
from jobs.outlook import forecast_html
from jobs.page import page
from jobs.remarks import remarks_html


def outlook(document: Document) -> str:
    """What a plant that no model has seen can expect."""
    return forecast_html(document.get("forecast"))


FLEET_SECTIONS: tuple[Callable[[Document], str], ...] = (
    fleet.glance,
    picture,
    fleet.fragile,
    fleet.bought,
    donors_html,
    outlook,
    audit.versions,
)
"""What is said of the fleet, in this order; a section with nothing to say is empty text."""


def trained(name: str, document: Document) -> str:
    """How the chosen model was trained."""
    return remarks_html(plant.reports_of(name, document).get("training", ()))


def incumbent(name: str, document: Document) -> str:
    """The existing inspection beside the chosen model."""
    return incumbent_html(plant.reports_of(name, document))


def learned(name: str, document: Document) -> str:
    """Learning curves, drawn for the worst plants, in words for all."""
    runs = plant.reports_of(name, document).get("learning", ())
    return section(name, runs, is_drawn=plant.is_drawn(name, document))


PLANT_SECTIONS: tuple[Callable[[str, Document], str], ...] = (
    plant.decision,
    plant.tests,
    plant.models,
    plant.beyond,
    incumbent,
    plant.summary,
    plant.classes,
    plant.confusion,
    plant.confused_pairs,
    plant.by_group,
    plant.verdicts,
    plant.severity,
    plant.curve,
    plant.skill,
    failing.robustness,
    failing.failures,
    trained,
    learned,
    audit.openings,
    audit.splits,
)
"""What is said of a plant, in this order; a section with nothing to say is empty text."""


def write_report(document: Document, path: Path) -> None:
    """The comparison stands at `path` as one HTML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(document), encoding="utf-8")


def report_html(document: Document) -> str:
    """The comparison as one page of HTML.

    Beside what `compare` writes the document may hold `sealed`, what `evaluate` writes, and `pictures`, small ones of
    failures (`jobs.thumbnails`).
    """
    title = f"crossplant: fleet {document['fleet']}"
    banner = ""
    if document["synthetic"]:
        banner = f'<p class="banner">{SYNTHETIC}: no figure here says anything about a real factory.</p>'
    words = (
        f'<p class="small">Plan <code>{text(document["plan"])}</code>, seed {text(document["seed"])}. '
        "All figures are counted per part on the split <code>decide</code>; the sealed test was not opened for them. "
        "Ranges are 95 % intervals over lots, of differences between candidates taken so wide that all of a plant hold "
        "together at 95 %. They leave out what another training would give. Rates are in percent.</p>"
    )
    whole = [words, *(say(document) for say in FLEET_SECTIONS)]
    pages = [_page_of(name, document) for name in document["plants"]]
    return page(title, "\n".join([banner, '<main id="fleet">', *whole, glossary(), "</main>", *pages]))


def _page_of(name: str, document: Document) -> str:
    """What is said of a plant, with links to the fleet and to its neighbours in the order of the fleet."""
    names = list(document["plants"])
    at = names.index(name)
    links = ['<a href="#fleet">the fleet at a glance</a>']
    for words, other in (("before", at - 1), ("after", at + 1)):
        if 0 <= other < len(names):
            links.append(f'{words}: <a href="#plant-{text(names[other])}">{text(names[other])}</a>')
    head = f'<nav aria-label="plants">{" | ".join(links)}</nav><h2>Plant {text(name)}</h2>'
    said = "\n".join(say(name, document) for say in PLANT_SECTIONS)
    return f'<section class="plant" id="plant-{text(name)}">{head}\n{said}\n</section>'
