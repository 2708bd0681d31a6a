"""Where things of the repository are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
VOICEBANK = REPOSITORY / "egs" / "voicebank"
CONF = VOICEBANK / "conf"
