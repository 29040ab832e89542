"""Holds `.env.example`, the Compose file and the example configuration against the settings in code."""

import re
import tomllib
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import SecretStr

from esper.contracts import Settings, load_settings, load_yaml
from esper.tamiyo.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"
COMPOSE = ROOT / "infra" / "docker-compose.yml"
SECRETS = {"POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What somebody gets who copies the example as it is."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return load_settings(EXAMPLE)


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def example_variables() -> set[str]:
    """Return every name in the example, commented ones included."""
    return set(re.findall(r"^(?:# )?([A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE))


def compose_variables() -> dict[str, str]:
    """Return every variable of the Compose file with what follows its name (`:-default`, …)."""
    # `$$NAME` is not Compose's: the container's own shell reads it.
    return dict(re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", COMPOSE.read_text()))


def published(service: dict[str, Any]) -> dict[int, int]:
    """Return the service's ports: inside the container, and on this machine by default."""
    text = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", "\n".join(service["ports"]))
    ports = re.findall(r"^127\.0\.0\.1:(\d+):(\d+)$", text, re.MULTILINE)
    assert len(ports) == len(service["ports"]), f"not bound to localhost: {service['ports']}"
    return {int(inside): int(outside) for outside, inside in ports}


def test_the_example_and_the_settings_have_the_same_variables() -> None:
    assert example_variables() == {name.upper() for name in Settings.model_fields}


def test_the_example_has_the_defaults_of_the_settings(settings: Settings) -> None:
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            assert getattr(settings, name) == field.default, name


def test_the_example_configures_every_server(settings: Settings) -> None:
    assert settings.library_url().startswith("postgresql+psycopg://esper_admin:")
    assert settings.minio_root_user
    assert settings.minio_root_password
    assert settings.database_url is None


def test_compose_uses_only_variables_of_the_example() -> None:
    assert compose_variables().keys() <= example_variables()


def test_compose_refuses_to_start_without_a_password_and_says_where_to_set_it() -> None:
    variables = compose_variables()
    for name in SECRETS:
        assert variables[name].startswith(f":?set {name} in .env")


def test_every_other_default_of_compose_is_that_of_the_settings() -> None:
    for name, rest in compose_variables().items():
        if rest.startswith(":-"):
            assert str(Settings.model_fields[name.lower()].default) == rest.removeprefix(":-")


def test_compose_publishes_the_ports_that_the_settings_name(
    settings: Settings, services: dict[str, Any]
) -> None:
    assert published(services["redis"])[6379] == port_of(settings.redis_url)
    assert published(services["postgres"])[5432] == settings.postgres_port
    assert published(services["minio"])[9000] == port_of(settings.s3_endpoint_url)


def port_of(url: SecretStr | str) -> int | None:
    """Return the port that `url` names."""
    return urlsplit(url if isinstance(url, str) else url.get_secret_value()).port


def test_compose_says_first_how_to_start_it() -> None:
    first = COMPOSE.read_text().splitlines()[0]
    assert first == "# docker compose --env-file .env -f infra/docker-compose.yml up -d --wait"
    assert first.removeprefix("# ") in (ROOT / "README.md").read_text()


def test_every_service_is_pinned_checks_its_health_and_keeps_its_data(
    services: dict[str, Any],
) -> None:
    document = cast("dict[str, Any]", yaml.safe_load(COMPOSE.read_text()))
    assert "version" not in document
    assert set(services) == {"redis", "postgres", "minio"}
    for name, service in services.items():
        assert re.fullmatch(r"[\w/]+:(\d+\.\d+\S*|RELEASE\.\S+Z)", service["image"]), name
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        (volume,) = service["volumes"]
        assert volume.split(":")[0] in document["volumes"], name


def test_the_health_check_of_minio_needs_no_curl(services: dict[str, Any]) -> None:
    """Its image has none."""
    assert services["minio"]["healthcheck"]["test"] == ["CMD", "mc", "ready", "local"]


def test_the_example_configuration_is_the_default_run_on_the_servers(settings: Settings) -> None:
    config = load_yaml(ROOT / "infra" / "configs" / "phase1_mvp.yaml", RunConfig)
    on_servers = {"bus", "library", "artifacts"}
    assert config.model_dump(exclude=on_servers) == RunConfig().model_dump(exclude=on_servers)
    assert config.bus == settings.redis_url.get_secret_value()
    assert config.library is not None
    assert settings.with_password(config.library) == settings.library_url()
    assert config.artifacts == f"s3://{settings.s3_bucket_name}"


def test_the_example_configuration_holds_no_secret() -> None:
    assert "@" not in (ROOT / "infra" / "configs" / "phase1_mvp.yaml").read_text()


def test_the_real_environment_file_is_never_committed() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_alembic_finds_its_migrations_from_the_root() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    location = project["tool"]["alembic"]["script_location"].replace("%(here)s", str(ROOT))
    assert (Path(location) / "env.py").is_file()
