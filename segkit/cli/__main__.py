"""`python -m segkit.cli` is the command `segkit`."""

from segkit.cli import main

if __name__ == "__main__":
    main()
