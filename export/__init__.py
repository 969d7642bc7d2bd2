"""Makes graphs, and artifacts of checkpoints. What ONNX Runtime would report is stopped before it is imported."""

from engines import telemetry as telemetry
