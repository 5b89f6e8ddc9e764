"""The configuration, key by key as in pgsluice.yaml. Durations are in seconds, sizes in bytes.

Every key has a default except `databases`; a key without a value has its default too. The models are frozen:
a reload makes a new one. Relative paths start at the configuration file's directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxy.config import units

# What a section is made from where the file holds nothing of it: defaults are validated too, so that
# their paths are located as well.
DEFAULTS: Final[Any] = {}

# pglast can crash the process on longer texts: `SELECT 1+1+…` of 64 KB overflows the C stack.
MOST_PARSE_BYTES: Final = 32 * 1024

# A client's process id can name 256 processes: the new workers of a handover, and those that still drain.
MOST_WORKERS: Final = 64

Duration = Annotated[float, BeforeValidator(units.duration), Field(ge=0, le=366 * 86400)]
PositiveDuration = Annotated[float, BeforeValidator(units.duration), Field(gt=0, le=366 * 86400)]
Size = Annotated[int, BeforeValidator(units.size), Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
ListenPort = Annotated[int, Field(ge=0, le=65535)]  # 0 = any free one
Name = Annotated[str, Field(min_length=1, max_length=255)]
PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Balance = Literal["round_robin", "least_connections", "random"]


def _located(path: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("directory", ""), path)


FilePath = Annotated[Path, AfterValidator(_located)]


class Section(BaseModel):
    """What all parts of the configuration share: unknown keys are errors, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, given: Any) -> Any:
        if given is None:
            return {}
        if not isinstance(given, dict):
            return given
        return {
            key: value for key, value in given.items() if value is not None or key not in cls.model_fields
        }


class ListenTls(Section):
    """TLS towards clients."""

    mode: Literal["off", "prefer", "require"] = "off"
    cert_file: FilePath = Path("server.crt")
    key_file: FilePath = Path("server.key")
    min_version: Literal["1.2", "1.3"] = "1.2"


class Listen(Section):
    """Where clients connect."""

    host: Name = "127.0.0.1"
    port: ListenPort = 6432
    unix_socket_dir: FilePath | None = None
    max_clients: int = Field(default=5000, ge=1)
    auth_timeout: PositiveDuration = 15.0
    drain_timeout: Duration = 30.0
    tls: ListenTls = DEFAULTS


def _switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


class Http(Section):
    """Where metrics, health and the HTTP API are served."""

    host: Name = "127.0.0.1"
    port: ListenPort = 9432
    # /api/database; metrics, health and the dashboard stay where it is off.
    api: Annotated[bool, BeforeValidator(_switch)] = True
    # Pages of which origins may ask the API, as https://tasks.example.com
    cors_origins: list[Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")]] = []


class Auth(Section):
    """How clients log in, and where their keys are."""

    methods: list[Literal["scram-sha-256", "password"]] = Field(
        default=["scram-sha-256", "password"], min_length=1
    )
    keys: Literal["database", "file"] = "database"
    keys_file: FilePath = Path("keys.yaml")
    cache_ttl: PositiveDuration = 30.0
    # redis:// or rediss://: where several proxies count keys' statements together; its password is a secret.
    rate_limit_store: SecretStr | None = None

    @field_validator("rate_limit_store")
    @classmethod
    def _is_redis(cls, store: SecretStr | None) -> SecretStr | None:
        if store is None:
            return None
        try:
            parts = urlsplit(store.get_secret_value())
            is_redis = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_redis = False
        if not is_redis:
            raise ValueError("redis://[user:password@]host[:port][/database] is needed, or rediss:// for TLS")
        return store


class Identity(Section):
    """How PostgreSQL is told who asks."""

    mode: Literal["signed", "off"] = "signed"
    isolation: Literal["shared", "strict"] = "shared"
    token_ttl: Annotated[PositiveDuration, Field(ge=1, le=86400)] = 120.0


class Login(Section):
    """A role on the servers; without a password PostgreSQL's own rules (peer, trust) decide."""

    user: Name
    password: SecretStr = SecretStr("")


def _disable(value: Any) -> Any:
    return "disable" if value == "off" else value


class HostTls(Section):
    """TLS towards a server, with libpq's modes (manual: "SSL Mode Descriptions"); `off` is `disable`.

    `cert_file` and `key_file` are a client certificate's; the key may stand in the same file.
    """

    mode: Annotated[
        Literal["disable", "prefer", "require", "verify-ca", "verify-full"], BeforeValidator(_disable)
    ] = "prefer"
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None


class ServiceToken(Section):
    """A service token of Cloudflare Access."""

    id: Name
    secret: SecretStr


class Host(Section):
    """One server of a database. Its name defaults to host:port, and the port to 443 where `host` is a tunnel's name."""

    host: Name = "127.0.0.1"
    port: Port = 5432
    name: str = Field(default="", max_length=255)
    role: Literal["auto", "primary", "replica"] = "auto"
    transport: Literal["tcp", "cloudflare"] = "tcp"
    service_token: ServiceToken | None = None
    tls: HostTls = DEFAULTS

    @model_validator(mode="before")
    @classmethod
    def _tunnels_port(cls, given: Any) -> Any:
        tunnel = isinstance(given, dict) and given.get("transport") == "cloudflare"
        return {**given, "port": 443} if tunnel and given.get("port") is None else given

    @field_validator("name")
    @classmethod
    def _named(cls, name: str, info: ValidationInfo) -> str:
        return name or f"{info.data.get('host')}:{info.data.get('port')}"


class PoolDefaults(Section):
    """Times and limits that each pool has unless it sets its own."""

    acquire_timeout: PositiveDuration = 30.0
    connect_timeout: PositiveDuration = 5.0
    idle_timeout: Duration = 600.0
    max_lifetime: Duration = 3600.0
    max_uses: int = Field(default=0, ge=0)


class Pool(PoolDefaults):
    """Server connections of one login.

    `cache` says whether results of its reads may be kept, where the database keeps any. Left open, those of the pool
    readonly may: its login can't write, so that no view hides a function which does.
    """

    user: Name = "app_rw"
    password: SecretStr = SecretStr("")
    min: int = Field(default=0, ge=0)
    max: int = Field(default=2, ge=1, le=10_000)
    balance: Balance = "least_connections"
    cache: bool | None = None

    @field_validator("max")
    @classmethod
    def _holds_min(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("min", 0):
            raise ValueError(f"max ({most}) is below min ({info.data['min']})")
        return most


# What a pool of that name has where the configuration doesn't say.
POOLS: Final[dict[str, dict[str, Any]]] = {
    "primary": {"user": "app_rw", "min": 2, "max": 10},
    "readonly": {"user": "app_ro", "min": 1, "max": 5},
    "priority": {"user": "app_rw", "min": 1, "max": 3},
    "background": {"user": "app_rw", "min": 1, "max": 2},
    "admin": {"user": "app_admin", "min": 0, "max": 2},
}


class Routing(Section):
    """Which statements go to replicas."""

    enabled: bool = True
    read_your_writes: bool = True
    lazy_begin: bool = True
    retry_readonly_errors: bool = True
    max_parse_bytes: Size = 16 * 1024
    safe_functions: list[Name] = []  # volatile functions of the operator's own that only read

    @field_validator("max_parse_bytes")
    @classmethod
    def _parser_survives(cls, count: int) -> int:
        if count > MOST_PARSE_BYTES:
            raise ValueError("at most 32KiB: PostgreSQL's parser may crash the process on longer statements")
        return count


class Timeouts(Section):
    """When a client's statement or its silence is ended; 0 = never."""

    query: Duration = 0.0
    idle_in_transaction: Duration = 60.0
    client_idle: Duration = 0.0


class Health(Section):
    """How hosts are watched; an interval of 0 turns it off."""

    interval: Duration = 1.0
    failures_to_open: int = Field(default=3, ge=1)
    retry_after: PositiveDuration = 5.0
    max_lag: Duration = 10.0
    failover_wait: Duration = 5.0
    failover_attempts: int = Field(default=3, ge=1)


class Cache(Section):
    """Results of reads that are kept: `asked` for pools, keys and comments that ask for it, `on` for all that may be.

    A comment may ask for at most `max_ttl`. A result is at most `ttl` old, and while it is being asked for anew
    `stale_while_revalidate` more. `max_bytes` bounds what is kept for the database, in each worker; `max_entry` what
    one answer has.
    """

    mode: Literal["off", "asked", "on"] = "off"
    ttl: Annotated[PositiveDuration, Field(le=86400)] = 30.0
    stale_while_revalidate: Annotated[Duration, Field(le=86400)] = 0.0
    max_ttl: Annotated[PositiveDuration, Field(le=86400)] = 300.0
    # 64 MiB: some 30,000 answers of a page each; a server's shared buffers do the rest.
    max_bytes: Annotated[Size, Field(ge=1024 * 1024, le=16 * 1024**3)] = 64 * 1024 * 1024
    # 256 KiB: larger ones take longer to send than to ask for, and a hundred of them would fill the cache.
    max_entry: Annotated[Size, Field(ge=1024, le=16 * 1024 * 1024)] = 256 * 1024

    @field_validator("max_entry")
    @classmethod
    def _leaves_room(cls, size: int, info: ValidationInfo) -> int:
        if size > info.data.get("max_bytes", size) // 8:
            raise ValueError("more than an eighth of max_bytes: one answer would push out the others")
        return size


def _with_defaults(given: Any, defaults: dict[str, Any]) -> Any:
    if given is None:
        return defaults
    if not isinstance(given, dict):
        return given
    said = {key: value for key, value in given.items() if value is not None or key not in defaults}
    return {**defaults, **said}


class Database(Section):
    """What a client's database name stands for.

    `database` is its name on the servers. It defaults to the client's name for it; under "*" an empty one
    means whatever name the client asked for.
    """

    database: str = Field(default="", max_length=63)
    control: Login | None = None
    hosts: list[Host] = Field(default=[DEFAULTS], min_length=1)
    pool_mode: Literal["transaction", "session"] = "transaction"
    pool_defaults: PoolDefaults = DEFAULTS
    pools: dict[PoolName, Pool] = Field(default=dict.fromkeys(POOLS, DEFAULTS))
    routing: Routing = DEFAULTS
    timeouts: Timeouts = DEFAULTS
    health: Health = DEFAULTS
    cache: Cache = DEFAULTS

    @field_validator("pools", mode="before")
    @classmethod
    def _known_pools(cls, pools: Any) -> Any:
        """Give the pools that we know by name what the configuration leaves open."""
        if not isinstance(pools, dict):
            return pools
        return {name: _with_defaults(pool, POOLS.get(name, {})) for name, pool in pools.items()}

    @field_validator("pools")
    @classmethod
    def _completed(cls, pools: dict[str, Pool], info: ValidationInfo) -> dict[str, Pool]:
        """Take over pool_defaults where a pool sets nothing."""
        defaults = info.data.get("pool_defaults")
        if defaults is None:
            return pools
        return {
            name: pool.model_copy(
                update={
                    key: getattr(defaults, key)
                    for key in PoolDefaults.model_fields
                    if key not in pool.model_fields_set
                }
            )
            for name, pool in pools.items()
        }


def _sink(value: str) -> str:
    if value in ("table", "stdout") or value.startswith("file:/"):
        return value
    raise ValueError(
        "table, stdout, or file: with the whole path of a file, as in file:/var/log/pgsluice/access.log"
    )


class AccessLog(Section):
    """Where the record of each statement and login goes."""

    # table, stdout, and file:/path for JSON lines in a file
    sinks: list[Annotated[str, AfterValidator(_sink)]] = ["table", "stdout"]
    statements: Literal["normalized", "full", "none"] = "normalized"
    slow_query: Duration = 1.0
    flush_interval: PositiveDuration = 0.5
    spool_dir: FilePath = Path("/var/lib/pgsluice/spool")


class Logging(Section):
    """The program's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


def _off(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in ("off", "false", "no") else value


def _workers(value: Any) -> Any:
    if value != "auto":
        return value
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


class Config(Section):
    """The whole configuration. `http` is None where it is off; `workers: auto` has become their number."""

    listen: Listen = DEFAULTS
    http: Annotated[Http | None, BeforeValidator(_off)] = DEFAULTS
    workers: Annotated[int, BeforeValidator(_workers), Field(ge=1, le=MOST_WORKERS)] = 1
    auth: Auth = DEFAULTS
    identity: Identity = DEFAULTS
    databases: dict[Name, Database] = Field(min_length=1)
    access_log: AccessLog = DEFAULTS
    logging: Logging = DEFAULTS

    @field_validator("databases")
    @classmethod
    def _named(cls, databases: dict[str, Database]) -> dict[str, Database]:
        return {
            name: database
            if database.database or name == "*"
            else database.model_copy(update={"database": name})
            for name, database in databases.items()
        }
