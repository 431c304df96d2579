"""Every exception that acclimate raises on purpose.

::

    AcclimateError
    ├── InputError                 what the user gave cannot be used (exit code 2 at the command line)
    │   ├── ConfigError            a setting is unknown, out of range, or contradicts another
    │   ├── DataError              images, lists, annotations or predictions that cannot be read
    │   ├── CheckpointError        weights that cannot be loaded, or may not be (pickle)
    │   ├── EmptySelectionError    no parameter of the model matches the filter of trainable parameters
    │   ├── TTTNotSupportedError   the adapter or the model cannot be adapted with this method
    │   ├── StoreError             the metrics store cannot be opened, or lacks what was asked for
    │   └── MissingExtraError      an optional package is not installed
    ├── SessionError               a session was used outside its ``with`` block
    ├── DeliveryError              an alert did not reach its receiver
    └── CancelledError             a request was cancelled before it was answered
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class AcclimateError(Exception):
    """The root of every error that acclimate raises on purpose."""


class InputError(AcclimateError):
    """What the user gave cannot be used; the message says what, its value, and the remedy."""


class ConfigError(InputError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(InputError):
    """Images, lists, annotations or predictions that cannot be read."""


class CheckpointError(InputError):
    """Weights that cannot be loaded, or that may not be loaded without an explicit permission."""


class EmptySelectionError(InputError):
    """No parameter of the model matches the filter of trainable parameters."""


class TTTNotSupportedError(InputError):
    """The adapter or the model cannot be adapted with the method that was asked for."""


class StoreError(InputError):
    """The metrics store cannot be opened or upgraded, or does not hold what was asked for."""


class MissingExtraError(InputError, ImportError):
    """An optional package is not installed; the message names the extra that brings it.

    Attributes:
        purpose: what needs the package.
        distribution: the package's name for pip.
        extra: the extra of acclimate that brings it.
    """

    def __init__(self, *, purpose: str, distribution: str, extra: str) -> None:
        super().__init__(
            f'{purpose} needs {distribution}, which is not installed; run: pip install "acclimate[{extra}]"'
        )
        self.purpose = purpose
        self.distribution = distribution
        self.extra = extra


class SessionError(AcclimateError, RuntimeError):
    """A session was used before it was entered or after it was left."""


class DeliveryError(AcclimateError):
    """An alert did not reach its receiver."""


class CancelledError(AcclimateError):
    """A request was cancelled before it was answered."""
