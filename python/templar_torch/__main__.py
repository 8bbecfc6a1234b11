"""``python -m templar_torch``: a worker on standard input and output. A Templar node starts it."""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take seconds in which a parent may die.
    parent = os.getppid()
    # Ctrl-C is for the node, which then ends its worker in an orderly way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .worker import main

    main(parent)
