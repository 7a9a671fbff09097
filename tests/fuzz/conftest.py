"""Random arguments, found by hypothesis; `make fuzz`. Not part of `make test`, which takes fixed cases."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz", max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("fuzz")
