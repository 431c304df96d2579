"""A Ray cluster: one that runs already, or one of this machine alone that nobody else reaches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from acclimate.errors import ConfigError, first_line

_OBJECT_STORE_BYTES: Final = 80 * 2**20
#: Ray's own settings for a cluster of this machine alone. The first makes it listen at 127.0.0.1 instead of the address
#: that other machines reach; the second reports nothing to anybody.
_LOCAL_SETTINGS: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def cluster(processors: int, address: str | None, *, shows_logs: bool = False) -> Iterator[Any]:
    """Yield the module ``ray``, connected to a cluster.

    Args:
        processors: that a cluster of this machine alone gives out.
        address: of a running cluster; None starts one on this machine, which ends with the block.
        shows_logs: what workers write to stderr is shown by this process too.

    Raises:
        ConfigError: it cannot be reached or started.
    """
    before = {name: os.environ.get(name) for name in _LOCAL_SETTINGS}
    if address is None:
        # Read when ray is imported, so that it is imported here.
        os.environ.update(_LOCAL_SETTINGS)
    import ray

    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"address": address}
    if address is None:
        settings = {
            "address": "local",
            "num_cpus": processors,
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    try:
        ray.init(log_to_driver=shows_logs, logging_level=logging.ERROR, configure_logging=True, **settings)
    except Exception as error:
        # Ray raises plain exceptions too, such as where a busy machine does not start it in time.
        where = "on this machine" if address is None else f"at {address}"
        raise ConfigError(f"no Ray cluster {where}: {first_line(error)}") from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    try:
        yield ray
    finally:
        ray.shutdown()
