"""A Ray cluster: one that runs already, or one of this machine alone that nobody else reaches."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from acclimate.errors import ConfigError, first_line

_HOST_AND_PORT: Final = re.compile(r"\[?([^/\[\]]+?)\]?:(\d+)")
_CONNECT_S: Final = 5.0
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
    if address is not None:
        _refuse_unreachable(ray, address)
    else:
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
        if address is None:
            raise ConfigError(f"no Ray cluster on this machine: {first_line(error)}") from error
        # Ray says no more where a token is missing than where nobody listens.
        raise ConfigError(
            f"no Ray cluster at {address}: {first_line(error)}; check the address, and set RAY_AUTH_MODE=token if the "
            "cluster was started with a token"
        ) from error
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


def _refuse_unreachable(ray: Any, address: str) -> None:
    """Refuse an address at which nobody listens, which Ray tries for many minutes.

    Raises:
        ConfigError: nobody does.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        return
    host, port = found[1], int(found[2])
    # Ray replaces the loopback address by that of this machine, unless it is told to stay there.
    hosts = [host, ray.util.get_node_ip_address()] if host in ("127.0.0.1", "localhost") else [host]
    problems: list[OSError] = []
    for name in hosts:
        try:
            socket.create_connection((name, port), timeout=_CONNECT_S).close()
        except OSError as error:
            problems.append(error)
        else:
            return
    raise ConfigError(
        f"no Ray cluster at {address}: {first_line(problems[0])}; check the address, or leave it out to start one on "
        "this machine"
    ) from problems[0]
