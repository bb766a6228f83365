"""What the page costs: its first paint, how soon a click is answered, and an edit beside the command line's.

    python benchmarks/page.py [MODEL] [--facts 4] [--rounds 3]

The server and the command line take turns, each in a process of its own, with the same number of threads. A browser,
Chromium of the system, is driven by playwright. The second moment is read before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from factpatch.data import demo_facts, save_facts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = (("Teach", "#use-examples"), ("Ask", "#ask"), ("History", "#undo"), ("Take away", "#prepare"))
"""By tab, what is clicked to see how soon something answers."""
ANSWERED = """click => new Promise(resolve => {
  const start = performance.now();
  const seen = new MutationObserver(() => {
    seen.disconnect();
    requestAnimationFrame(() => resolve(performance.now() - start));
  });
  seen.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
  document.querySelector(click).click();
})"""
"""Clicks, and returns the milliseconds until the next frame in which something has changed."""


def edit_in_seconds(model: str, facts: Path, folder: Path) -> dict[str, float]:
    """An edit on the command line: seconds of the edit, and with asking before and after."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "factpatch", "edit", model, "--facts", str(facts), "--report", str(report)]
    subprocess.run([*command, "--out", str(folder / "p.safetensors")], check=True, capture_output=True)
    seconds = json.loads(report.read_text("utf-8"))["seconds"]
    asking = seconds["verify_before"] + seconds["verify_after"]
    # Not what the page has done before, or does only when asked; reading the second moment from the cache it does too.
    rest = ("load", "perplexity", "verify_before", "verify_after", "total")
    editing = sum(took for stage, took in seconds.items() if stage not in rest)
    return {"editing": editing, "with asking": editing + asking}


class Server:
    """The page's server, in a process of its own."""

    def __init__(self, model: str, folder: Path) -> None:
        command = [sys.executable, "-m", "factpatch", "page", model, "--port", "0", "--data", str(folder / "data")]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        found = re.search(r"http://\S+/", self.process.stdout.readline())
        assert found
        self.address = found[0]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def first_paint(browser: Any, address: str) -> dict[str, float]:
    """Seconds until a new visitor sees something, and until the page is ready."""
    context = browser.new_context()
    page = context.new_page()
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#status .status")
    ready = time.perf_counter() - start
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
    context.close()
    return {"first paint": painted, "ready": ready}


def edit_on_page(browser: Any, address: str, facts: Path) -> dict[str, float]:
    """An edit on the page: seconds from the click to the results; and how soon clicks are answered, in ms."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(600_000)
    page.goto(address)
    page.wait_for_selector("#status .status")
    with page.expect_file_chooser() as chosen:
        page.click("#upload-facts")
    chosen.value.set_files(facts)
    page.wait_for_selector("#checked mark")
    start = time.perf_counter()
    found = {"ms until a click on Teach shows": page.evaluate(ANSWERED, "#edit")}
    page.wait_for_selector("#results .card")
    found["with asking"] = time.perf_counter() - start
    for tab, click in CLICKS:
        page.get_by_role("tab", name=tab, exact=True).first.click()
        if tab == "Ask":
            page.fill("#ask-text textarea", "The capital of France is")
        page.wait_for_timeout(1000)
        found[f"ms until a click on {click} shows"] = page.evaluate(ANSWERED, click)
        page.wait_for_timeout(5000)
    context.close()
    return found


def main() -> None:
    """Measure, and print a table."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(where: str, measured: dict[str, float]) -> None:
        for name, value in measured.items():
            found.setdefault(f"{where}, {name}", []).append(value)
            print(f"{where}, {name}: {value:.3f}", flush=True)

    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder, facts = Path(place), Path(place) / "facts.json"
        save_facts(demo_facts()[: given.facts], facts)
        edit_in_seconds(given.model, facts, folder)  # reads the second moment
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(given.rounds):
            server = Server(given.model, folder)
            first_paint(browser, server.address)  # the server is warm from here on
            note("page", first_paint(browser, server.address))
            note("page", edit_on_page(browser, server.address, facts))
            server.close()
            note("command line", edit_in_seconds(given.model, facts, folder))
        browser.close()
    for name, values in found.items():
        print(f"{name:<32} {median(values):8.3f}   ({', '.join(f'{value:.3f}' for value in values)})")
    ratio = median(found["page, with asking"]) / median(found["command line, with asking"])
    print(f"an edit on the page takes {100 * (ratio - 1):+.1f} % of one on the command line")


if __name__ == "__main__":
    main()
