"""What a comparison found, for people (`report.md`, the terminal) and for programs (`report.json`).

Read in this order: document (what a report is made of), words (every sentence, once), sections (findings to document),
render (document to text), write.
"""

from nest_ssl.report.write import print_summary, write_reports

__all__ = ["print_summary", "write_reports"]
