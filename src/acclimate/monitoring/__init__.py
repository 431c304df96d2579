"""Monitoring: records of requests, indicators, health checks, alerts, experiments, suggestions, reports, audit log.

It imports neither torch nor the pipelines: reports of requests arrive as plain values.
"""

from acclimate.extras import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
