#!/usr/bin/env python3
"""Results of experiments: TTT against ICL by test, and the effect with its interval where a design was stored first."""

from __future__ import annotations

import argparse

from acclimate.monitoring import Window
from acclimate.monitoring.experiments import OutcomesReport, find_report, recent_tests
from acclimate.monitoring.reports import experiment_lines, outcome_lines
from acclimate.monitoring.window import LONGEST_DAYS
from acclimate_sam.collector import get_ttt_metrics_collector


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--week", action="store_true", help="only tests with results of the last seven days")
    given = parser.parse_args()
    collector = get_ttt_metrics_collector()
    tests = recent_tests(collector.store, Window.last(days=7 if given.week else LONGEST_DAYS))
    for test_id in tests:
        found = find_report(collector.store, test_id)
        print("\n".join(outcome_lines(found) if isinstance(found, OutcomesReport) else experiment_lines(found)))
    if not tests:
        print("no results of experiments" + (" in the last seven days" if given.week else ""))


if __name__ == "__main__":
    main()
