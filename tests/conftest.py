import sys
from pathlib import Path

# Plain modules beside the tests that share them (line_world.py).
sys.path.insert(0, str(Path(__file__).parent))
