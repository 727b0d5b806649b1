"""What changed from one NeMo to another, and whether the table of generations has it: `changes`, then its `page`."""
