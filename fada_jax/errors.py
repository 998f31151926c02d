"""The error a user can cause and mend: commands print its message on one line and exit with status 1."""


class UserError(Exception):
    """Wrong path, key, file or combination; the message names it and says what to do."""
