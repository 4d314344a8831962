"""The state machine catches what it is there to catch: each rule of the library, broken, is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .breaks import BREAKS, Break
from .runs import run
from .simulated import Store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    found = Store()
    yield found
    found.close()


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_the_machine_catches(broken: Break, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.make(monkeypatch)
    with pytest.raises(AssertionError, match=broken.caught_as):
        run(store, 300)
