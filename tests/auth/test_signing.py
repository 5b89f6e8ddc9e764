from __future__ import annotations

from proxy.auth.identity import SigningKey
from proxy.auth.signing import Rotation, Sight

OLD = SigningKey.from_secret("old0", b"old")
NEW = SigningKey.from_secret("new0", b"new")


def sight(*keys: SigningKey, expired: str = "", open_ones: str = "") -> Sight:
    return Sight(keys, frozenset(expired.split()), frozenset(open_ones.split()))


def test_the_only_key_signs_whoever_is_away() -> None:
    for host in (sight(OLD), sight(), None):
        assert Rotation().look((OLD,), {"one": sight(OLD), "two": host}) is OLD


def test_without_keys_nothing_signs() -> None:
    assert Rotation().look((), {"one": sight()}) is None


def test_a_new_key_signs_when_the_last_host_has_it() -> None:
    rotation = Rotation()
    rotation.look((OLD,), {"one": sight(OLD), "two": sight(OLD)})
    assert rotation.look((NEW, OLD), {"one": sight(NEW, OLD), "two": sight(OLD)}) is OLD
    assert rotation.look((NEW, OLD), {"one": sight(NEW, OLD), "two": None}) is OLD
    assert rotation.look((NEW, OLD), {"one": sight(NEW, OLD), "two": sight(NEW, OLD)}) is NEW


def test_a_new_key_waits_for_transactions_that_are_older_on_any_host() -> None:
    rotation = Rotation()
    rotation.look((OLD,), {"one": sight(OLD), "two": sight(OLD)})
    both = (NEW, OLD)
    for one, two, signs in (
        ("1/1 2/2", "3/3", OLD),
        ("2/2", "3/3 4/4", OLD),
        ("5/5", "3/3", OLD),
        ("5/5", "4/4", NEW),  # which began later
        ("5/5", "3/3", NEW),
    ):
        sights = {"one": sight(*both, open_ones=one), "two": sight(*both, open_ones=two)}
        assert rotation.look(both, sights) is signs


def test_a_proxy_that_starts_during_a_change_takes_the_key_that_all_know() -> None:
    rotation = Rotation()
    sights = {"one": sight(NEW, OLD, open_ones="1/1"), "two": sight(OLD)}
    assert rotation.look((NEW, OLD), sights) is OLD


def test_a_host_that_comes_back_without_the_new_key_gets_the_old_one() -> None:
    rotation = Rotation()
    both = sight(NEW, OLD)
    rotation.look((OLD,), {"one": sight(OLD), "two": sight(OLD)})
    assert rotation.look((NEW, OLD), {"one": both, "two": both}) is NEW
    assert rotation.look((NEW, OLD), {"one": both, "two": None}) is NEW
    assert rotation.look((NEW, OLD), {"one": both, "two": sight(OLD)}) is OLD
    assert rotation.look((NEW, OLD), {"one": both, "two": both}) is NEW


def test_a_key_that_is_deleted_is_followed_at_once() -> None:
    rotation = Rotation()
    rotation.look((OLD,), {"one": sight(OLD), "two": sight(OLD)})
    assert rotation.look((NEW,), {"one": sight(NEW), "two": sight(OLD)}) is NEW


def test_another_key_of_the_same_kid_is_another_key() -> None:
    rotation = Rotation()
    rotation.look((OLD,), {"one": sight(OLD)})
    other = SigningKey.from_secret("old0", b"other")
    assert rotation.look((other,), {"one": sight(other)}) is other


def test_an_old_key_goes_when_the_transactions_that_it_was_good_in_have_ended() -> None:
    rotation = Rotation()
    both = (NEW, OLD)
    rotation.look(both, {"one": sight(*both), "two": sight(*both)})
    assert rotation.retiring(frozenset(), {"one": sight(*both), "two": sight(*both)}) == []
    expired = frozenset(["old0"])
    for one, two, retiring in (
        ("1/1", "2/2", []),
        ("", "2/2", []),
        ("3/3", "", ["old0"]),
    ):
        sights = {"one": sight(*both, open_ones=one), "two": sight(*both, open_ones=two)}
        rotation.look(both, sights)
        assert rotation.retiring(expired, sights) == retiring


def test_no_key_goes_while_a_host_is_away_nor_the_one_that_signs() -> None:
    rotation = Rotation()
    both = (NEW, OLD)
    rotation.look(both, {"one": sight(*both), "two": sight(*both)})
    assert rotation.retiring(frozenset(["old0"]), {"one": sight(*both), "two": None}) == []
    sights = {"one": sight(*both), "two": sight(*both)}
    assert rotation.retiring(frozenset(["old0", "new0"]), sights) == ["old0"]
