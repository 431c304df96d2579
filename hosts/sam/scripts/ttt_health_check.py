#!/usr/bin/env python3
"""TTT health check: prints every indicator of the last 24 hours; exit code 1 where one alerts."""

from __future__ import annotations

import logging
import sys

from sam.monitoring.ttt_metrics import get_ttt_metrics_collector

from acclimate.monitoring import Window, check


def run_health_check() -> bool:
    """Print every indicator and return whether none alerts."""
    health = check(get_ttt_metrics_collector().store, Window.last(days=1))
    for measured in health.measurements.values():
        print(measured.line_with_state)
    for line in health.alerts:
        print(f"ALERT {line}", file=sys.stderr)
    return not health.alerts


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(0 if run_health_check() else 1)
