"""What every test runs under."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import HealthCheck, settings

# Time limits measure the machine, and these machines are shared. Other examples at every run would
# find a fault beside changes that are not to blame for it: `pytest --hypothesis-profile=others` does.
settings.register_profile("others", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("edgewright", settings.get_profile("others"), derandomize=True)
settings.load_profile("edgewright")


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test measures of its host goes where no user and no other test finds it."""
    folder = tmp_path_factory.getbasetemp() / "state" / secrets.token_hex(8)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
