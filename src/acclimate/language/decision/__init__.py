"""Whether the adapted model answers: held-out evidence, its calibration, and the gate."""
