"""What a comparison found, for people (`report.md`, the terminal) and for programs (`report.json`).

Read in this order: document (what a report is made of), words (every sentence, once), sections (findings to document),
render (document to text), write.
"""

from nest_ssl.report.write import append_step_summary, print_summary, write_junit, write_reports

__all__ = ["append_step_summary", "print_summary", "write_junit", "write_reports"]
