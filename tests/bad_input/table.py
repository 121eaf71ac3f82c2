"""The table of bad input: case, exit code and message.

`python -m tests.bad_input.table` runs every case and prints it as Markdown.
"""

from tests.bad_input.harness import Outcome


def row(name: str, outcome: Outcome) -> str:
    message = "; ".join(outcome.messages).replace("|", "\\|").replace("\n", " ⏎ ")
    return f"| {name} | {outcome.exit_code} | {message} |"
