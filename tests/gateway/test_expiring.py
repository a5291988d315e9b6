"""A bounded memory that forgets with time."""

from supervisord_llm.gateway.expiring import Expiring


def test_what_is_set_is_kept_for_a_while() -> None:
    kept: Expiring[str, str] = Expiring(2, 10.0)
    kept.set("s", "a", 0.0)
    assert kept.get("s", 10.0) == "a"
    kept.set("s", "b", 10.0)
    assert kept.get("s", 20.0) == "b"
    assert kept.get("s", 20.1) is None
    assert len(kept) == 0


def test_what_was_set_longest_ago_goes_first() -> None:
    kept: Expiring[str, str] = Expiring(2, 10.0)
    for who in ("s", "t", "s", "u"):
        kept.set(who, "a", 0.0)
    assert [who for who in "stu" if kept.get(who, 0.0)] == ["s", "u"]
