"""Paretune: which small language model should I ship on my data, and what do I lose if I make it cheaper?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.api import compare, compare_counts, load_study, open_results, plan, run

__all__ = ["compare", "compare_counts", "load_study", "open_results", "plan", "run"]


def __getattr__(name: str) -> Any:
    # On first use, so that `paretune --help` does not read what a study takes.
    if name in __all__:
        from paretune import api

        return getattr(api, name)
    raise AttributeError(f"module `paretune` has no attribute `{name}`")
