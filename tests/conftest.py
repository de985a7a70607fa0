"""No test is red by chance: property tests draw the same examples in every run, however busy the machine is.

Examples that nobody has seen yet are drawn by `make soak`, which prints its seeds.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# A profile holds for the whole run, and must be loaded before any test module is: its decorators build upon it.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, suppress_health_check=_SLOW)
settings.register_profile("quick", settings.get_profile("fixed"), max_examples=10)  # of `make check`
settings.register_profile(
    "soak",
    derandomize=False,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("SOAK_EXAMPLES", "300")),
    print_blob=True,
    suppress_health_check=_SLOW,
    phases=[Phase.generate, Phase.shrink],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
