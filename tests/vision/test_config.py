from __future__ import annotations

import pytest

from acclimate.core import (
    Collapse,
    MaxDrift,
    MaxUpdate,
    NonFinite,
    ProbeAgreement,
    ProbeLoss,
    WorseThanSource,
    default_guards,
)
from acclimate.errors import ConfigError
from acclimate.registry import METHODS, presets
from acclimate.vision.run.config import TTTConfig, own_preset
from acclimate.vision.run.construct import make_guards, make_method, needs_probe, option_names, parse_option


def test_defaults_are_those_of_the_integration_plan() -> None:
    config = TTTConfig()
    assert (config.method, config.steps, config.lr, config.batch_size, config.max_batches) == ("tent", 1, 1e-4, 1, None)
    assert (config.update_filter, config.reset) == ("all", "stream")
    assert (config.mask_prob, config.patch_size, config.mask_value) == (0.6, 16, 0.0)
    assert TTTConfig.resolve({}, kind="detector", preset="none") == TTTConfig()


@pytest.mark.parametrize("method", METHODS.names())
def test_a_method_takes_its_preset_and_reports_the_values(method: str) -> None:
    config = TTTConfig.resolve({"method": method}, kind="classifier")
    assert config.preset == own_preset(method)
    assert config.batch_size == 64
    assert make_method(config).info.name == method


@pytest.mark.parametrize("preset", list(presets()))
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_given_settings_replace_those_of_the_preset(preset: str, kind: str) -> None:
    if kind == "detector" and kind not in METHODS.info(presets()[preset][0]).kinds:
        pytest.skip("for classifiers")
    given = {"lr": 0.5, "batch_size": 3, "update_filter": "all", "max_drift": 0.01}
    config = TTTConfig.resolve(given, kind=kind, preset=preset)  # type: ignore[arg-type]
    assert (config.lr, config.batch_size, config.update_filter, config.max_drift) == (0.5, 3, "all", 0.01)


def test_learning_rates_are_lower_on_a_detector() -> None:
    rates = {kind: TTTConfig.resolve({}, kind=kind).lr for kind in ("classifier", "detector")}  # type: ignore[arg-type]
    assert rates == pytest.approx({"classifier": 1e-3, "detector": 1e-4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"reset": "never"}, "unknown reset"),
        ({"update_filter": "some"}, "unknown update_filter"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"mask_prob": 1.0}, "mask_prob"),
        ({"lora_rank": 0}, "lora_rank"),
    ],
)
def test_bad_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTTConfig(**values)  # type: ignore[arg-type]


def test_bad_presets() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'wild'"):
        TTTConfig.resolve({}, kind="classifier", preset="wild")
    with pytest.raises(ConfigError, match="for method 'sar', not 'tent'"):
        TTTConfig.resolve({"method": "tent"}, kind="classifier", preset="sar_safe")
    with pytest.raises(ConfigError, match="unknown setting 'speed'"):
        TTTConfig.resolve({"speed": 1}, kind="classifier")


@pytest.mark.parametrize(
    ("method", "name", "text", "value"),
    [
        ("sar", "base", "adam", "adam"),
        ("sar", "frozen_layers", "layer4, norm", ("layer4", "norm")),
        ("cotta", "view_count", "4", 4),
        ("tent", "batch_statistics", "false", False),
        ("tent", "betas", "0.8,0.99", (0.8, 0.99)),
        ("bn", "source_strength", "8", 8.0),
        ("mim", "target", "pixels", "pixels"),
    ],
)
def test_method_options_are_converted_to_the_type_of_the_field(
    method: str, name: str, text: str, value: object
) -> None:
    assert parse_option(method, name, text) == value
    config = TTTConfig(method=method, method_options={name: text})  # type: ignore[arg-type]
    assert getattr(make_method(config), name) == value


@pytest.mark.parametrize(
    ("method", "name", "text", "message"),
    [
        ("tent", "fisher", "1", "no option 'fisher'"),
        ("tent", "lr", "1", "no option 'lr'"),
        ("cotta", "view_count", "many", "cannot be 'many'"),
        ("sar", "base", "lion", "choose one of sgd, adam"),
        ("tent", "batch_statistics", "maybe", "true or false"),
    ],
)
def test_bad_method_options(method: str, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_option(method, name, text)


def test_every_methods_options_are_its_fields() -> None:
    assert "entropy_margin" in option_names("eata")
    assert "update" not in option_names("tent")


def test_guards() -> None:
    assert make_guards(TTTConfig(guards=False)) == ()
    guards = make_guards(TTTConfig(max_update=0.3, max_drift=0.4, probe=True, collapse_share=0.8))
    assert guards[:4] == (NonFinite(), MaxUpdate(0.3), MaxDrift(0.4), ProbeLoss())
    assert len(guards) == 6


def test_guards_are_the_default_ones_and_those_given() -> None:
    plain = make_guards(TTTConfig(max_update=0.1, max_drift=0.5))
    assert set(map(type, plain)) == set(map(type, default_guards()))
    assert WorseThanSource() in plain
    more = make_guards(TTTConfig(probe=True, collapse_share=0.8))
    assert {ProbeLoss, Collapse} <= set(map(type, more))
    assert make_guards(TTTConfig(guards=False)) == ()


def test_guards_can_be_added_and_set() -> None:
    guards = make_guards(TTTConfig(guard_values={"probe_agreement": "0.7", "max_update": False, "collapse": 0.9}))
    assert {MaxDrift(0.5), ProbeAgreement(0.7), Collapse(0.9)} <= set(guards)
    assert MaxUpdate not in set(map(type, guards))
    # The guard that may cost a prediction is called last.
    assert isinstance(guards[-1], WorseThanSource)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"magic": True}, "unknown guard 'magic'"),
        ({"non_finite": "3"}, "non_finite takes no value"),
        ({"max_update": "much"}, "cannot be set to 'much'"),
        ({"max_update": "-1"}, "must be positive"),
    ],
)
def test_bad_guards(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_guards(TTTConfig(guard_values=values))


def test_a_guard_that_needs_a_probe_gets_one() -> None:
    assert needs_probe(TTTConfig(guard_values={"probe_agreement": True}))
    assert needs_probe(TTTConfig(probe=True))
    assert not needs_probe(TTTConfig())
    with pytest.raises(ConfigError, match="reset 'sample'"):
        TTTConfig(guard_values={"probe_agreement": True}, reset="sample")
