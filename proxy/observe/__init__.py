"""What the proxy knows about itself: the access log, counters, histograms, metrics, safe text for logs."""
