"""`urza keys`: makes keys, says who signs and who judges, and seals what a kernel is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from esper.contracts import ConfigError, NotFoundError, ValidatorKey
from esper.urza import keyring
from esper.urza.commands.finding import kernel_named
from esper.urza.commands.session import (
    Json,
    Yes,
    command,
    confirm,
    console,
    opened,
    opened_here,
    print_json,
    print_table,
)
from esper.urza.exporting import seal_library
from esper.urza.library import SqlLibrary
from esper.urza.sealing import seal_kernel
from esper.urza.signing import (
    PASSWORD_VARIABLE,
    SigningKey,
    generate_key,
    key_id_of,
    load_key,
    password_from_environment,
    read_public_key,
)
from esper.urza.trust import Record

HELP = f"""
Make keys, say whose signatures count, and sign what a kernel is.

Signing keys sign manifests in the library's name; validators' keys endorse kernels. Private keys
are files that only you can read, never in the library; a password for them may be in
{PASSWORD_VARIABLE}.

\b
  urza keys generate library.key
  urza keys enroll library.key.pub --signing --name "our library"
  urza keys sign 3f2a --key library.key > kernel.json
  urza keys verify kernel.json --trust library.key.pub --artifact kernel.safetensors
  urza keys sign --key library.key > today.json       what the library holds, where its chains end
  urza keys rotate --old library.key --new library-2027.key --name 2027
  urza keys revoke 3f2a --key library-2027.key --reason "the laptop was stolen"
"""

app = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option("--key", help="The private key that signs.")]
_KeyId = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]
_Name = Annotated[str, typer.Option(help="Of the key, for people.")]


def load(path: Path) -> SigningKey:
    """Return the private key in a file, with the password of the environment."""
    return load_key(path, password=password_from_environment())


@app.command()
@command
def generate(
    file: Annotated[
        Path, typer.Argument(help="For the private key; FILE.pub gets the public one.")
    ],
    as_json: Json = False,
) -> None:
    """Make a key. Needs no library; `enroll` puts it on the record of one."""
    key = generate_key(file, password=password_from_environment())
    if as_json:
        print_json({"key_id": key.key_id, "public_key": key.public_key, "file": str(file)})
        return
    out = console()
    out.print(f"made key {key.key_id[:12]}: keep {file} to yourself,", markup=False)
    out.print(f"give {file}.pub ({key.public_key}) to who verifies", markup=False)


@app.command("list")
@command
def list_keys(as_json: Json = False) -> None:
    """List the signing keys and the validators' keys of the library."""
    with opened_here() as (library, _):
        rows = _described(*_keys(library))
    if as_json:
        print_json(rows)
    elif not rows:
        console().print("no keys; `urza keys generate` makes one")
    else:
        print_table(
            ["KEY", "FOR", "NAME", "STATUS"],
            [
                [row["key_id"][:12], row["role"], escape(row["name"]), escape(row["status"])]
                for row in rows
            ],
        )


@app.command()
@command
def show(key_id: _KeyId, as_json: Json = False) -> None:
    """Show one key, of either kind."""
    with opened_here() as (library, _):
        rows = _described(*_keys(library))
    wanted = _named(key_id, [row["key_id"] for row in rows])
    for row in (row for row in rows if row["key_id"] == wanted):
        if as_json:
            print_json(row)
            continue
        for name, value in row.items():
            console().print(f"[dim]{name.replace('_', ' ')}[/] {escape(value)}")


@app.command()
@command
def enroll(
    public_key: Annotated[str, typer.Argument(help="A file, or 64 hexadecimal digits.")],
    name: _Name,
    signing: Annotated[
        bool, typer.Option("--signing", help="It signs manifests; else it endorses kernels.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a key sign for the library, or endorse kernels; again is harmless."""
    public = read_public_key(public_key)
    if signing:
        with opened_here() as (library, _):
            keyring.enroll_key(library, public, name=name)
    else:
        with opened() as library:
            library.enroll_validator(bytes.fromhex(public), name=name)
    _say(as_json, "enrolled", key_id_of(public))


@app.command()
@command
def rotate(
    old: Annotated[Path, typer.Option(help="The private key that signed so far.")],
    new: Annotated[Path, typer.Option(help="The private key that signs from now on.")],
    name: _Name,
    as_json: Json = False,
) -> None:
    """Let a new signing key follow an old one: who trusts the old one trusts the new one too."""
    old_key, new_key = load(old), load(new)
    with opened_here() as (library, _):
        keyring.rotate_key(library, old_key, new_key, name=name)
    _say(as_json, "rotated", new_key.key_id)


@app.command()
@command
def revoke(
    key_id: _KeyId,
    key: Annotated[
        Path | None, typer.Option("--key", help="A signing key in force; for signing keys only.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for signing keys.")] = "no reason given",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take trust from a key, for good.

    What a signing key signed counts only as far as the record has it by now. What a validator's key
    endorsed has to be judged again.
    """
    with opened_here() as (library, _):
        record, validators = _keys(library)
        signing_ids = _signing_ids(record)
        wanted = _named(key_id, [*signing_ids, *(each.key_id for each in validators)])
        if wanted in signing_ids and key is None:
            raise ConfigError(
                f"key {wanted[:12]} signs for the library, and only a signing key can revoke it: give "
                "--key, which may be the key itself"
            )
        confirm(f"Revoke key {wanted[:12]} for good?", is_agreed=yes)
        if wanted in signing_ids and key is not None:
            keyring.revoke_key(library, wanted, by=load(key), reason=reason)
        else:
            library.revoke_validator(wanted)
    _say(as_json, "revoked", wanted)


@app.command()
@command
def sign(
    key: KeyFile,
    kernel_id: Annotated[
        str | None,
        typer.Argument(
            help="The kernel's id, or the beginning of it.", show_default="the whole library"
        ),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            help="Put on the record that it was signed: proves when, should the key be lost."
        ),
    ] = True,
) -> None:
    """Write the signed manifest of a kernel, or of the whole library, to standard output."""
    signer = load(key)
    with opened_here() as (library, _):
        if kernel_id is None:
            signed = seal_library(library, signer, is_recorded=record)
        else:
            found = kernel_named(library, kernel_id)
            signed = seal_kernel(library, found, signer, is_recorded=record)
    typer.echo(signed.file(), nl=False)


@app.command()
@command
def record(
    since: Annotated[int, typer.Option(help="The number of the first event.", min=0)] = 0,
) -> None:
    """Write the library's record to standard output, for `urza keys verify --record`."""
    with opened() as library:
        for event in library.events(since=since):
            typer.echo(event.line(), nl=False)


def _keys(library: SqlLibrary) -> tuple[Record, list[ValidatorKey]]:
    with library.snapshot() as connection:
        found = keyring.read_keys(connection)
    return found, [*library.validator_keys()]


def _signing_ids(record: Record) -> list[str]:
    return [each.said.key_id for each in record.enrolled] + [
        each.said.by_new.key_id for each in record.rotated
    ]


def _described(record: Record, validators: list[ValidatorKey]) -> list[dict[str, str]]:
    """Return what there is to say of each key."""
    signing = [(each.said.public_key, each.said.name, "enrolled") for each in record.enrolled] + [
        (
            each.said.by_new.public_key,
            each.said.statement.name,
            f"follows {each.said.by_old.key_id[:12]}",
        )
        for each in record.rotated
    ]
    rows: list[dict[str, str]] = []
    for public_key, name, status in signing:
        revocation = record.revocation_of(key_id_of(public_key))
        if revocation is not None:
            said = revocation.said.statement
            status = f"revoked {said.at:%Y-%m-%d}: {said.reason}"
        rows.append(_row(public_key, "manifests", name, status))
    for each in validators:
        status = "enrolled" if each.revoked_at is None else f"revoked {each.revoked_at:%Y-%m-%d}"
        rows.append(_row(each.public_key, "kernels", each.name, status))
    return rows


def _row(public_key: str, role: str, name: str, status: str) -> dict[str, str]:
    return {
        "key_id": key_id_of(public_key),
        "role": role,
        "name": name,
        "status": status,
        "public_key": public_key,
    }


def _named(prefix: str, key_ids: list[str]) -> str:
    """Return the only id that begins so. Raises `NotFoundError` or `ConfigError`."""
    found = sorted({each for each in key_ids if prefix and each.startswith(prefix.lower())})
    if not found:
        raise NotFoundError(f"no key's id begins with {prefix!r}; `urza keys list` shows all")
    if len(found) > 1:
        raise ConfigError(f"the ids of {len(found)} keys begin with {prefix!r}; give more of it")
    return found[0]


def _say(as_json: bool, what: str, key_id: str) -> None:
    if as_json:
        print_json({"key_id": key_id, "status": what})
    else:
        console().print(f"key {key_id[:12]} is {what}")
