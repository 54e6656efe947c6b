"""Write the tables and figures of docs/results.md, and the table of the README, from the tables in docs/results.

python tools/write_results.py

Each part of a page between `<!-- table: NAME -->` and `<!-- end -->` is replaced. A part whose data are not there yet
is left as it is.
"""

import re
from collections.abc import Callable

from results.comparison_tables import (
    across_table,
    annotator_table,
    artefacts_table,
    contrasts_table,
    decided_pairs_table,
    headline_table,
    losses_table,
    other_scores_table,
    rates_table,
    rules_table,
)
from results.data import DATASETS, DOCS, TABLES, NotMeasured
from results.reliability_tables import handicaps_table, naive_table, needs_table, seeds_table, self_table
from results.training_tables import curve_table, datasets_table, hippocampus_table, spent_table, transforms_table

PAGE, README = DOCS / "results.md", DOCS.parent / "README.md"


def page_tables() -> dict[str, Callable[[], str]]:
    tables: dict[str, Callable[[], str]] = {f"losses {name}": lambda name=name: losses_table(name) for name in DATASETS}
    tables |= {f"scores {name}": lambda name=name: other_scores_table(name) for name in DATASETS}
    return tables | {
        "headline": headline_table,
        "annotator": annotator_table,
        "contrasts": contrasts_table,
        "across": across_table,
        "pairs": decided_pairs_table,
        "rules": rules_table,
        "rates": rates_table,
        "artefacts": artefacts_table,
        "needs": needs_table,
        "naive": naive_table,
        "self": self_table,
        "seeds": seeds_table,
        "handicaps": handicaps_table,
        "hippocampus": hippocampus_table,
        "curve": curve_table,
        "trainings": datasets_table,
        "transforms": transforms_table,
        "spent": spent_table,
    }


def filled(page: str) -> str:
    """The page with all tables whose data are there."""
    for name, make in page_tables().items():
        begin = f"<!-- table: {name} -->"
        if begin not in page:
            continue
        try:
            table = make()
        except NotMeasured:
            continue
        pattern = re.compile(re.escape(begin) + r".*?<!-- end -->", re.DOTALL)
        page = pattern.sub(lambda _match, text=f"{begin}\n\n{table}\n\n<!-- end -->": text, page)
    return page


def main() -> None:
    from results.figures import FIGURES  # matplotlib is not needed for the tables

    for page in (PAGE, README):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, draw in FIGURES.items():
        try:
            draw(TABLES / name)
        except NotMeasured as missing:
            print(f"{name} is not drawn, since {missing} is not measured yet")


if __name__ == "__main__":
    main()
