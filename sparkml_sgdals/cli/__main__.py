"""Run the command line: python -m sparkml_sgdals.cli."""

from sparkml_sgdals.cli import main

if __name__ == "__main__":
    main()
