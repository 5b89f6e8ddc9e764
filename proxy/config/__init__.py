"""The configuration: pgsluice.yaml, or environment variables alone."""

from __future__ import annotations

from proxy.config.environment import from_environment
from proxy.config.loading import load, parse
from proxy.config.model import (
    AccessLog,
    Auth,
    Config,
    Database,
    Health,
    Host,
    HostTls,
    Http,
    Identity,
    Listen,
    ListenTls,
    Logging,
    Login,
    Pool,
    PoolDefaults,
    Routing,
    ServiceToken,
    Timeouts,
)
from proxy.config.problems import ConfigError, Problem

__all__ = [
    "AccessLog",
    "Auth",
    "Config",
    "ConfigError",
    "Database",
    "Health",
    "Host",
    "HostTls",
    "Http",
    "Identity",
    "Listen",
    "ListenTls",
    "Logging",
    "Login",
    "Pool",
    "PoolDefaults",
    "Problem",
    "Routing",
    "ServiceToken",
    "Timeouts",
    "from_environment",
    "load",
    "parse",
]
