"""``python -m lapilli``."""

from .cli import main

main()
