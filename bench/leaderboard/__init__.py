"""The leaderboard: turns committed records and the papers' numbers into Markdown, CSV and a page, reproducibly.

    load -> aggregate (-> match the papers) -> render -> write

Nothing here imports torch.
"""

from bench.leaderboard.command import run

__all__ = ["run"]
