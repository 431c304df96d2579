#!/usr/bin/env python3
"""TTT health check of the last 24 hours. Exit code 0: healthy; 1: an indicator alerts; 2: too little to tell."""

from __future__ import annotations

import logging
import sys

from acclimate.errors import InputError
from acclimate.monitoring import Window, check
from acclimate_sam.collector import get_ttt_metrics_collector


def run_health_check() -> int:
    """Print the verdict and every indicator, and return the exit code."""
    try:
        health = check(get_ttt_metrics_collector().store, Window.last(days=1))
    except InputError as error:
        print(f"cannot tell: {error}", file=sys.stderr)
        return 2
    print(health.summary)
    for measured in health.measurements.values():
        print(measured.line_with_state)
    for note in health.notes:
        print(f"note: {note}")
    for line in health.alerts:
        print(f"ALERT {line}", file=sys.stderr)
    return health.exit_code


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(run_health_check())
