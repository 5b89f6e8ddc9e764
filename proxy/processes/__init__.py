"""Several processes as one proxy: sockets that are passed on, messages between processes, workers and successors."""
