"""An experiment whose arms are assigned by the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from acclimate.errors import ConfigError
from acclimate.serve.schemas import TTTOptions

if TYPE_CHECKING:
    from acclimate.monitoring import Arm, Experiment, Store

_MODES: Final[Mapping[str, str]] = {"gate": "auto", "always": "force", "never": "off"}
#: What an arm may set here; ``policy`` as ``acclimate ask`` names it.
_SETTINGS: Final = frozenset({"policy", "votes", "steps", "rank"})


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of one request.

    Attributes:
        experiment, arm: their names.
        unit: the request or user that was assigned.
        options: that the arm answers with.
    """

    experiment: str
    arm: str
    unit: str
    options: TTTOptions


class Assigner:
    """Assigns requests to the arms of one experiment.

    A request that says itself how it is to be adapted takes no part, and neither does one whose user is not known where
    users are assigned.

    Args:
        experiment: that runs.

    Raises:
        ConfigError: it was stopped, or an arm sets what the server cannot.
    """

    def __init__(self, experiment: Experiment) -> None:
        if experiment.stopped_at is not None:
            raise ConfigError(f"experiment {experiment.name!r} was stopped at {experiment.stopped_at}")
        self._experiment = experiment
        self._options = {arm.name: _options(arm) for arm in experiment.arms}

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self._experiment.name

    @classmethod
    def of(cls, store: Store, name: str) -> Assigner:
        """Return the assigner of the experiment of this name.

        Raises:
            StoreError: there is none.
            ConfigError: see the class.
        """
        from acclimate.monitoring.experiments import get

        return cls(get(store, name))

    def assigned(self, options: TTTOptions | None, *, user: str, request_id: str) -> Assignment | None:
        """Return the arm of a request, or None where it takes no part.

        Args:
            options: that the request came with.
            user: of the request, or its API key; empty where neither is known.
            request_id: of the request.
        """
        unit = user if self._experiment.assigned_by == "user" else request_id
        if options is not None or not unit:
            return None
        arm = self._experiment.arm_for(unit)
        return Assignment(self._experiment.name, arm.name, unit, self._options[arm.name])


class ActiveExperiment:
    """The experiment that the server assigns requests to, which can change while it runs.

    Args:
        assigner: to begin with; None assigns none.
    """

    def __init__(self, assigner: Assigner | None) -> None:
        self._assigner = assigner

    @property
    def name(self) -> str | None:
        """The name of the experiment, or None."""
        return None if self._assigner is None else self._assigner.name

    def begin(self, assigner: Assigner) -> None:
        """Assign requests from now on."""
        self._assigner = assigner

    def end(self) -> None:
        """Assign no more requests."""
        self._assigner = None

    def assigned(self, options: TTTOptions | None, *, user: str, request_id: str) -> Assignment | None:
        """Return the arm of a request; see :meth:`Assigner.assigned`."""
        return None if self._assigner is None else self._assigner.assigned(options, user=user, request_id=request_id)


def _options(arm: Arm) -> TTTOptions:
    if unknown := set(arm.settings) - _SETTINGS:
        raise ConfigError(
            f"arm {arm.name!r} sets {sorted(unknown)[0]!r}; served arms may set {', '.join(sorted(_SETTINGS))}"
        )
    given: dict[str, Any] = {name: value for name, value in arm.settings.items() if name != "policy"}
    policy = arm.settings.get("policy", "gate")
    if policy not in _MODES:
        raise ConfigError(f"arm {arm.name!r}: policy must be one of {', '.join(_MODES)}, got {policy!r}")
    try:
        return TTTOptions(mode=_MODES[policy], **given)
    except ValueError as error:
        raise ConfigError(f"arm {arm.name!r} has settings that cannot be used: {error}") from error
