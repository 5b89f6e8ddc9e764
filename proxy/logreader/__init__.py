"""What `pgsluice logs` does: finds access records in their table or in a file of JSON lines, and prints them."""

from proxy.logreader.command import logs
from proxy.logreader.wanted import Wanted, wanted

__all__ = ["Wanted", "logs", "wanted"]
