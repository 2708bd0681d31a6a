"""The one place that knows ESPnet."""
