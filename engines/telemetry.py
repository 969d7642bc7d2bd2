"""Stops the usage reports of other people's packages: it is enough to import this module before them.

OpenVINO's Python package posts an event to Google Analytics whenever it is imported, from a forked child, and keeps an
identifier in ~/intel; where its own package `openvino-telemetry` cannot be imported it uses a stub that does nothing
(openvino/tools/ovc/telemetry_utils.py, 2026.4). ONNX Runtime since 1.29 sends what it runs, such as the names and
hashes of graphs, to Microsoft, from a thread of its own, and keeps an identifier and a database in ~/.cache/Microsoft;
the variable must be there before it is imported, for its API comes after the first event (its Privacy.md, 1.31).

Children inherit the variable, and import this module themselves: engines/ and export/ begin with it.
"""

from __future__ import annotations

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]  (how Python spells "not to be imported")
