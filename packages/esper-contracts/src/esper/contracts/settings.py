"""Where the servers are and who we are to them: environment variables and `.env`.

Variable names are those of `.env.example`. The environment wins over the file, the file over the
defaults. A run itself needs none of them: its defaults are embedded.
"""

from pathlib import Path
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from esper.contracts.errors import ConfigError


class Settings(BaseSettings):
    """The founding document's variables, with the defaults of `infra/docker-compose.yml`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file_encoding="utf-8")

    postgres_user: str = Field(default="esper_admin", min_length=1)
    postgres_password: SecretStr | None = None
    postgres_host: str = Field(default="localhost", min_length=1)
    postgres_port: int = Field(default=5432, ge=1, le=65535)
    postgres_db: str = Field(default="urza_db", min_length=1)
    database_url: SecretStr | None = None
    """When set, overrides what the POSTGRES_* variables compose."""

    minio_root_user: str | None = None
    minio_root_password: SecretStr | None = None
    s3_bucket_name: str = Field(default="esper-artifacts", min_length=3)
    s3_endpoint_url: str = Field(default="http://localhost:9000", pattern=r"^https?://")

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")

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


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment and, if it exists, from `env_file`.

    Raises:
        ConfigError: naming each bad variable, without its value when that may be a secret.

    """
    try:
        return Settings(_env_file=env_file)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
            for item in error.errors(include_input=False)
        )
        raise ConfigError(f"bad settings (environment or {env_file}): {problems}") from None
