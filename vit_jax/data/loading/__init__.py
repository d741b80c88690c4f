"""From a source to batches: order, examples, threads and worker processes."""
