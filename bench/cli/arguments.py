"""An argparse parser whose errors are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bench.errors import UserError
from bench.registry.entries import nearest


class Parser(argparse.ArgumentParser):
    """Raises :class:`UserError` instead of printing its usage; names the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        _, unrecognised, rest = message.partition("unrecognized arguments: ")
        hint = nearest(rest.split()[0].partition("=")[0], known) if unrecognised and rest else ""
        raise UserError(f"{self.prog}: {message}{hint}")
