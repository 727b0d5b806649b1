"""The NEST model in plain torch; `nest.py` is the page to start on."""
