"""Which record is meant: ids may be shortened to a beginning that only one has."""

from esper.contracts import ConfigError, Library, NotFoundError
from esper.urza.library import SqlLibrary

_SHOWN = 5
_FULL = 64


def blueprint_named(library: Library, text: str) -> str:
    """Return the id of the blueprint that is meant. Raises `NotFoundError` and `ConfigError`."""
    return record_named(library, text, "blueprint")[1]


def kernel_named(library: Library, text: str) -> str:
    """Return the id of the kernel that is meant. Raises `NotFoundError` and `ConfigError`."""
    return record_named(library, text, "kernel")[1]


def record_named(library: Library, text: str, *kinds: str) -> tuple[str, str]:
    """Return the kind and the id of the record that is meant.

    Args:
        library: open.
        text: an id, or the beginning of one.
        kinds: which it may be: "blueprint", "kernel", "report", "outcome", "key" or "run"; all of
            them for none.

    Raises:
        NotFoundError: if there is none.
        ConfigError: if there are several, or if the library is a service and the id is shortened.

    """
    if not isinstance(library, SqlLibrary):
        return _named_to_service(text, kinds)
    found = [(kind, each) for kind, each in library.find_ids(text) if not kinds or kind in kinds]
    exact = [(kind, each) for kind, each in found if each == text]
    described = " or ".join(kinds) or "record"
    if not found:
        raise NotFoundError(f"no {described} has an id that begins with {text!r}")
    if len(exact or found) > 1:
        some = ", ".join(f"{kind} {each}" for kind, each in found[:_SHOWN])
        more = ", …" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{text!r} is the beginning of several ids: {some}{more}; give more of it"
        )
    return (exact or found)[0]


def _named_to_service(text: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    if len(kinds) != 1 or len(text) != _FULL:
        raise ConfigError(
            f"{text!r}: a service takes whole ids only, and not of every kind; give all of it to "
            "`urza blueprints show` or `urza kernels show`"
        )
    return kinds[0], text
