"""The exceptions that the command line turns into one line and an exit status."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do, in one line. Exit status 2."""


class Interrupted(Exception):  # noqa: N818 - a signal is no error
    """SIGINT or SIGTERM ended the work; ``status`` is the shell's for that signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
