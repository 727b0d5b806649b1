"""Names that moved to `config/section.py`, until nothing imports them from here."""

from nest_ssl.config.section import NEMO, plain

__all__ = ["NEMO", "plain"]
