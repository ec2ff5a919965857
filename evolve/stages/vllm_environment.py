"""What vLLM reads from the environment, wherever evolve starts it: to teach here, and to score."""

from __future__ import annotations

from types import MappingProxyType

QUIET = MappingProxyType(
    {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
)
"""No statistics sent, no log of its own, no threads bound to cores. What the user has set stays."""
