"""``python -m rnnfast``."""

from rnnfast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
