#!/usr/bin/env python3
"""Results of experiments: TTT against ICL by test, and the effect with its interval where a design was stored first."""

from __future__ import annotations

import argparse

from sam.monitoring.ttt_metrics import get_ttt_metrics_collector

from acclimate.monitoring import Window
from acclimate.monitoring.experiments import list_experiments, recent_tests, report
from acclimate.monitoring.reports import experiment_lines


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--week", action="store_true", help="only tests with results of the last seven days")
    given = parser.parse_args()
    collector = get_ttt_metrics_collector()
    designed = {experiment.name for experiment in list_experiments(collector.store)}
    tests = recent_tests(collector.store, Window.last(days=7 if given.week else 36500))
    for test_id in tests:
        if test_id in designed:
            print("\n".join(experiment_lines(report(collector.store, test_id))))
            continue
        print(f"test {test_id}")
        for name, values in collector.get_ab_test_results(test_id).items():
            print(f"  {name}: {values}")
    if not tests:
        print("no results of experiments" + (" in the last seven days" if given.week else ""))


if __name__ == "__main__":
    main()
