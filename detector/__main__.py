"""``python -m detector`` is ``region-detector``."""

from detector.commands.console import main

if __name__ == "__main__":
    main()
