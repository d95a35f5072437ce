"""The leaderboard: committed records and the papers' numbers in, Markdown and CSV out; the same bytes every time.

    load -> aggregate (-> match the papers) -> render -> write

Nothing here imports torch.
"""

from bench.leaderboard.command import run

__all__ = ["run"]
