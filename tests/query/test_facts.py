"""How the facts of several statements become one intent."""

from __future__ import annotations

from proxy.query.facts import Facts


def test_strongest_kind_wins_and_the_primarys_reason() -> None:
    facts = Facts()
    facts.statements = 3
    facts.note("session", "readonly", "SET a")
    facts.note("read", "primary", "asks for in_hot_standby")
    facts.note("read", "readonly", "plain SELECT")
    intent = facts.intent("")
    assert (intent.kind, intent.target, intent.reason) == ("session", "primary", "asks for in_hot_standby")


def test_what_may_run_anywhere_follows_the_rest() -> None:
    facts = Facts()
    facts.statements = 2
    facts.note("transaction", "", "SAVEPOINT")
    assert facts.intent("").target == "primary"
    facts.note("read", "readonly", "plain SELECT")
    assert facts.intent("").target == "readonly"


def test_reason_for_a_pin_is_not_taken_away_by_the_same_text() -> None:
    facts = Facts()
    facts.unpins["listen"] = None
    facts.unpins["hold cursor"] = None
    facts.keep("listen")
    intent = facts.intent("")
    assert intent.pin == "listen"
    assert intent.unpins == ("hold cursor",)


def test_first_reasons_stay() -> None:
    facts = Facts()
    facts.keep("listen")
    facts.keep("load", lasting=True)
    facts.soil("DO")
    assert (facts.pin, facts.unclean, facts.lasting) == ("listen", "load", True)
    assert facts.intent("").pins == ("listen", "load")


def test_refusal_for_admin_keys_wins() -> None:
    facts = Facts()
    facts.refuse("SET ROLE")
    facts.refuse("sluice.identity", for_admin=True)
    facts.refuse("ALTER ROLE")
    assert (facts.refused, facts.refused_for_admin) == ("sluice.identity", True)
