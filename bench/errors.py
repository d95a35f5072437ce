"""The one exception that means "the user can mend this": the command line prints it in one line and exits with 2."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do, in one line."""
