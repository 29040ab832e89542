"""What all contracts share: frozen, strict, aware UTC, one canonical form."""

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from esper.contracts import (
    BlueprintSubmitted,
    CheckResult,
    HealthSignal,
    KernelQuery,
    KernelSignature,
    OonaMessage,
    SiteKind,
    canonical_json,
    errors,
    new_id,
    new_ids,
    sha256_hex,
    utc_now,
)
from esper.contracts.errors import EsperError
from esper.contracts.schemas import contract_models


@pytest.mark.parametrize("model", contract_models(), ids=lambda model: model.__name__)
def test_every_contract_is_frozen_and_refuses_unknown_keys(model: type[HealthSignal]) -> None:
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "forbid"


def test_a_field_cannot_be_changed() -> None:
    signature = KernelSignature(kind=SiteKind.FEATURES, features=8)
    with pytest.raises(ValidationError, match="frozen"):
        signature.features = 9  # pyright: ignore[reportAttributeAccessIssue]


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValidationError, match=r"featurs\n.*Extra inputs are not permitted"):
        KernelSignature.model_validate({"kind": "features", "features": 8, "featurs": 8})


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        CheckResult("name", True, 0.0, 0.0, "")  # pyright: ignore[reportCallIssue]


def test_a_naive_time_is_refused() -> None:
    naive = datetime(2025, 1, 1, 12, 0)  # noqa: DTZ001 - the point of the test
    with pytest.raises(ValidationError, match="timezone"):
        OonaMessage.model_validate(message_fields() | {"timestamp": naive})
    with pytest.raises(ValidationError, match="timezone"):
        OonaMessage.model_validate(message_fields() | {"timestamp": "2025-01-01T12:00:00"})


def test_an_aware_time_is_converted_to_utc() -> None:
    local = datetime(2025, 1, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    stamp = OonaMessage.model_validate(message_fields() | {"timestamp": local}).timestamp
    assert stamp == local
    assert stamp.tzinfo is UTC
    assert stamp.hour == 10
    assert utc_now().tzinfo is UTC


def test_non_finite_numbers_travel_as_words() -> None:
    check = CheckResult(name="n", passed=False, value=float("nan"), limit=float("-inf"), detail="")
    text = check.model_dump_json()
    assert '"value":"NaN"' in text
    assert '"limit":"-Infinity"' in text
    assert CheckResult.model_validate_json(text).model_dump_json() == text


def test_canonical_json_has_one_golden_form() -> None:
    signature = KernelSignature(kind=SiteKind.FEATURES, features=8)
    expected = b'{"device":"cpu","dtype":"float32","features":8,"kind":"features"}'
    assert canonical_json(signature) == expected
    assert canonical_json({"b": "é", "a": [1, None]}) == '{"a":[1,null],"b":"é"}'.encode()


def test_canonical_json_refuses_numbers_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"loss": float("nan")})


def test_equal_queries_have_one_canonical_form_in_every_process() -> None:
    tags = [f"tag{index}" for index in range(20)]
    text = KernelQuery(required_tags=frozenset(tags)).model_dump_json()
    assert ",".join(f'"{tag}"' for tag in sorted(tags)) in text


def test_ids_are_random_and_digests_are_sha256() -> None:
    assert uuid.UUID(new_id()).version == 4
    assert new_id() != new_id()
    many = new_ids(100)
    assert len(set(many)) == 100
    for text in many:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert new_ids(0) == []
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_hex(b"") == empty


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_only_lower_case_sha256_digests_are_ids(digest: str) -> None:
    signature = KernelSignature(kind=SiteKind.FEATURES, features=8)
    with pytest.raises(ValidationError, match="pattern"):
        BlueprintSubmitted(blueprint_id=digest, signatures=(signature,))


def test_every_error_is_an_esper_error_and_a_builtin_one() -> None:
    children = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, EsperError) and value is not EsperError
    ]
    assert len(children) == 18
    for child in children:
        assert issubclass(child.__bases__[0], EsperError)
        *ours, exception, _, _ = child.__mro__
        assert exception is Exception
        assert any(base.__module__ == "builtins" for base in ours)


def message_fields() -> dict[str, object]:
    return {
        "sender_id": "test",
        "trace_id": "run",
        "topic": "system.events.epoch",
        "payload": {},
    }
