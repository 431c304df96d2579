"""Every architecture is asked with adaptation, or refused in one line before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acclimate.errors import TTTNotSupportedError
from acclimate.language import Engine, Recipe, load, train
from acclimate.language.examples import as_examples
from tests.language.architectures import ADAPTED, REFUSED, saved
from tests.language.models import digest

EXAMPLES = as_examples([(word, word.upper()) for word in ("sun", "sea", "fox", "hen")])
ROOT = Path(__file__).parents[2]


#: Those in which something is unusual; the others are like one of them.
UNUSUAL = ("Llama", "Falcon", "Gemma 2", "Granite", "Mamba", "Mixtral", "GPT-2")


@pytest.mark.parametrize("name", [n if n in UNUSUAL else pytest.param(n, marks=pytest.mark.slow) for n in ADAPTED])
def test_an_architecture_is_adapted(name: str, tmp_path: Path) -> None:
    model = load(saved(name, tmp_path), dtype=torch.float32)
    before = digest(model)
    report = Engine(model, max_answer_tokens=2).answer(EXAMPLES, "owl", policy="always")
    assert (report.status, report.warnings) == ("adapted", ())
    adapter = train(model, [EXAMPLES], Recipe(rank=4, steps=4, orderings=1, learning_rate=3e-2, share_adapted=1.0))
    assert adapter.losses[-1] < adapter.losses[0]
    # Every layer that was given weights has learned: none is read without being called.
    assert all(bool(up.abs().max() > 0) for _, up in adapter.weights.values())
    # The reported loss is that of the model's own logits.
    row = model.encoder.row([*EXAMPLES], answers=[-1, 0, 0, 0])
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([row.tokens])).logits[0].float()
    at = torch.tensor([i for i, mark in enumerate(row.answer) if mark >= 0])
    wanted = torch.nn.functional.cross_entropy(logits[at - 1], torch.tensor(row.tokens)[at])
    assert adapter.losses[0] == pytest.approx(float(wanted), rel=1e-4)
    assert digest(model) == before


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_is_refused_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(TTTNotSupportedError, match=REFUSED[name][1]) as refused:
        load(saved(name, tmp_path))
    assert "\n" not in str(refused.value)


def test_the_documentation_names_them() -> None:
    page = (ROOT / "docs/howto/language_models.md").read_text()
    assert not [name for name in (*ADAPTED, *REFUSED) if name not in page]
