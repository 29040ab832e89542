"""`urza query`: searches kernels by what they can do."""

from typing import Annotated

import typer
from pydantic import ValidationError

from esper.contracts import ConfigError, KernelQuery, KernelSignature, KernelStatus, SiteKind
from esper.urza.commands.finding import blueprint_named
from esper.urza.commands.kernels import print_kernels
from esper.urza.commands.session import Json, Number, command, opened, print_json

HELP = """
Search kernels by what they can do; every condition must hold.

Only VALIDATED ones unless --status says otherwise. A limit on latency or memory leaves out kernels
that nobody measured.

\b
  urza query --tag zero_init --not-tag slow --max-latency-us 200
  urza query --kind features --features 64 --prefer residual --order-by num_parameters
  urza query --status any --text bottleneck --json
"""

_Tags = list[str] | None


@command
def query(
    tag: Annotated[_Tags, typer.Option(help="It must have this tag; may be repeated.")] = None,
    not_tag: Annotated[_Tags, typer.Option(help="It must not have it.")] = None,
    prefer: Annotated[_Tags, typer.Option(help="Those with more of these come first.")] = None,
    text: Annotated[str, typer.Option(help="Words of blueprint or tags.")] = "",
    status: Annotated[str, typer.Option(help="A status, or any.")] = "validated",
    blueprint: Annotated[str | None, typer.Option(help="Only kernels of this design.")] = None,
    kind: Annotated[
        SiteKind | None, typer.Option(help="The kind of site, with --features.")
    ] = None,
    features: Annotated[int | None, typer.Option(help="Features or channels there.", min=1)] = None,
    inputs: Annotated[
        int | None, typer.Option(help="Features that a widening reads; see --features.", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="The type of the weights there.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_latency_us: Annotated[float | None, typer.Option(help="Microseconds.")] = None,
    max_memory_bytes: Annotated[int | None, typer.Option(help="Bytes.")] = None,
    max_parameters: Annotated[int | None, typer.Option(help="How many.")] = None,
    order_by: Annotated[str, typer.Option(help="A column such as latency_us.")] = "kernel_id",
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    number: Number = 50,
    after: Annotated[str | None, typer.Option(help="Go on where a page ended.")] = None,
    as_json: Json = False,
) -> None:
    """Search kernels."""
    if (kind is None) != (features is None):
        raise ConfigError("--kind and --features belong together: a kernel is built for both")
    if inputs is not None and kind is None:
        raise ConfigError("--inputs goes with --kind and --features: it says what a widening reads")
    fields: dict[str, object] = {
        "required_tags": tag or (),
        "excluded_tags": not_tag or (),
        "preferred_tags": prefer or (),
        "text": text,
        "status": None if status.lower() == "any" else _status(status),
        "max_latency_us": max_latency_us,
        "max_memory_bytes": max_memory_bytes,
        "max_parameters": max_parameters,
        "order_by": order_by,
        "descending": descending,
        "limit": number,
        "after": after,
    }
    with opened() as library:
        try:
            if kind is not None:
                fields["signature"] = KernelSignature.model_validate(
                    {
                        "kind": kind,
                        "features": features,
                        "inputs": inputs,
                        "dtype": dtype,
                        "device": device,
                    }
                )
            if blueprint is not None:
                fields["blueprint_id"] = blueprint_named(library, blueprint)
            asked = KernelQuery.model_validate(fields)
        except ValidationError as error:
            problems = "; ".join(
                f"--{'-'.join(map(str, each['loc'])).replace('_', '-')}: {each['msg']}"
                for each in error.errors()
            )
            raise ConfigError(problems) from error
        page = library.find_kernels(asked)
    if as_json:
        print_json(page.model_dump(mode="json"))
    else:
        print_kernels(page.items, page.next)


def _status(text: str) -> KernelStatus:
    if text.upper() not in KernelStatus:
        choice = ", ".join(each.value.lower() for each in KernelStatus)
        raise ConfigError(f"--status {text!r}; expected any or one of {choice}")
    return KernelStatus(text.upper())
