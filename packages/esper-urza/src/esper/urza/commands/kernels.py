"""`urza kernels`: list kernels, look at one, archive one."""

from typing import Annotated

import typer
from rich.markup import escape

from esper.contracts import CompiledKernelArtifact, KernelQuery, KernelStatus
from esper.urza.commands.finding import kernel_named
from esper.urza.commands.session import (
    Json,
    Number,
    Yes,
    command,
    confirm,
    console,
    opened,
    print_json,
    print_table,
)

HELP = """
List kernels; look at one, archive one. `urza query` searches by what they can do.

\b
  urza kernels list --status validated
  urza kernels show 3f2a
  urza kernels archive 3f2a
"""

app = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]


@app.command("list")
@command
def list_kernels(
    status: Annotated[
        KernelStatus | None, typer.Option(help="Only those.", case_sensitive=False)
    ] = None,
    number: Number = 50,
    after: Annotated[str | None, typer.Option(help="Go on where a page ended.")] = None,
    as_json: Json = False,
) -> None:
    """List kernels of any status, in order of their ids."""
    with opened() as library:
        page = library.find_kernels(KernelQuery(status=status, limit=number, after=after))
    if as_json:
        print_json(page.model_dump(mode="json"))
    else:
        print_kernels(page.items, page.next)


@app.command()
@command
def show(kernel_id: _Id, as_json: Json = False) -> None:
    """Show one kernel with its latest report."""
    with opened() as library:
        found = library.get_kernel(kernel_named(library, kernel_id))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_kernel(found)


@app.command()
@command
def archive(kernel_id: _Id, yes: Yes = False, as_json: Json = False) -> None:
    """Let nobody run a kernel any more. That cannot be undone."""
    with opened() as library:
        found = library.get_kernel(kernel_named(library, kernel_id))
        named = f"{found.blueprint_name} for {found.signature.key} ({found.kernel_id[:12]})"
        confirm(f"Archive {named} for good?", is_agreed=yes)
        archived = library.archive_kernel(found.kernel_id)
    if as_json:
        print_json(archived.model_dump(mode="json"))
    else:
        console().print(f"{escape(named)} is ARCHIVED")


def print_kernels(kernels: tuple[CompiledKernelArtifact, ...], after: str | None) -> None:
    """Print a page of kernels for people."""
    rows = [
        [
            each.kernel_id[:12],
            each.blueprint_name,
            each.signature.key,
            each.status.value,
            f"{each.num_parameters:,}",
            "-" if each.report is None else f"{each.report.latency_us:,.0f} µs",
            " ".join(each.tags),
        ]
        for each in kernels
    ]
    if rows:
        print_table(
            ["KERNEL", "BLUEPRINT", "FOR", "STATUS", "PARAMETERS ", "LATENCY ", "TAGS"], rows
        )
    else:
        console().print("no kernels")
    if after is not None:
        console().print(f"[dim]there are more: --after {after}[/]")


def print_kernel(kernel: CompiledKernelArtifact) -> None:
    """Print one kernel for people."""
    out = console()
    out.print(f"[bold]kernel {kernel.kernel_id}[/]")
    rows = [
        ["blueprint", f"{kernel.blueprint_name} {kernel.blueprint_id}"],
        ["for", kernel.signature.key],
        ["status", kernel.status.value],
        ["size", f"{kernel.size_bytes:,} bytes, {kernel.num_parameters:,} parameters"],
        ["tags", " ".join(kernel.tags)],
        ["registered", f"{kernel.created_at:%Y-%m-%d %H:%M:%S} UTC"],
    ]
    if kernel.endorsement is not None:
        rows.append(["endorsed with key", kernel.endorsement.key_id])
    for name, value in rows:
        out.print(f"[dim]{name}[/] {escape(value or '-')}")
    report = kernel.report
    if report is None:
        out.print("nobody has judged it yet")
        return
    verdict = "passed" if report.passed else "did not pass"
    out.print(
        f"[dim]report[/] {escape(report.report_id)} by {escape(report.validator_id)}, "
        f"{report.measured_at:%Y-%m-%d %H:%M:%S} UTC: {verdict}"
    )
    out.print(
        f"  {report.latency_us:,.1f} µs, {report.memory_bytes:,} bytes and {report.flops:,} FLOPs "
        f"for an input of {'x'.join(map(str, report.probe_shape))}"
    )
    for check in report.checks:
        mark = "[green]ok[/]" if check.passed else "[red]failed[/]"
        out.print(f"  {mark} {escape(check.name)}: {escape(check.detail)}")
