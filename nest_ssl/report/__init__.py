"""Writes what a comparison found: for people (`report.md`, the terminal) and for programs (`report.json`)."""

from nest_ssl.report.terminal import print_summary
from nest_ssl.report.write import write_reports

__all__ = ["print_summary", "write_reports"]
