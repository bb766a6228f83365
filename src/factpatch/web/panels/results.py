"""Before and after: what the original and the edited model say of each fact, and what is to be done if that fails."""

from __future__ import annotations

from factpatch.evaluation.verify import plain_summary
from factpatch.web.cards import cards
from factpatch.web.desk import Desk
from factpatch.web.panels.base import Page, html
from factpatch.web.view import shown


def results_panel(page: Page) -> None:
    """Make the cards of the facts in force."""
    results = html("results")
    page.show([results], lambda desk: [shown_results(desk)])


def shown_results(desk: Desk) -> str:
    """What both models say of the facts in force, as HTML."""
    verification = desk.results.verification
    summary = "" if verification is None else plain_summary(verification, seconds=desk.results.seconds)
    return shown("results", cards=cards(verification), summary=summary[:1].upper() + summary[1:])
