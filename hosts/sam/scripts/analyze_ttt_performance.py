#!/usr/bin/env python3
"""Attempts to adapt by day, and with --suggest-optimizations what to change."""

from __future__ import annotations

import argparse

from acclimate.monitoring import Window, suggest
from acclimate.monitoring.reports import suggestion_lines
from acclimate_sam.collector import get_ttt_metrics_collector


def main() -> None:
    """Print the analysis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suggest-optimizations", action="store_true")
    parser.add_argument("--days", type=float, default=7)
    given = parser.parse_args()
    collector = get_ttt_metrics_collector()
    trends = collector.get_performance_trends(given.days)
    for row in trends["daily_performance"]:
        rate = "-" if row["success_rate"] is None else f"{row['success_rate']:.1%}"
        print(f"{row['date']}: {row['total_attempts']} attempts, success {rate}")
    print(f"trend of success: {trends['trend']}")
    if given.suggest_optimizations:
        found = suggest(collector.store, Window.last(days=given.days))
        for suggestion in found:
            print("\n" + "\n".join(suggestion_lines(suggestion)))
        if not found:
            print("nothing to change: no indicator is beyond its alert bound, or there are too few observations")


if __name__ == "__main__":
    main()
