"""What every contract shares: frozen, strict about unknown keys, aware UTC times, canonical JSON.

The models in the other modules inherit from `Contract`; content hashes (blueprint ids, the event
chain, signed statements) are sha256 over `canonical_json`.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from esper.contracts.validators import validate_seed_id


class Contract(BaseModel):
    """Base of every shared model: immutable, and an unknown key is an error.

    Non-finite floats are legal values (a diverged seed reports them) and travel through JSON as the
    strings `"NaN"`, `"Infinity"` and `"-Infinity"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random id (UUID4, RFC 9562); draws nothing from any seeded generator."""
    return _uuid4(os.urandom(16).hex())


def new_ids(count: int) -> list[str]:
    """Return so many random ids, asking the system for randomness once."""
    digits = os.urandom(16 * count).hex()
    return [_uuid4(digits[start : start + 32]) for start in range(0, 32 * count, 32)]


def _uuid4(digits: str) -> str:
    """Write 32 random hexadecimal digits as a UUID; faster than `uuid.uuid4()`: messages have one each."""
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"time {value.isoformat()} has no representation in UTC") from error


type UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""An aware time, converted to UTC; a naive one is refused."""

type SeedId = Annotated[tuple[int, int], BeforeValidator(validate_seed_id)]
"""`(layer_id, seed_idx)`, both non-negative."""

type Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 digest in lower-case hexadecimal."""


_write_canonically = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode
"""Made once: `json.dumps` would make an encoder each time, which takes longer than to write a record."""


def canonical_json(value: Contract | dict[str, Any]) -> bytes:
    """Serialise to the one byte string that equal content always has.

    Keys sorted, no white space, UTF-8, no non-finite number literals (compare RFC 8785, whose number
    formatting Python's `repr` of floats already follows for the ranges used here).
    """
    data = json.loads(value.model_dump_json()) if isinstance(value, Contract) else value
    return _write_canonically(data).encode()


def sha256_hex(data: bytes) -> str:
    """Return the sha256 digest of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()
