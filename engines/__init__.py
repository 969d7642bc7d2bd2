"""Artifact to engine, and running it. What its dependencies would report is stopped before any of them is there."""

from engines import telemetry as telemetry
