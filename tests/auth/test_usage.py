from __future__ import annotations

from proxy.auth.usage import Usage, Use


def test_uses_of_a_key_add_up_and_the_last_time_stays() -> None:
    usage = Usage()
    usage.add("a", 2, 20.0)
    usage.add("b", 1, 5.0)
    usage.add("a", 3, 10.0)
    assert len(usage) == 2
    assert usage.take(10) == [Use("a", 5, 20.0), Use("b", 1, 5.0)]
    assert usage.take(10) == []


def test_a_batch_takes_who_waits_longest_and_what_is_put_back_comes_last() -> None:
    usage = Usage()
    for number in range(5):
        usage.add(f"key {number}", 1, 1.0)
    taken = usage.take(2)
    usage.add("key 0", 1, 3.0)
    usage.put_back(taken)
    assert [use.key_id for use in usage.take(3)] == ["key 2", "key 3", "key 4"]
    assert usage.take(3) == [Use("key 0", 2, 3.0), Use("key 1", 1, 1.0)]
