"""Resolves names on the command line: a built-in name, or `module:function` of the user's own."""

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from esper.contracts import ConfigError, EsperError, NotFoundError
from esper.contracts.words import nearest


def resolve[F: Callable[..., object]](role: str, name: str, builtin: Mapping[str, F]) -> F:
    """Return the built-in called `name`, or import `module:function`.

    The current folder is importable, so `--task mytask:load` finds `mytask.py` beside you.

    Raises:
        NotFoundError: for an unknown name; lists the built-in ones.
        ConfigError: if the module cannot be imported or has no such function.

    """
    if name in builtin:
        return builtin[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        near = nearest(name, builtin)
        hint = f"did you mean {near!r}? There are" if near else "there are"
        raise NotFoundError(
            f"unknown {role} {name!r}; {hint} {', '.join(builtin)}, "
            f"or name your own function as module:function"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{role} {name!r}: cannot import {module_name!r} ({error}); it must be installed or a "
            f"file in {here}"
        ) from error
    except (Exception, SystemExit) as error:  # anything may happen in a module of the user's
        raise failure(role, name, error) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ConfigError(
            f"{role} {name!r}: {module_name} has no function {attribute!r}; it has "
            f"{', '.join(public) or 'none'}"
        )
    return found  # pyright: ignore[reportReturnType]


def call[**P, T](
    role: str, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function that may be the user's own.

    Raises:
        ConfigError: if it raises anything; an `EsperError` passes as it is.

    """
    try:
        return function(*args, **kwargs)
    except EsperError:
        raise
    except (Exception, SystemExit) as error:  # anything may happen in a function of the user's
        raise failure(role, name, error) from error


def failure(role: str, name: str, error: BaseException, when: str = "") -> ConfigError:
    """Return what to say of an error in code of the user's: what, when, and the last line of theirs."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts]
    last = [*frames, *theirs][-1]
    return ConfigError(
        f"{role} {name!r} failed{when} with {type(error).__name__}: {error} "
        f"({Path(last.filename).name}, line {last.lineno}); --debug shows the traceback"
    )
