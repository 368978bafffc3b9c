import sys
from pathlib import Path

# `tabular_text` and `bandits` are plain modules beside the tests that share them.
sys.path.insert(0, str(Path(__file__).parent))
