"""The command line; torch is imported when a command needs it."""
