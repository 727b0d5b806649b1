"""What a reader looks at before reading: the model as a tree, the error as it grows, curves, one tensor, one utterance.

Read in this order: data (plain data, no drawing), gather (from a comparison and its recordings), svg (marks on paper),
axes, draw (data to pictures).
"""

from nest_ssl.report.pictures.data import Pictures, Utterance
from nest_ssl.report.pictures.gather import gather

__all__ = ["Pictures", "Utterance", "gather"]
