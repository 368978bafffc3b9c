import sys
from pathlib import Path

# `tabular_text` is a plain module beside the tests that share it.
sys.path.insert(0, str(Path(__file__).parent))
