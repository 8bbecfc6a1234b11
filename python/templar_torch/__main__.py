"""``python -m templar_torch``: a worker on standard input and output. A Templar node starts it."""

import os
import signal

if __name__ == "__main__":
    # Read before the imports, which take seconds during which a parent may die.
    parent = os.getppid()
    # Ctrl-C is meant for the node, which then ends its worker cleanly.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .worker import main

    main(parent)
