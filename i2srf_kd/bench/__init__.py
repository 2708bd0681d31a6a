"""What `python -m i2srf_kd.bin.bench` measures: one file per part, what they share in `measure.py` and `report.py`."""
