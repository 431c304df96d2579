"""The skill of the deployment guidelines: one object that takes prompts and says what was adapted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from acclimate.language.answers import AskReport, OnReport
from acclimate.language.decision.gate import Gate
from acclimate.language.engine import Engine
from acclimate.language.examples import Example
from acclimate.language.models.language_model import LanguageModel, load
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.language.training.recipes import RANK_RECOMMENDATIONS, recipe_for


class TestTimeAdaptationSkill:
    """Adapts a language model to the examples in a prompt; the model is loaded when it is first asked.

    Args:
        model: a name that :func:`acclimate.language.models.language_model.load` knows, or a loaded model.
        environment: a key of ``CONFIDENCE_THRESHOLDS``.
        adapter_manager: keeps trained adapters; None makes one.
        on_report: called with every report.

    Attributes:
        skill_name: ``TestTimeAdaptation``.
    """

    skill_name: ClassVar[str] = "TestTimeAdaptation"
    __test__: ClassVar[bool] = False

    def __init__(
        self,
        model: str | LanguageModel = "smollm2",
        *,
        environment: str = "production",
        adapter_manager: AdapterManager | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        # An unknown environment is refused now, not at the first request.
        self.confidence_threshold: float = Gate(environment=environment).confidence_threshold
        self.environment = environment
        self.adapter_manager = AdapterManager() if adapter_manager is None else adapter_manager
        self._model, self._on_report = model, on_report
        self._engine: Engine | None = None

    @property
    def lora_rank(self) -> int:
        """The rank of the adapters, where the examples do not ask for another."""
        recipe = recipe_for(self._model) if isinstance(self._model, str) else self._model.recipe
        return recipe.rank or RANK_RECOMMENDATIONS["medium_patterns"]

    @property
    def engine(self) -> Engine:
        """The engine, made when it is first needed."""
        if self._engine is None:
            model = load(self._model) if isinstance(self._model, str) else self._model
            self._engine = Engine(
                model, environment=self.environment, cache=self.adapter_manager, on_report=self._on_report
            )
        return self._engine

    def ask(self, prompt: str, **how: Any) -> AskReport:
        """Return the answer to a prompt; see :meth:`acclimate.language.engine.Engine.ask`."""
        return self.engine.ask(prompt, **how)

    def adapt(
        self, examples: Iterable[Example | Mapping[str, Any] | Sequence[str]], query: str, **how: Any
    ) -> AskReport:
        """Return the answer to ``query`` in the way of ``examples``; see :meth:`Engine.answer`."""
        return self.engine.answer(examples, query, **how)
