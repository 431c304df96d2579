"""The script name of the integration plan: the same as ``acclimate export``."""

from acclimate.cli.export import export_command

if __name__ == "__main__":
    export_command(prog_name="export_predictions.py")
