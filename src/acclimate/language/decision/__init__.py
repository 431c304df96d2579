"""The decision which model answers: evidence from held-out examples, its calibration, and the gate."""
