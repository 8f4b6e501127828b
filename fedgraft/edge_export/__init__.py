"""From a run to a device: tickets, class banks, ONNX, bundles."""
