"""Paretune: which small language model should I ship on my data, and what do I lose if I make it cheaper?"""

from paretune.api import load_study, open_results, plan, run

__all__ = ["load_study", "open_results", "plan", "run"]
