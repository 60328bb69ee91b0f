"""`python -m tintc_cli` is the command `tintc`."""

from tintc_cli import main

if __name__ == "__main__":
    main()
