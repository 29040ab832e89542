"""Where the servers are and who we are to them: environment variables and `.env`.

Variable names are those of `.env.example`. The environment wins over the file, the file over the
defaults. A run itself needs none of them: its defaults are embedded.
"""

from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from esper.contracts.config import message_of
from esper.contracts.errors import ConfigError

DEFAULT_PORTS = {"postgresql": 5432, "redis": 6379, "rediss": 6379}


class Settings(BaseSettings):
    """The founding document's variables, with the defaults of `infra/docker-compose.yml`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8")

    postgres_user: str = Field(default="esper_admin", min_length=1)
    """Who we are to PostgreSQL."""
    postgres_password: SecretStr | None = None
    """Needed as soon as PostgreSQL is used."""
    postgres_host: str = Field(default="localhost", min_length=1)
    """Where PostgreSQL is."""
    postgres_port: int = Field(default=5432, ge=1, le=65535)
    """Its port."""
    postgres_db: str = Field(default="urza_db", min_length=1)
    """The database of Urza, the library."""
    database_url: SecretStr | None = None
    """When set, overrides what the POSTGRES_* variables compose."""

    minio_root_user: str | None = None
    """Access key of the S3 server."""
    minio_root_password: SecretStr | None = None
    """Its secret key."""
    s3_bucket_name: str = Field(default="esper-artifacts", min_length=3)
    """Where kernels are kept; made when missing."""
    s3_endpoint_url: str = Field(default="http://localhost:9000", pattern=r"^https?://")
    """Where the S3 server is."""

    urza_token: SecretStr | None = None
    """For a library behind a service (`DATABASE_URL=http://…`): what `urza tokens create` showed."""

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """The bus; may hold a password."""

    def library_url(self) -> str:
        """Return the SQLAlchemy URL of the library's database, password included.

        Raises:
            ConfigError: if neither DATABASE_URL nor POSTGRES_PASSWORD is set.

        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.postgres_password is None:
            raise ConfigError(
                "no database is configured: POSTGRES_PASSWORD and DATABASE_URL are both unset. "
                "Copy .env.example to .env and fill it in, or set DATABASE_URL, "
                "for example DATABASE_URL=sqlite:///library.db"
            )
        user = quote(self.postgres_user, safe="")
        password = quote(self.postgres_password.get_secret_value(), safe="")
        return (
            f"postgresql+psycopg://{user}:{password}"
            f"@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}"
        )

    def with_password(self, url: str) -> str:
        """Return `url` with the configured password, if it names the same server without one.

        A configuration file then needs no secret: host, port and (where given) user must be those of
        REDIS_URL or of the database; any other URL is returned as it is.
        """
        asked = urlsplit(url)
        if asked.password is not None or not asked.hostname:
            return url
        for known in map(urlsplit, self._server_urls()):
            if (
                known.password
                and _server(known) == _server(asked)
                and asked.username in (None, known.username)
            ):
                credentials = known.netloc.rpartition("@")[0]
                host = asked.netloc.rpartition("@")[2]
                return urlunsplit(asked._replace(netloc=f"{credentials}@{host}"))
        return url

    def _server_urls(self) -> list[str]:
        database = self.database_url is not None or self.postgres_password is not None
        return [self.redis_url.get_secret_value(), *([self.library_url()] if database else [])]


def _server(url: SplitResult) -> tuple[str, str | None, int | None]:
    """Return the kind of server (`postgresql+psycopg` is one), its host and its port."""
    kind = url.scheme.partition("+")[0]
    try:
        return kind, url.hostname, url.port or DEFAULT_PORTS.get(kind)
    except ValueError:  # the port is no number, which the backend explains better
        return kind, url.hostname, None


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment and, if it exists, from `env_file`.

    Raises:
        ConfigError: naming each bad variable, without its value when that may be a secret.

    """
    try:
        return Settings(_env_file=env_file)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']).upper()}: {message_of(item)}"
            for item in error.errors(include_input=False)
        )
        raise ConfigError(f"bad settings (environment or {env_file}): {problems}") from None
