"""Which of NeMo's model variants the port trains with the same bits: `variants` lists them, `page` writes the table."""
