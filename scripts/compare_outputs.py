"""Compare two recordings and write the report; `--help` says how. The same as `nest-ssl compare`."""

from nest_ssl.base.errors import run_command
from nest_ssl.cli.compare import main

if __name__ == "__main__":
    run_command(main)
