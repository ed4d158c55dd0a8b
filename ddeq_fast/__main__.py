"""`python -m ddeq_fast`: the command `ddeq-fast`."""

import sys

from ddeq_fast.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
