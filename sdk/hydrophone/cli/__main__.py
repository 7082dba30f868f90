"""``python -m hydrophone.cli``."""

from hydrophone.cli import main

if __name__ == "__main__":
    main()
