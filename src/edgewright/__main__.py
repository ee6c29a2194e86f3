"""``python -m edgewright``: the command, for those who start modules, such as ``torchrun -m``."""

from edgewright.cli import main

if __name__ == "__main__":
    main()
