"""Set before any test imports its libraries: one thread, since the networks are tiny, and no model hub."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
