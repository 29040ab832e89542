"""Traces a host with what has grown in it into a `torch.export` program, and tries it against the host.

`export` calls `trace`. The host itself is neither run nor changed: copies that share its parameters are.
The program is written, read back, and must answer as the host does, for the example and for other
extents of every axis that may vary.

torch 2.15 stores weights in the `.pt2` archive as raw bytes and the graph as JSON. Left to itself it
also stores the example inputs, as a pickle, and the file paths and source lines that each operation
came from; neither is written here.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from esper.contracts import HostError
from esper.kasmina.calls import Call, deviation, plain, resized
from esper.kasmina.exported import AxisRecord, ProgramRecord, TensorRecord, pickled_records
from esper.kasmina.probe import Example
from esper.kasmina.programs import axes_of, inputs_of, nodes_of, outputs_of, requirements_of
from esper.kasmina.undo import RandomState

type Mode = Literal["eval", "train"]

FREEDOMS = ("every axis", "the first axis", "no axis")
"""Which axes of the inputs are to vary freely, in the order of trying."""


class _UnfitError(Exception):
    """One way of tracing does not work; says why in one line."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call and what the host answered."""

    call: Call
    outputs: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A program on disk with what is known about it."""

    program: ExportedProgram
    record: ProgramRecord
    cases: Sequence[Case]
    """What it was tried with, the example first."""


def trace(
    model: nn.Module, example: Example, path: Path, *, mode: Mode, tolerance: float
) -> Traced:
    """Write the program of `model` to `path`; the global random streams stay where they were.

    Raises:
        HostError: if the example does not run, torch cannot trace the host, or no program computes what
            the host computes.

    """
    streams = RandomState.take()
    try:
        trial = _Trial(model, Call.of(example), mode, tolerance, streams)
        reasons: list[str] = []
        for freedom in FREEDOMS:
            try:
                host = trial.host()
                program = _write(_program(host, trial.call, freedom), host, path)
                traced = trial.examine(program, path.name)
            except _UnfitError as error:
                reasons.append(str(error))
                continue
            return _with_notes(traced, [f"{freedom} may vary: {why}" for why in reasons[-1:]])
    finally:
        streams.restore()
    raise HostError(
        f"torch.export cannot trace the host in {mode} mode: {reasons[-1]}. Keep decisions that depend on "
        "the values of tensors out of forward (torch.where, torch.cond), or export a part of the host; "
        "save() needs no tracing"
    )


def _program(host: nn.Module, call: Call, freedom: str) -> ExportedProgram:
    """Trace `host`, with what must not leave this machine taken out."""

    def free(value: Tensor) -> dict[int, Any]:
        counts = {"every axis": value.dim(), "the first axis": min(value.dim(), 1), "no axis": 0}
        # An extent of 1 would be taken as fixed in any case, with a warning.
        return {axis: Dim.AUTO for axis in range(counts[freedom]) if value.shape[axis] > 1}

    @functools.wraps(host.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # Containers of somebody's own would have to be imported before the program is loaded.
        return plain(answer(*args, **kwargs))

    answer = host.forward
    shapes, own = call.by_name(host, free), call.map(Tensor.clone)
    host.forward = forward
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            # The list in a recurrent layer holds its own parameters, which are traced by their names.
            warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights", UserWarning)
            program = torch.export.export(host, own.args, own.kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise _UnfitError(_words(error)) from error
    program.example_inputs = None  # somebody's data
    for node in nodes_of(program):
        node.meta.pop("stack_trace", None)  # paths and lines of somebody's code
    return program


def _write(program: ExportedProgram, host: nn.Module, path: Path) -> ExportedProgram:
    """Write the program and return what is read back."""
    try:
        with warnings.catch_warnings():
            # torch says so of weights in channels-last order; whether they come back is looked at here.
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
            torch.export.save(program, path)
        again = torch.export.load(path)
    except Exception as error:
        raise _UnfitError(f"the program cannot be stored: {_words(error)}") from error
    if pickled := pickled_records(path):
        raise HostError(
            f"torch would pickle {', '.join(pickled)}; export the host before its weights become tensors "
            "of another type than torch.Tensor"
        )
    wanted, found = host.state_dict(), again.state_dict
    for name, value in wanted.items():
        if name not in found or deviation([value], [found[name]]) > 0:
            raise _UnfitError(f"{name} is not stored as it is")
    return again


class _Trial:
    """Compares programs with the host that they were traced from."""

    def __init__(
        self, model: nn.Module, call: Call, mode: Mode, tolerance: float, streams: RandomState
    ) -> None:
        self.call = call
        self._model = model
        self._mode: Mode = mode
        self._tolerance = tolerance
        self._streams = streams
        try:
            self._example = self._case(call)
        except HostError:
            raise
        except Exception as error:
            raise HostError(
                f"the example does not run through the model: {_words(error)}; give the inputs of one "
                "batch: a tensor, a tuple of arguments, or a dict of keyword arguments"
            ) from error
        if not self._example.outputs:
            raise HostError(
                "the model's output holds no tensor in tuples, lists or dicts to compare"
            )

    def host(self) -> nn.Module:
        """Return a copy of the model with the same parameters, and buffers of its own."""
        try:
            return _copied(self._model).train(self._mode == "train")
        except Exception as error:
            raise HostError(f"the host cannot be copied, to be traced: {_words(error)}") from error

    def examine(self, program: ExportedProgram, file: str) -> Traced:
        """Return what is found out about `program` by running it.

        Raises:
            _UnfitError: if it does not do what the host does.

        """
        inputs, module = inputs_of(program), program.module()
        self._notes = [
            f"axis {place} of {record.name} is fixed at 1, as in the example"
            for record in inputs
            for place, extent in enumerate(record.shape)
            if extent == 1
        ]
        self._cases = [self._example]
        self._worst = self._compare(module, self._example)
        found = axes_of(program, self.call.tensors())
        axes = [self._try_axis(module, inputs, axis) for axis in found]
        record = ProgramRecord(
            file=file,
            mode=self._mode,
            inputs=tuple(inputs),
            outputs=tuple(outputs_of(program)),
            axes=tuple(axes),
            deviation=self._worst,
            requires=tuple(requirements_of(program)),
            notes=tuple(self._notes),
        )
        return Traced(program=program, record=record, cases=self._cases)

    def _try_axis(
        self, module: nn.Module, inputs: Sequence[TensorRecord], axis: AxisRecord
    ) -> AxisRecord:
        """Run other extents of one axis and return what became of them."""
        (own,) = axis.tried
        # torch traces on the assumption of several entries, and calls 2 the least it is sure of.
        least = 1 if axis.least == 2 else axis.least
        for extent in dict.fromkeys((own + 1, own - 1, 1)):
            enough = 1 < extent < own and own + 1 in axis.tried
            if enough or not least <= extent <= (axis.most or extent):
                continue
            case = self._other(inputs, axis.name, extent)
            if case is None:
                continue
            try:
                self._worst = max(self._worst, self._compare(module, case))
            except _UnfitError as error:
                if extent > 1:
                    raise
                self._notes.append(f"{axis.name} must not be 1: {error}")
                continue
            self._cases.append(case)
            found = {"tried": (*axis.tried, extent), "least": min(axis.least, extent)}
            axis = axis.model_copy(update=found)
        return axis

    def _case(self, call: Call) -> Case:
        return Case(call=call, outputs=self._answer(self.host(), call))

    def _other(self, inputs: Sequence[TensorRecord], name: str, extent: int) -> Case | None:
        """Return the example with another extent of one axis; None if the host does not take it."""
        tensors = self.call.tensors()
        for number, record in enumerate(inputs):
            for place in (i for i, found in enumerate(record.shape) if found == name):
                tensors[number] = resized(tensors[number], place, extent)
        remaining = iter(tensors)
        try:
            return self._case(self.call.map(lambda _: next(remaining)))
        except Exception:  # noqa: BLE001
            return None  # nobody promised that the host takes it, so whatever it says is no news

    def _compare(self, module: nn.Module, case: Case) -> float:
        try:
            found = self._answer(_copied(module), case.call)
        except Exception as error:
            raise _UnfitError(f"the program does not run: {_words(error)}") from error
        apart, allowed = deviation(case.outputs, found), rounding(case.outputs, self._tolerance)
        if apart > allowed:
            raise _UnfitError(
                f"the program's outputs are off by {apart:.1e}, allowed is {allowed:.0e}; perhaps forward "
                "depends on something that is neither an input nor part of the state"
            )
        return apart

    def _answer(self, model: Callable[..., object], call: Call) -> list[Tensor]:
        self._streams.restore()  # both draw the same numbers
        with torch.set_grad_enabled(self._mode == "train"):
            return call.run(model)


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters, so that running it leaves no trace in buffers."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)


def rounding(outputs: Sequence[Tensor], tolerance: float) -> float:
    """Return the tolerance for these outputs: a few roundings, if their type is coarser than that."""
    coarse = (torch.finfo(t.dtype).eps for t in outputs if t.is_floating_point())
    return max(tolerance, 4 * max(coarse, default=0.0))


def _with_notes(traced: Traced, notes: Sequence[str]) -> Traced:
    record = traced.record.model_copy(update={"notes": (*notes, *traced.record.notes)})
    return replace(traced, record=record)


def _words(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), 'without a message')}"
