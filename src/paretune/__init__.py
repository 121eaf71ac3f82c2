"""Paretune: which small language model should I ship on my data, and what do I lose if I make it cheaper?"""

from paretune.api import compare, load_study, open_results, plan, run

__all__ = ["compare", "load_study", "open_results", "plan", "run"]
