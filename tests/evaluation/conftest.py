import sys
from pathlib import Path

# `stub_planner` is a plain module beside the tests that share it.
sys.path.insert(0, str(Path(__file__).parent))
