"""Modes from a flag of OpenFeature, with the SDK's own provider in memory."""

from __future__ import annotations

import logging
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from openfeature import api
from openfeature.event import ProviderEvent
from openfeature.flag_evaluation import FlagResolutionDetails
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from commitcast import Mode, OpenFeatureModes, Rollout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openfeature.evaluation_context import EvaluationContext

VARIANTS = {"off": "off", "shadow": "shadow", "enforce": "enforce", "odd": "on"}


@pytest.fixture
def domain() -> Iterator[str]:
    """A domain of the process's registry, as long as the test."""
    yield "rollout"
    api.clear_providers()


def fixed(variant: str, key: str = "commitcast-mode") -> InMemoryProvider:
    return InMemoryProvider({key: InMemoryFlag(variant, VARIANTS)})


def by_rollout(rollout: Rollout) -> InMemoryProvider:
    """A provider that answers with a rollout: the example in docs/rollout.md."""

    def evaluate(_flag: Any, context: EvaluationContext) -> FlagResolutionDetails[Any]:
        return FlagResolutionDetails(value=rollout.mode(context.targeting_key))

    flag = InMemoryFlag("off", VARIANTS, context_evaluator=evaluate)
    return InMemoryProvider({"commitcast-mode": flag})


@pytest.mark.parametrize("mode", list(Mode))
def test_the_flag_s_value_is_the_mode(domain: str, mode: Mode) -> None:
    api.set_provider_and_wait(fixed(mode), domain)
    modes = OpenFeatureModes(api.get_client(domain))
    assert modes.mode("ann") is mode
    assert modes.mode(None) is mode
    assert modes.failures == 0


def test_the_flag_has_the_name_that_was_given_and_the_default_client_is_asked(domain: str) -> None:
    api.set_provider_and_wait(fixed("enforce", "events"))
    assert OpenFeatureModes(flag="events").mode("ann") is Mode.ENFORCE


def test_the_provider_deals_percentages_by_the_user(domain: str) -> None:
    rollout = Rollout(enforce=50, shadow=25)
    api.set_provider_and_wait(by_rollout(rollout), domain)
    modes = OpenFeatureModes(api.get_client(domain))
    users = [None, *(f"user-{n}" for n in range(300))]
    assert [modes.mode(user) for user in users] == [rollout.mode(user) for user in users]
    assert {modes.mode(user) for user in users} == set(Mode)
    rollout.set(enforce=100)
    assert {modes.mode(user) for user in users} == {Mode.ENFORCE}
    assert modes.failures == 0


def test_another_provider_counts_from_the_next_question_on(domain: str) -> None:
    client = api.get_client(domain)
    modes = OpenFeatureModes(client)
    for mode in (Mode.SHADOW, Mode.ENFORCE, Mode.OFF):
        api.set_provider_and_wait(fixed(mode), domain)
        assert modes.mode("ann") is mode


def test_a_provider_that_is_not_ready_gives_the_default(
    domain: str, caplog: pytest.LogCaptureFixture
) -> None:
    go, ready = threading.Event(), threading.Event()

    class Slow(InMemoryProvider):
        def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002 - the SDK's
            assert go.wait(20)

    client = api.get_client(domain)
    client.add_handler(ProviderEvent.PROVIDER_READY, lambda _details: ready.set())
    provider = Slow({"commitcast-mode": InMemoryFlag("enforce", VARIANTS)})
    ready.clear()
    api.set_provider(provider, domain)
    modes = OpenFeatureModes(client, default=Mode.SHADOW)
    assert modes.mode("ann") is Mode.SHADOW
    assert "PROVIDER_NOT_READY" in caplog.text
    go.set()
    assert ready.wait(20)
    assert modes.mode("ann") is Mode.ENFORCE


class Raising(InMemoryProvider):
    def resolve_string_details(self, *_args: Any, **_options: Any) -> Any:
        raise RuntimeError("the rules of zoe cannot be read")


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (InMemoryProvider({}), "FLAG_NOT_FOUND"),
        (fixed("odd"), "its value is not off, shadow or enforce"),
        (InMemoryProvider({"commitcast-mode": InMemoryFlag("n", {"n": 5})}), "TYPE_MISMATCH"),
        (Raising({}), "GENERAL"),
    ],
    ids=["no flag", "unknown value", "a number", "raises"],
)
def test_what_is_no_mode_gives_the_default_and_is_logged_once_a_minute(
    domain: str,
    provider: InMemoryProvider,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000.0
    monkeypatch.setattr("commitcast.flags.time", SimpleNamespace(monotonic=lambda: now))
    api.set_provider_and_wait(provider, domain)
    modes = OpenFeatureModes(api.get_client(domain), default=Mode.SHADOW)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "commitcast"]

    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            assert modes.mode("zoe") is Mode.SHADOW
        assert len(said()) == 1
        assert f"the flag commitcast-mode cannot be used ({reason})" in said()[0]
        assert "the mode is shadow" in said()[0]
        assert "zoe" not in said()[0]
        now += 59
        modes.mode("zoe")
        assert len(said()) == 1
        now += 1
        modes.mode("zoe")
        assert len(said()) == 2
    assert modes.failures == 102


def test_a_client_that_raises_gives_the_default(caplog: pytest.LogCaptureFixture) -> None:
    class Client:
        def get_string_details(self, *_args: Any) -> Any:
            raise ZeroDivisionError("of zoe")

    modes = OpenFeatureModes(Client(), default=Mode.ENFORCE)  # type: ignore[arg-type]
    assert modes.mode("zoe") is Mode.ENFORCE
    assert "ZeroDivisionError" in caplog.text
    assert "of zoe" not in caplog.text


def test_a_default_that_is_no_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"default is 'on'; give Mode\.OFF"):
        OpenFeatureModes(default="on")  # type: ignore[arg-type]


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openfeature", None)
    with pytest.raises(ImportError, match=r"pip install 'commitcast\[openfeature\]'"):
        OpenFeatureModes()
