"""The command line in a process of its own: ``python -m tests.bulk.amail_command bulk ...``."""

from amail.cli import main

if __name__ == "__main__":
    main()
