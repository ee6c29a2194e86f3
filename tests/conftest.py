"""What every test runs under."""

from hypothesis import HealthCheck, settings

# Time limits measure the machine, and these machines are shared.
settings.register_profile("edgewright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgewright")
