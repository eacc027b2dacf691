"""What watches a run: probes, health, throughput, a graceful stop, and the summary at its end."""

from morphem.callbacks.benchmarks import Benchmarks
from morphem.callbacks.compiled import Compile
from morphem.callbacks.graceful_stop import GracefulStop
from morphem.callbacks.health import Health
from morphem.callbacks.knn_probe import KNNProbe
from morphem.callbacks.linear_probe import LinearProbe
from morphem.callbacks.probe import Probe
from morphem.callbacks.run_summary import RunSummary
from morphem.callbacks.throughput import Throughput

__all__ = [
    "Benchmarks",
    "Compile",
    "GracefulStop",
    "Health",
    "KNNProbe",
    "LinearProbe",
    "Probe",
    "RunSummary",
    "Throughput",
]
