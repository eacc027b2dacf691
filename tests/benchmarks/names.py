"""Registered benchmarks as test parameters; those that train networks or forests run with the slow tests."""

import pytest

from morphem import registry

_SLOW = {"bioactivity", "campfire", "cell_health", "hpav23"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in registry.names("benchmarks")]
