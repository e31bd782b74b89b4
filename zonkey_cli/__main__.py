"""`python -m zonkey_cli` is `zonkey`."""

from zonkey_cli.app import main

if __name__ == "__main__":
    main()
