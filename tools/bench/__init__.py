"""What `python tools/bench` measures: one file per part, what they share in `measure.py` and `report.py`."""
