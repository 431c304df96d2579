"""Exports of data sets that outgrow one machine: streams on workers, with commits that a failure cannot halve."""
