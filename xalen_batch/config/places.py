"""Settings: where the stores, the files and the catalog are."""

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr, field_validator


class Places(BaseModel):
    """The addresses of the stores, and files that processes read."""

    data_dir: Path = Field(
        Path(".xalen"),
        description="Folder of the embedded stores, the uploaded files and `credentials.toml`.",
    )
    database_url: SecretStr | None = Field(
        None,
        description=(
            "PostgreSQL, `postgresql://user:password@host/name`. Unset: `xalen-batch up` starts its"
            " own."
        ),
    )
    migrate_database_url: SecretStr | None = Field(
        None,
        description=(
            "The same database as the role that owns its tables, for `xalen-batch migrate` and `up`"
            " alone. Unset: the role of `XALEN_DATABASE_URL` owns them (docs/security.md)."
        ),
    )
    redis_url: SecretStr | None = Field(
        None,
        description=(
            "Redis or Valkey, `redis://:password@host:6379/0`. Unset: `xalen-batch up` starts its"
            " own."
        ),
    )
    storage_url: str | None = Field(
        None,
        description=(
            "Object storage of input files, `file:///path`. Unset: `files/` in the data folder."
        ),
    )
    catalog: Path | None = Field(
        None, description="TOML file that adds to and overrides the built-in model catalog."
    )

    @field_validator("database_url", "migrate_database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(
            ("postgresql://", "postgresql+psycopg://", "postgres://")
        ):
            raise ValueError("must be a PostgreSQL address, postgresql://user:password@host/name")
        return value

    @field_validator("storage_url")
    @classmethod
    def _is_folder(cls, value: str | None) -> str | None:
        if value and not value.startswith("file:///"):
            raise ValueError(
                "must be a local folder, file:///path; other object storage is not supported yet"
            )
        return value

    @property
    def storage(self) -> str:
        """The storage address in force."""
        return self.storage_url or (self.data_dir.absolute() / "files").as_uri()
