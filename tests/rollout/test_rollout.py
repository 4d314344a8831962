"""The plain setting: who is in which mode, and what a change does to it."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commitcast import Mode, Rollout

USERS = [f"user-{n}" for n in range(5_000)]


def share(rollout: Rollout, mode: Mode) -> float:
    return 100 * sum(rollout.mode(user) is mode for user in USERS) / len(USERS)


def test_everybody_is_watched_and_nobody_enforced_unless_it_is_said() -> None:
    assert share(Rollout(), Mode.SHADOW) == 100


def test_percentages_are_of_users() -> None:
    rollout = Rollout(enforce=20, shadow=30)
    assert share(rollout, Mode.ENFORCE) == pytest.approx(20, abs=2)
    assert share(rollout, Mode.SHADOW) == pytest.approx(30, abs=2)
    assert share(rollout, Mode.OFF) == pytest.approx(50, abs=2.5)
    assert share(Rollout(enforce=100, shadow=0), Mode.ENFORCE) == 100
    assert share(Rollout(enforce=0, shadow=0), Mode.OFF) == 100


def test_places_stay_from_release_to_release() -> None:
    """Another hash would move users out of enforce while a percentage is raised."""
    places = [Rollout()._place(user) for user in ("ann", "bob", "", "ŷ", "\ud800")]
    assert places == [3329, 422, 9490, 5387, 2749]


@given(st.text(), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
@settings(max_examples=200, deadline=None)
def test_raising_a_percentage_takes_nobody_out(
    user: str, one: float, other: float, shadow: float
) -> None:
    low, high = sorted((one, other))
    order = [Mode.OFF, Mode.SHADOW, Mode.ENFORCE]
    before = order.index(Rollout(low, shadow).mode(user))
    assert order.index(Rollout(high, shadow).mode(user)) >= before
    by_shadow = order.index(Rollout(shadow, low).mode(user))
    assert order.index(Rollout(shadow, high).mode(user)) >= by_shadow


def test_a_hundredth_of_a_percent_is_a_step() -> None:
    for user in USERS:
        place = Rollout()._place(user)
        assert Rollout(place / 100, shadow=0).mode(user) is Mode.OFF
        assert Rollout((place + 1) / 100, shadow=0).mode(user) is Mode.ENFORCE


def test_another_key_deals_the_places_anew() -> None:
    one, other = Rollout(enforce=50), Rollout(enforce=50, key="checkout")
    same = sum(one.mode(user) is other.mode(user) for user in USERS)
    assert 0.45 < same / len(USERS) < 0.55


def test_shadow_is_what_enforce_leaves_of_it() -> None:
    rollout = Rollout(enforce=70, shadow=100)
    assert share(rollout, Mode.OFF) == 0
    rollout.set(shadow=10)
    assert share(rollout, Mode.SHADOW) == pytest.approx(10, abs=2)


@pytest.mark.parametrize(
    ("enforce", "shadow", "mode"),
    [
        (0, 0, Mode.OFF),
        (0, 99.99, Mode.OFF),
        (99.99, 0, Mode.OFF),
        (50, 50, Mode.SHADOW),
        (99.99, 100, Mode.SHADOW),
        (100, 0, Mode.ENFORCE),
    ],
)
def test_who_has_no_user_is_the_last(enforce: float, shadow: float, mode: Mode) -> None:
    assert Rollout(enforce, shadow).mode(None) is mode


def test_an_override_counts_whatever_the_percentages() -> None:
    rollout = Rollout(overrides={"ann": Mode.ENFORCE, None: Mode.OFF})
    assert rollout.mode("ann") is Mode.ENFORCE
    assert rollout.mode(None) is Mode.OFF
    assert rollout.mode("bob") is Mode.SHADOW
    rollout.set(enforce=100)
    assert rollout.mode(None) is Mode.OFF
    rollout.set(enforce=0, overrides={})
    assert {rollout.mode(user) for user in ("ann", "bob", None)} == {Mode.SHADOW}


def test_the_caller_s_overrides_are_copied() -> None:
    mine: dict[str | None, Mode] = {"ann": Mode.ENFORCE}
    rollout = Rollout(overrides=mine)
    mine["bob"] = Mode.ENFORCE
    assert rollout.mode("bob") is Mode.SHADOW
    with pytest.raises(TypeError):
        rollout.overrides["bob"] = Mode.OFF  # type: ignore[index]


@pytest.mark.parametrize("value", [-0.01, 100.01, math.nan, math.inf, "5", True, None])
@pytest.mark.parametrize("name", ["enforce", "shadow"])
def test_what_is_no_percentage_is_refused_and_changes_nothing(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} is a percentage of users, from 0 to 100, not"):
        Rollout(**{name: value})  # type: ignore[arg-type]
    if value is None:
        return  # for `set` it means: as it is
    rollout = Rollout(10, 20)
    with pytest.raises(ValueError, match=name):
        rollout.set(**{"enforce": 30, "shadow": 30, name: value})  # type: ignore[arg-type]
    assert (rollout.enforce, rollout.shadow) == (10, 20)


def test_what_is_no_mode_is_refused_with_the_user_it_was_for() -> None:
    with pytest.raises(ValueError, match=r"overrides\['ann'\] is 'on'; give Mode\.OFF"):
        Rollout(overrides={"ann": "on"})  # type: ignore[dict-item]


def test_nobody_sees_half_of_a_change() -> None:
    """Off for one moment between two settings that both enforce would be seen by some thread."""
    rollout = Rollout(enforce=100, shadow=0)
    stop = threading.Event()
    seen: set[Mode] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(rollout.mode("ann"))

    def change() -> None:
        for _ in range(2_000):
            rollout.set(enforce=0, shadow=0, overrides={"ann": Mode.ENFORCE})
            rollout.set(enforce=100, shadow=0, overrides={})

    lookers = [threading.Thread(target=look) for _ in range(2)]
    changers = [threading.Thread(target=change) for _ in range(2)]
    for thread in (*lookers, *changers):
        thread.start()
    for thread in changers:
        thread.join()
    stop.set()
    for thread in lookers:
        thread.join()
    assert seen == {Mode.ENFORCE}


def test_changes_of_different_parts_at_once_all_count() -> None:
    rollout = Rollout()

    def change(name: str) -> None:
        for n in range(2_000):
            rollout.set(**{name: n % 100})  # type: ignore[arg-type]
        rollout.set(**{name: 42})  # type: ignore[arg-type]

    threads = [threading.Thread(target=change, args=(name,)) for name in ("enforce", "shadow")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (rollout.enforce, rollout.shadow) == (42, 42)


def test_it_shows_what_it_is_set_to_and_no_user() -> None:
    rollout = Rollout(5, 20, overrides={"ann": Mode.OFF})
    assert repr(rollout) == "<Rollout enforce=5 shadow=20 overrides=1>"
