"""`python -m lm`, the same command line as the console script `lm`."""

from lm.cli.main import main

if __name__ == "__main__":
    main("python -m lm")
