#!/usr/bin/env python3
"""Print the report of the last week, and write it as one HTML file with charts."""

from __future__ import annotations

import argparse
from pathlib import Path

from acclimate.errors import StoreError
from acclimate.monitoring import as_html, as_text, make_report
from acclimate.output_files import write_output
from acclimate_sam.collector import get_ttt_metrics_collector


def main() -> None:
    """Print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("logs/ttt_weekly_report.html"))
    given = parser.parse_args()
    made = make_report(get_ttt_metrics_collector().store, "weekly")
    print(as_text(made))
    write_output(given.output, as_html(made), error=StoreError)
    print(f"report: {given.output}")


if __name__ == "__main__":
    main()
