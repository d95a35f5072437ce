"""``python -m bench``."""

import sys

if __name__ == "__main__":
    if sys.platform == "win32":
        # Locks of files are POSIX ones, and so are the signals and processes of runs and sweeps.
        print("error: the suite runs on Linux and macOS; on Windows use its Linux (WSL)", file=sys.stderr)
        sys.exit(2)
    from bench.cli.main import main

    sys.exit(main())
