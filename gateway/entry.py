"""Entry point of the console script. To import the commands takes a moment, in which a person may give up."""

import sys


def main() -> None:
    try:
        from gateway.cli import main as run
    except KeyboardInterrupt:
        sys.exit("order-ledger: interrupted")
    run()
