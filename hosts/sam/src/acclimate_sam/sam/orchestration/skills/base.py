"""What every skill has."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from sam.orchestration.uif import SAM_UIF


class BaseSkillModule(ABC):
    """A step that takes a UIF and returns it with what it found.

    Attributes:
        skill_name, skill_version, skill_description, skill_category: what it is.
        required_inputs, optional_inputs, output_keys: keys of ``intermediate_data`` that it reads and writes.
    """

    skill_name: ClassVar[str] = "BaseSkill"
    skill_version: ClassVar[str] = "1.0.0"
    skill_description: ClassVar[str] = ""
    skill_category: ClassVar[str] = "core"
    required_inputs: ClassVar[list[str]] = []
    optional_inputs: ClassVar[list[str]] = []
    output_keys: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.logger = logging.getLogger(type(self).__module__)

    @abstractmethod
    def execute(self, uif: SAM_UIF) -> SAM_UIF:
        """Do the skill's work."""

    def can_execute(self, uif: SAM_UIF) -> bool:
        """Say whether everything that the skill needs is there."""
        return all(key in uif.intermediate_data for key in self.required_inputs)

    def get_skill_info(self) -> dict[str, Any]:
        """Return what the skill is and needs."""
        names: tuple[str, ...] = ("skill_name", "skill_version", "skill_description", "skill_category")
        names += ("required_inputs", "optional_inputs", "output_keys")
        return {name: getattr(self, name) for name in names}
