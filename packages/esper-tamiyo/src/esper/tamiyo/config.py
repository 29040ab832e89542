"""What a run is told: one validated, frozen configuration.

Read from YAML (`--config`), overridden by the command line, written back in full into the run folder.
"""

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from esper.contracts import ConfigError
from esper.contracts.config import message_of

TRACKERS = ("tensorboard", "mlflow")
"""What can track a run; each needs the extra of the same name."""

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Other customary names; what is written has the full ones."""

MAX_LEARNING_RATE = 1e30
"""What an optimizer makes of it has to be a float32, which ends at 3e38."""

SCRIPTED = "scripted:"
"""Begins the name of a policy that replays the run folder behind it."""

LEAST_STEPS = 10
"""Of an epoch that is a part of a pass: enough to measure at its end what to grow."""


class RunConfig(BaseModel):
    """Everything that decides a run; equal configurations give equal weights on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(default="digits", min_length=1)
    """A built-in task (`tamiyo tasks`), or `module:function` for a function that returns a `Task`."""
    data: Path | None = None
    """The user's data, for tasks that need some."""
    target: str | None = None
    """The column to be learned, for tables."""
    host: str = Field(default="mlp", min_length=1)
    """A built-in host (`tamiyo hosts`), `torchvision:NAME`, `timm:NAME`, or `module:function` for a function
    that takes the `Task` and returns the model."""
    width: int | None = Field(default=None, ge=1, le=65_536)
    """Units or channels of a built-in host; None: deliberately few."""
    policy: str = Field(default="gap", min_length=1)
    """`gap`, `heuristic`, `random`, `never` for plain training, `scripted:RUN_FOLDER` to replay what
    another run grew, or `module:function` for a function that returns a policy."""
    widen: bool = True
    """Whether layers can also become wider, not only get blocks."""
    blueprints: tuple[Path, ...] = ()
    """Files with designs of your own to grow with, beside the built-in ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Same seed, same decisions, same weights."""
    epochs: int = Field(default=60, ge=1)
    """Passes over the training data, or parts of them; see `epoch_samples`."""
    epoch_samples: int | None = Field(default=None, ge=1, le=100_000_000)
    """Samples of one epoch, at whose end the model is measured and growth decided; the next one goes on in
    the same pass. For large data, which few passes are made over. None: all of the training data."""
    batch_size: int = Field(default=64, ge=1)
    """Samples of one mini-batch. A last one of a single sample is left out of its epoch."""
    accumulate: int = Field(default=1, ge=1)
    """Mini-batches whose gradients make one step of the optimizer."""
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """AdamW's, at first."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate over the whole run; `cosine` ends at zero."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """How much of a moving average of the weights each step of the optimizer keeps, for example 0.99: it is
    measured at the end, and saved in `ema/` beside the model as trained. None: no average."""
    device: str = "auto"
    """`auto` is a CUDA device where there is one, else the CPU; or `cpu`, `cuda`, `cuda:N`."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass; below float32 it is mixed (autocast), for float16 with a gradient scaler. Also
    `fp32`, `bf16` and `fp16`."""
    compile: bool = False
    """Whether the training step's forward pass is compiled (torch.compile)."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads that torch computes with; the built-in hosts are too small to gain from more."""
    workers: int = Field(default=0, ge=0, le=256)
    """Processes that read samples ahead, of data that is not held in memory; 0 reads each batch when it is
    needed. The weights are the same."""
    checkpoint_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """At most so often a checkpoint is written, at the end of an epoch; 0: at every one."""
    keep_checkpoints: int = Field(default=3, ge=2, le=1000)
    """How many of them, the newest."""
    twin: bool = True
    """Also train the same host with the same seed and without growth, for comparison."""
    bus: str = Field(default="memory://", min_length=1)
    """`memory://` in the process, or `redis://HOST:PORT/DB`."""
    library: str | None = None
    """Database URL; None keeps a SQLite file in the run folder."""
    artifacts: str | None = None
    """Where kernels' bytes are kept; None keeps them in the run folder."""
    out: Path = Path("runs")
    """The folder that run folders are made in."""
    track: tuple[str, ...] = ()
    """What else follows the run: `tensorboard` (into the run folder) or `tensorboard:FOLDER`; `mlflow` (where
    MLflow's own settings say) or `mlflow:URI`."""

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where pydantic would take them for 1 and 0."""
        is_switch = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) and not is_switch:
            raise ValueError(
                f"{str(value).lower()} means nothing here (YAML reads yes, no, on and off so, too; put "
                "texts in quotes)"
            )
        return value

    @field_validator("blueprints", "track", mode="before")
    @classmethod
    def _one_of_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(
                f"unknown device {device!r}; there are auto (CUDA where there is some), cpu, cuda, and "
                "cuda:N for one of several GPUs"
            )
        return device

    @field_validator("precision", mode="before")
    @classmethod
    def _full_name(cls, precision: object) -> object:
        return PRECISIONS.get(precision, precision) if isinstance(precision, str) else precision

    @field_validator("learning_rate")
    @classmethod
    def _check_rate(cls, rate: float) -> float:
        if rate > MAX_LEARNING_RATE:
            raise ValueError(f"{rate:g} is beyond {MAX_LEARNING_RATE:g}, more than steps can take")
        return rate

    @field_validator("bus", "library", "artifacts")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        try:
            urlsplit(url or "")
        except ValueError as error:
            raise ValueError(
                f"the URL is malformed ({error}); expected scheme://host/path"
            ) from None
        return url

    @field_validator("track")
    @classmethod
    def _check_trackers(cls, track: tuple[str, ...]) -> tuple[str, ...]:
        for tracker in track:
            parse_tracker(tracker)
        if len(set(track)) < len(track):
            raise ValueError("a tracker is given twice; each would write the same")
        return track

    @model_validator(mode="after")
    def _check_epoch(self) -> "RunConfig":
        least = LEAST_STEPS * self.batch_size * self.accumulate
        if self.epoch_samples is not None and self.epoch_samples < least:
            raise ValueError(
                f"epoch_samples={self.epoch_samples} makes epochs of fewer than {LEAST_STEPS} steps, too "
                f"few to measure growth; expected at least {least} with batch_size={self.batch_size} and "
                f"accumulate={self.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _check_library(self) -> "RunConfig":
        if self.library is not None and self.artifacts is None:
            raise ValueError(
                "library is given without artifacts: its records outlive the run, so the kernels' "
                "bytes must too; add artifacts, for example file:kernels or s3://esper-artifacts"
            )
        return self

    def public(self) -> dict[str, Any]:
        """Return the whole configuration as JSON data, passwords removed from URLs, files with full paths."""
        data: dict[str, Any] = self.model_dump(mode="json")
        data["data"] = None if self.data is None else str(self.data.absolute())
        data["blueprints"] = [str(path.absolute()) for path in self.blueprints]
        if self.policy.startswith(SCRIPTED):
            data["policy"] = SCRIPTED + str(Path(self.policy.removeprefix(SCRIPTED)).absolute())
        for key in ("bus", "library", "artifacts"):
            if data[key] is not None:
                data[key] = with_full_path(without_password(data[key]))
        data["track"] = [_public_tracker(tracker) for tracker in self.track]
        return data

    def to_yaml(self) -> str:
        """Return what is `public()` as YAML."""
        return yaml.safe_dump(self.public(), sort_keys=False)


def parse_tracker(text: str) -> tuple[str, str | None]:
    """Return what is to track a run, and where to, None for its default.

    Raises:
        ValueError: if there is no such tracker, or the place after the colon is none; does not quote
            that, for it may hold a password.

    """
    kind, colon, target = text.partition(":")
    if kind not in TRACKERS:
        raise ValueError(f"unknown tracker {kind!r}; there are {', '.join(TRACKERS)}")
    try:
        urlsplit(target)
    except ValueError as error:
        raise ValueError(
            f"the place for {kind} is malformed ({error}); expected a folder or URI"
        ) from None
    if colon and not target:
        raise ValueError(f"{kind}: names no place; leave the colon out for the default")
    return kind, target or None


def without_password(url: str) -> str:
    """Return `url` without its password, which a later run takes from the settings."""
    parts = urlsplit(url)
    query = [part for part in parts.query.split("&") if "password" not in part.partition("=")[0]]
    if parts.password is None and parts.query == "&".join(query):
        return url
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{parts.username}@{host}" if parts.username else host
    return urlunsplit(parts._replace(netloc=netloc, query="&".join(query)))


def with_full_path(url: str) -> str:
    """Return `url` so that it means the same from any folder, where it is that of a file."""
    scheme, colon, path = url.partition(":")
    if scheme == "file" and path and not path.startswith("/"):
        return Path(unquote(path)).absolute().as_uri()
    file, mark, options = path.removeprefix("///").partition("?")
    is_relative = (
        path.startswith("///") and file and not file.startswith(("/", ":memory:", "file:"))
    )
    if scheme.startswith("sqlite") and is_relative:
        return f"{scheme}{colon}///{Path(file).absolute()}{mark}{options}"
    return url


def _public_tracker(tracker: str) -> str:
    kind, target = parse_tracker(tracker)
    if target is None:
        return kind
    if kind == "tensorboard" or (":" not in target and target != "databricks"):
        return f"{kind}:{Path(target).absolute()}"
    return f"{kind}:{with_full_path(without_password(target))}"


def override(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Return `config` with `changes` applied and validated; a change of None is no change.

    Raises:
        ConfigError: naming each bad option.

    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return RunConfig.model_validate(config.model_dump() | given)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    return "; ".join(
        ": ".join([*(str(part) for part in item["loc"]), message_of(item)])
        for item in error.errors(include_input=False)
    )
