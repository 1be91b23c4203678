"""The entry point of the command ``fastopt``, which says what to install where a library of it is missing."""

import io
import sys

CLI_LIBRARIES = {"typer", "click", "rich", "matplotlib", "plotly", "polars", "safetensors", "sklearn", "threadpoolctl"}


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show, such as a path of any bytes, is spelled
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from fastopt.cli import app

        app()
    except KeyboardInterrupt:  # while the libraries are read: the commands themselves take it from then on
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in CLI_LIBRARIES:
            raise
        sys.exit(f"fastopt: the command line needs {missing}; install its libraries with: pip install 'fastopt[cli]'")


if __name__ == "__main__":
    main()
