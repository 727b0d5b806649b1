"""Gather evidence about a difference and write the report again; `--help` says how. The same as `nest-ssl explain`."""

from nest_ssl.base.errors import run_command
from nest_ssl.cli.explain import main

if __name__ == "__main__":
    run_command(main)
