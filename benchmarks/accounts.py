"""Live keys of new accounts in the running system that XALEN_DATA_DIR names: `python -m
benchmarks.accounts NAME…`.
"""

import sys

from xalen_batch.cli import database


def main() -> None:
    with database.transaction() as session:
        from xalen_batch.accounts import accounts, keys
        from xalen_batch.accounts.accounts import Owner

        for name in sys.argv[1:]:
            account = accounts.create(session, name)
            _, secret = keys.create(session, Owner(account.id, livemode=True), name="bench")
            sys.stdout.write(secret + "\n")


if __name__ == "__main__":
    main()
