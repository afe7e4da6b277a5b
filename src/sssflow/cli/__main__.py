"""`python -m sssflow.cli`."""

from sssflow.cli.main import main

if __name__ == "__main__":
    main()
