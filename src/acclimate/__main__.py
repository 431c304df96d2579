"""``python -m acclimate``."""

from acclimate.cli.main import main

if __name__ == "__main__":
    main(prog_name="acclimate")
