"""Each alert of rules.yml on made-up series: what makes it fire, and what just doesn't.

Series are in promtool's notation: `0+5x30` is 0 at first, 5 more at each step of a minute, 30 times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_PROXY = 'instance="p:9432",job="pgsluice"'
_HOST = f'{_PROXY},database="app",host="main"'
_POOL = f'{_HOST},pool="primary"'
_LE = ("0.1", "1", "2.5", "+Inf")


class Case(NamedTuple):
    """Series under which `alert` fires after 40 minutes, others under which it doesn't, and its own labels."""

    alert: str
    labels: Mapping[str, str]
    fires: Mapping[str, str]
    quiet: Mapping[str, str]


def steady(value: float) -> str:
    return f"{value:g}x60"


def buckets(name: str, labels: str, below: tuple[int, ...]) -> dict[str, str]:
    """Return a histogram that counts so many in each bucket and those below it, each minute."""
    return {
        f'{name}_bucket{{{labels},le="{le}"}}': f"0+{number}x60"
        for le, number in zip(_LE, below, strict=True)
    }


_INSTANCE = {"instance": "p:9432"}
_JOB = {**_INSTANCE, "job": "pgsluice"}
_ON_DATABASE = {**_INSTANCE, "database": "app"}
_ON_HOST = {**_JOB, "database": "app", "host": "main"}
_ON_POOL = {**_INSTANCE, "database": "app", "host": "main", "pool": "primary"}
_READY, _DRAINING = f"pgsluice_ready{{{_PROXY}}}", f"pgsluice_draining{{{_PROXY}}}"
_COUNT = f'pgsluice_query_duration_seconds_count{{{_POOL},intent="read"}}'
_ERRORS = f'pgsluice_errors_total{{{_POOL},class="42"}}'
_LIMIT = f"pgsluice_pool_connections_limit{{{_POOL}}}"
_SPOOL = f"pgsluice_access_log_spool_bytes{{{_PROXY}}}"


def _connections(active: int, busy: int, idle: int) -> dict[str, str]:
    numbers = {"active": active, "busy": busy, "idle": idle}
    return {
        f'pgsluice_pool_connections{{{_POOL},state="{state}"}}': steady(numbers[state]) for state in numbers
    }


CASES = (
    Case("PgsluiceDown", _JOB, {f"up{{{_PROXY}}}": steady(0)}, {f"up{{{_PROXY}}}": steady(1)}),
    Case(
        "PgsluiceNotReady",
        _JOB,
        {_READY: steady(0), _DRAINING: steady(0)},
        {_READY: steady(0), _DRAINING: steady(1)},
    ),
    Case(
        "PgsluiceEventLoopLate",
        _INSTANCE,
        buckets("pgsluice_event_loop_delay_seconds", _PROXY, (90, 100, 100, 100)),
        buckets("pgsluice_event_loop_delay_seconds", _PROXY, (100, 100, 100, 100)),
    ),
    Case(
        "PgsluiceClientsNearLimit",
        _JOB,
        {f"pgsluice_clients{{{_PROXY}}}": steady(91), f"pgsluice_clients_limit{{{_PROXY}}}": steady(100)},
        {f"pgsluice_clients{{{_PROXY}}}": steady(90), f"pgsluice_clients_limit{{{_PROXY}}}": steady(100)},
    ),
    Case(
        "PgsluiceRateLimitStoreDown",
        _JOB,
        {f"pgsluice_rate_limit_store_up{{{_PROXY}}}": steady(0)},
        {f"pgsluice_rate_limit_store_up{{{_PROXY}}}": steady(1)},
    ),
    Case(
        "PgsluiceSlowStatements",
        {**_ON_DATABASE, "pool": "primary"},
        buckets("pgsluice_query_duration_seconds", f'{_POOL},intent="read"', (50, 94, 100, 100)),
        buckets("pgsluice_query_duration_seconds", f'{_POOL},intent="read"', (50, 96, 100, 100)),
    ),
    Case(
        "PgsluiceErrors",
        _ON_DATABASE,
        {_COUNT: "0+100x60", _ERRORS: "0+6x60"},
        {_COUNT: "0+100x60", _ERRORS: "0+4x60"},
    ),
    # A single statement that fails where there are hardly any is nothing to be woken for.
    Case(
        "PgsluiceErrors",
        _ON_DATABASE,
        {_COUNT: "0+2x60", _ERRORS: "0+2x60"},
        {_COUNT: "0+0.5x60", _ERRORS: "0+0.5x60"},
    ),
    Case(
        "PgsluiceLoginsRefused",
        _INSTANCE,
        {f'pgsluice_logins_refused_total{{{_PROXY},reason="wrong"}}': "0+61x60"},
        {f'pgsluice_logins_refused_total{{{_PROXY},reason="wrong"}}': "0+59x60"},
    ),
    Case(
        "PgsluicePoolBusy",
        _ON_POOL,
        {**_connections(8, 1, 1), _LIMIT: steady(10)},
        {**_connections(7, 1, 2), _LIMIT: steady(10)},
    ),
    Case(
        "PgsluicePoolExhausted",
        {**_ON_POOL, "job": "pgsluice"},
        {f"pgsluice_acquire_timeouts_total{{{_POOL}}}": "0x38 1x20"},
        {f"pgsluice_acquire_timeouts_total{{{_POOL}}}": "0x10 1x50"},
    ),
    Case(
        "PgsluiceHostDown",
        _ON_HOST,
        {f"pgsluice_host_up{{{_HOST}}}": steady(0)},
        {f"pgsluice_host_up{{{_HOST}}}": steady(1)},
    ),
    Case(
        "PgsluiceNoPrimary",
        _ON_DATABASE,
        {f"pgsluice_host_primary{{{_HOST}}}": steady(0)},
        {
            f"pgsluice_host_primary{{{_HOST}}}": steady(0),
            f'pgsluice_host_primary{{{_PROXY},database="app",host="other"}}': steady(1),
        },
    ),
    Case(
        "PgsluiceReplicaLag",
        _ON_HOST,
        {f"pgsluice_host_lag_seconds{{{_HOST}}}": steady(11)},
        {f"pgsluice_host_lag_seconds{{{_HOST}}}": steady(9)},
    ),
    Case(
        "PgsluiceBreakerOpen",
        _ON_HOST,
        {f"pgsluice_host_breaker_open{{{_HOST}}}": steady(1)},
        {f"pgsluice_host_breaker_open{{{_HOST}}}": steady(0)},
    ),
    Case("PgsluiceSpoolGrowing", _JOB, {_SPOOL: "0+1000000x60"}, {_SPOOL: "60000000-1000000x60"}),
    Case("PgsluiceSpoolGrowing", _JOB, {_SPOOL: "16000000+100000x60"}, {_SPOOL: "0+100000x60"}),
    Case(
        "PgsluiceAccessRecordsLost",
        _INSTANCE,
        {f'pgsluice_access_log_records_total{{{_PROXY},sink="table",result="refused"}}': "0+1x60"},
        {f'pgsluice_access_log_records_total{{{_PROXY},sink="table",result="written"}}': "0+1x60"},
    ),
    Case(
        "PgsluiceAccessRecordsLost",
        _INSTANCE,
        {f"pgsluice_access_log_spool_dropped_records_total{{{_PROXY}}}": "0+1x60"},
        {f"pgsluice_access_log_spool_dropped_records_total{{{_PROXY}}}": "7x60"},
    ),
)


def as_tests(
    cases: tuple[Case, ...], rules_file: str, rules: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what `promtool test rules` reads."""
    tests = []
    for case in cases:
        rule = rules[case.alert]
        annotations = dict(rule["annotations"])
        for name, value in case.labels.items():
            annotations["summary"] = annotations["summary"].replace(f"{{{{ $labels.{name} }}}}", value)
        alert = {"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": annotations}
        for series, expected in ((case.fires, [alert]), (case.quiet, [])):
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": series[name]} for name in series],
                    "alert_rule_test": [
                        {"alertname": case.alert, "eval_time": "40m", "exp_alerts": expected}
                    ],
                }
            )
    return {"rule_files": [rules_file], "evaluation_interval": "1m", "tests": tests}
