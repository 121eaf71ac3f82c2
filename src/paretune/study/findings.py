"""What an audit of data can find, in words, and what a study can write about it: shared by `init` and the report."""

from collections.abc import Collection

from paretune.study.data import MASKS

FINDINGS = {
    "duplicate": "read as an earlier record",
    "same_words": "same words as an earlier record",
    "encoding": "damaged encoding",
    "encoding_lost": "... beyond repair",
    "control": "control characters",
    "html": "HTML",
    "control_tokens": "control tokens as text (`</s>`, `<|im_end|>`)",
    "email": "mail addresses",
    "phone": "telephone numbers",
    "url": "web addresses",
    "ip": "IP addresses",
    "short": "far shorter than most",
    "long": "far longer than most",
    "language": "in another language",
    "unsafe": "unsafe by `safety`",
    "answer_in_prompt": "answer stands in the prompt",
}
"""By the name of a finding, in the order of a report: the records that have it."""


def proposed_clean(findings: Collection[str]) -> str:
    """The fields of a `clean` that deals with what an audit found: `encoding: fix, mask: [email]`; empty for nothing."""
    masks = [kind for kind in MASKS if kind in findings]
    drops = [kind for kind in ("empty", "duplicate") if kind in findings]
    parts = ["encoding: fix"] if {"encoding", "control"} & set(findings) else []
    parts += [f"mask: [{', '.join(masks)}]"] if masks else []
    return ", ".join(parts + ([f"drop: [{', '.join(drops)}]"] if drops else []))
