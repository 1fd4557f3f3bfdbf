"""The report's own words, explained at its foot to whoever has not read the documentation."""

from __future__ import annotations

from jobs.cells import text

WORDS = {
    "frozen": "a head alone, on the pretrained features: the floor that every other model has to beat",
    "own": "learned from this plant's images; pooled: from all plants that share classes; warm: from the pooled model",
    "sister": "learned from this plant's images, starting from another plant's own model, its donor",
    "average": "one model whose weights are the mean of others'",
    "ensemble": "several models asked at once: their mean, a weighted mean, or stacked (a product of powers)",
    "without": "a model that has never seen the plant: what a new plant would get",
    "normality": "the distance to good parts, which needs no labelled defect and names no class",
    "incumbent": "the inspection that stands at the plant already, people or rules",
    "decide": "the parts that models are compared on, and were not learned from; sealed test: parts that nothing may "
    "look at but `evaluate`, a counted number of times",
    "macro-F1": "the mean over classes of F1, each counting alike; AUC: how well defects are ranked above good parts",
    "escape": "a bad part that passes; false alarm: a good part that is rejected; review: a person looks",
    "cheapest to serve": "fewest stages of a branch an image; a head costs next to nothing beside the shared trunk",
    "nat": "the unit of log-likelihood: of 0.1 more, a true class is called 10 % more probable",
}


def glossary() -> str:
    """The words of the report."""
    said = "".join(f"<dt>{text(word)}</dt><dd>{text(words)}</dd>" for word, words in WORDS.items())
    return f'<h2>Words of this report</h2><dl class="small">{said}</dl>'
