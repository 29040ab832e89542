"""MLflow's model registry, filled as the library is and asked for the same tags.

`library_speed.py` prints what is measured here beside the library's own times.
"""

import importlib
import random
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa
from rich.progress import track

_NUM_SEARCHES = 11
_LIMIT = 20
_AT_ONCE = 10_000


def mlflow_searches(
    url: str, num_models: int, tags: Sequence[str], num_tags: int, searches: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Return the seconds that MLflow took for each search, some times over; [] where it is missing.

    Models are written straight into its tables: its own way would take an hour.
    """
    if find_spec("mlflow") is None:
        print("MLflow is not installed: uv run --group rivals ... compares with it")
        return []
    client: Any = importlib.import_module("mlflow").MlflowClient(tracking_uri=url, registry_uri=url)
    client.create_registered_model("first")  # makes the tables
    engine = sa.create_engine(url)
    _fill(engine, num_models, tags, num_tags)
    engine.dispose()
    return [_search(client, wanted) for wanted in searches]


def _fill(engine: sa.Engine, num_models: int, tags: Sequence[str], num_tags: int) -> None:
    metadata = sa.MetaData()
    metadata.reflect(engine, only=["registered_models", "registered_model_tags"])
    models, model_tags = (metadata.tables[f"registered_model{end}"] for end in ("s", "_tags"))
    choose = random.Random(0)
    for start in track(range(0, num_models, _AT_ONCE), f"MLflow: {num_models:,} models"):
        names = [f"model-{number}" for number in range(start, min(start + _AT_ONCE, num_models))]
        rows = [{"name": name, "creation_time": 0, "last_updated_time": 0} for name in names]
        tagged = [
            {"name": name, "key": tag, "value": "1"}
            for name in names
            for tag in choose.sample(list(tags), num_tags)
        ]
        with engine.begin() as connection:
            connection.execute(sa.insert(models), rows)
            connection.execute(sa.insert(model_tags), tagged)


def _search(client: Any, wanted: Sequence[str]) -> list[float]:
    condition = " AND ".join(f"tags.`{tag}` = '1'" for tag in wanted)
    seconds: list[float] = []
    for _ in track(range(_NUM_SEARCHES), f"MLflow: search by {', '.join(wanted)}"):
        begun = time.perf_counter()
        found = client.search_registered_models(condition, max_results=_LIMIT)
        seconds.append(time.perf_counter() - begun)
        assert found
    return seconds
