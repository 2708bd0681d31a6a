"""Makes the helper module ``toy`` importable: no package can be named as ESPnet's own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
